"""On-policy distillation: the reverse KL of each sampled token as its advantage."""

from __future__ import annotations

from limbeck.functional.policy import policy_surrogate
from limbeck.hyperparameters import Fraction, NonNegative
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, TOKEN_LOGPROBS, Average, SequenceMethod, token_log_probabilities
from limbeck.methods.sequence.text_pair import ENTRIES, rewards_to_go, text_pair
from limbeck.signals import Batch, Signals, Terms


@register(
    "on_policy_distillation",
    title="On-Policy Distillation",
    authors="Kevin Lu and Thinking Machines Lab",
    paper="https://thinkingmachines.ai/blog/on-policy-distillation/",
    year=2025,
    family="policy",
    equation=r"L = -\frac{1}{M} \sum_t \rho_t A_t, \qquad A_t = c\,\big(\log p(y_t) - \log q_{old}(y_t)\big),"
    r" \quad \rho_t = q(y_t) / q_{old}(y_t), \quad y \sim q_{old}",
)
class OnPolicyDistillation(SequenceMethod):
    """Policy gradient on the student's samples, the teacher's log-ratio being each token's reward.

    The expected gradient is that of the reverse KL at the visited beginnings. The teacher need only score given tokens,
    which servers without distributions can.

    The batch holds samples of the student as ``labels`` with their ``sampler_logprobs`` at the time of sampling (the
    student is taken to be the sampler where they are missing), and may hold an ``advantage`` ``[B]`` from a reward,
    which is added.

    A teacher with another tokenizer scores the same text in its own tokens. Both log-probabilities are then those of
    the shortest pieces of text that both cut out, and a token's reward is that of its piece.

    Terms:
        policy: negative surrogate of each token.

    Args:
        coefficient: weight of the log-ratio beside a given advantage.
        discount: 0 gives a token its own log-ratio (across tokenizers that of its span), more also those after it.
        clip: range of the likelihood ratio around 1; None for no clipping.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={TOKEN_LOGPROBS}, batch={"labels", "mask"})
    optional_entries = ENTRIES | {"sampler_logprobs", "advantage"}

    def __init__(
        self,
        *,
        coefficient: NonNegative = 1.0,
        discount: Fraction = 0.0,
        clip: NonNegative | None = None,
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.discount = discount
        self.clip = clip
        self.average = average
        self.weights = {"policy": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``policy``."""
        labels, mask = batch["labels"], batch["mask"]
        log_q = self.label_log_probabilities(student, labels, mask)
        sampler = batch.get("sampler_logprobs", log_q.detach())
        pair = text_pair(batch)
        theirs = token_log_probabilities(teacher, pair.teacher_labels, pair.teacher_mask)
        advantage = self.coefficient * rewards_to_go(pair, sampler, theirs, discount=self.discount)
        if "advantage" in batch:
            advantage = advantage + batch["advantage"].unsqueeze(-1)
        surrogate = policy_surrogate(log_q, [(sampler, 1.0)], advantage, clip=self.clip)
        return {"policy": self.averaged(-surrogate.objective, mask)}
