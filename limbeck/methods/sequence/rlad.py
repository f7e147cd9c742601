"""RLAD: the teacher within the trust region of the policy gradient."""

from __future__ import annotations

from limbeck.functional.policy import kl_estimate, policy_surrogate
from limbeck.hyperparameters import Fraction, NonNegative
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, TOKEN_LOGPROBS, Average, SequenceMethod, token_log_probabilities
from limbeck.signals import Batch, Signals, Terms


@register(
    "rlad",
    title="Reinforcement-aware Knowledge Distillation for LLM Reasoning",
    authors="Zhaoyang Zhang and others",
    paper="2602.22495",
    year=2026,
    family="policy",
    equation=r"L = -\mathrm{mean}_i \frac{1}{|o_i|} \sum_t \min(r A_i, \mathrm{clip}(r) A_i), \qquad"
    r" r = \Big(\frac{q}{q_{old}}\Big)^{\alpha} \Big(\frac{q}{p}\Big)^{1-\alpha}",
)
class RLAD(SequenceMethod):
    """Trust-region ratio distillation: the clipped ratio is taken against a geometric mixture of sampler and teacher.

    The reward alone says in which direction a token moves, the teacher how far. Samples of equal reward teach nothing.
    It profits from several updates for each set of samples. A teacher that is far away cuts most tokens off from the
    first step on; a larger ``alpha`` or ``clip`` lets them move.

    The batch holds samples of the student as ``labels``, their group-normalised ``advantage`` ``[B]``, and may hold
    ``sampler_logprobs``; with ``reference_weight`` also ``reference_logprobs`` ``[B, T]`` of the model before training.

    Terms:
        policy: negative clipped surrogate of each token.

    A ``reference_weight`` adds a term ``reference``, the estimate k3 of the divergence from the reference model.

    Args:
        alpha: weight of the sampler in the mixture, the teacher having the rest; 1 is GRPO.
        clip: range of the ratio around 1.
        reference_weight: weight of ``reference``.
        average: ``sequence_mean`` over sequences of the means over their tokens, as GRPO, or ``token_mean``.
    """

    optional_entries = frozenset({"sampler_logprobs"})

    def __init__(
        self,
        *,
        alpha: Fraction = 0.5,
        clip: NonNegative = 0.2,
        reference_weight: NonNegative = 0.0,
        average: Average = "sequence_mean",
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.clip = clip
        self.average = average
        entries = {"labels", "mask", "advantage"} | ({"reference_logprobs"} if reference_weight else set())
        self.needs = Needs(student={STUDENT}, teacher={TOKEN_LOGPROBS}, batch=entries)
        self.weights = {"policy": 1.0}
        if reference_weight:
            self.weights["reference"] = reference_weight

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``policy`` and, with a weight, ``reference``."""
        labels, mask = batch["labels"], batch["mask"]
        log_q = self.label_log_probabilities(student, labels, mask)
        sampler = batch.get("sampler_logprobs", log_q.detach())
        anchors = [(sampler, self.alpha), (token_log_probabilities(teacher, labels, mask), 1 - self.alpha)]
        surrogate = policy_surrogate(log_q, anchors, batch["advantage"], clip=self.clip)
        terms: Terms = {"policy": self.averaged(-surrogate.objective, mask)}
        if "reference" in self.weights:
            terms["reference"] = self.averaged(kl_estimate(log_q, batch["reference_logprobs"], kind="k3"), mask)
        return terms
