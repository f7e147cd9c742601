"""TSD-KD: rankings at the uncertain opening, distributions where the student is unsure and the teacher is not."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.divergence_registry import divergence
from limbeck.functional.plackett_luce import plackett_luce
from limbeck.functional.sequences import entropy, sequence_means
from limbeck.hyperparameters import Count, Fraction, NonNegative, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import DENSE_TARGET, STUDENT, Average, SequenceMethod, target_loss, whole_logits
from limbeck.selection.base import PoolSignals
from limbeck.selection.tokens import Opening, SurerTeacher, UncertainTokens
from limbeck.signals import Batch, Signals, Term, Terms


@register(
    "tsd_kd",
    title="Explain in Your Own Words: Improving Reasoning via Token-Selective Dual Knowledge Distillation",
    authors="Minsang Kim and Seung Jun Baek",
    paper="2603.13260",
    year=2026,
    family="sequence",
    equation=r"L = \alpha\,L_{\mathrm{rank}} + \frac{1}{M} \sum_t \sigma\Big(\frac{H(q_t) - H(p_t)}{\tau}\Big)"
    r" \mathrm{JSD}_\beta(p_t, q_t) + \mathrm{mean}_{t \in \mathrm{top}} H(q_t)",
)
class TSDKD(SequenceMethod):
    """Lets the teacher rank the student's own candidates first, and imitates it only where that helps.

    Meant for the student's own sequences.

    Terms:
        ranking: over the opening of each sequence, which holds a part of its entropy, how unlikely the student's
            candidates are in the teacher's order (Plackett-Luce).
        jsd: generalised Jensen-Shannon divergence at each token, gated by how much surer the teacher is.
        entropy: mean entropy of the student at its most uncertain tokens.

    Deviations from the authors' code, which differs from the paper: it maximises the likelihood of the reversed order,
    finds the opening over the whole batch, and takes all but a tenth of the tokens for the most uncertain ones. The
    paper sums the ranking over the opening; here it is a mean over the opening's tokens. With ``token_mean`` it is
    one over all openings of a batch, which then cannot be split into micro-batches or processes.

    Args:
        candidates: number of the student's likeliest tokens that are ranked.
        beta: weight of the teacher in the mixture of the divergence.
        opening_fraction: part of a sequence's entropy that its opening holds.
        uncertain_fraction: part of a sequence's tokens whose entropy is lowered.
        alpha: weight of ``ranking``.
        gate_temperature: how soft the gate is, in nats.
        temperature: divides the logits of the divergence.
        average: ``token_mean`` or ``sequence_mean``, of ``ranking`` and ``jsd``.
    """

    needs = Needs(student={STUDENT}, teacher={DENSE_TARGET}, batch={"labels", "mask"})

    def __init__(
        self,
        *,
        candidates: Count = 10,
        beta: Fraction = 0.9,
        opening_fraction: Fraction = 0.1,
        uncertain_fraction: Fraction = 0.1,
        alpha: NonNegative = 0.1,
        gate_temperature: Positive = 1.0,
        temperature: Positive = 1.0,
        average: Average = "sequence_mean",
    ) -> None:
        super().__init__()
        self.candidates = candidates
        self.divergence = divergence("jsd", beta=beta)
        self.opener = Opening(fraction=opening_fraction)
        self.uncertain = UncertainTokens(fraction=uncertain_fraction)
        self.surer = SurerTeacher(temperature=gate_temperature)
        self.temperature = temperature
        self.average = average
        self.weights = {"ranking": alpha, "jsd": 1.0, "entropy": 1.0}

    def ranked(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the student's candidates ``[B, T, k]`` by its own logits, and their places in the teacher's order."""
        k = min(self.candidates, student_logits.shape[-1])
        candidates = student_logits.detach().topk(k, dim=-1).indices
        theirs = teacher_logits.gather(-1, candidates)
        return candidates, theirs.argsort(dim=-1, descending=True, stable=True)

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ranking``, ``jsd`` and ``entropy``."""
        mask = batch["mask"].bool()
        ours, theirs = whole_logits(student, "student"), whole_logits(teacher, "teacher").detach()
        # Masked positions may hold anything, NaN included.
        ours, theirs = (logits.masked_fill(~mask.unsqueeze(-1), 0.0) for logits in (ours, theirs))
        unsure, sure = entropy(ours), entropy(theirs)
        seen = Signals(logits=ours)
        loss = target_loss(self.divergence, Signals(logits=theirs), seen, temperature=self.temperature)
        values = self.position_losses(seen, {"jsd": loss}, mask, gradient="backward")["jsd"]
        tokens = PoolSignals(entropy={"student": unsure.detach(), "teacher": sure}, mask=mask)
        return {
            "ranking": self._opened(self._ranking(ours, theirs), self.opener(tokens).chosen, mask),
            "jsd": self.averaged(values * self.surer(tokens).share, mask),
            "entropy": Term(sequence_means(unsure, self.uncertain(tokens).chosen), mask.any(-1)),
        }

    def _opened(self, values: Tensor, opener: Tensor, mask: Tensor) -> Term:
        """Returns the term that averages over openings: one number a sequence, or all their tokens."""
        if self.average == "token_mean":
            return Term(values, opener)
        return Term(sequence_means(values, opener), mask.any(-1))

    def _ranking(self, ours: Tensor, theirs: Tensor) -> Tensor:
        candidates, order = self.ranked(ours, theirs)
        return plackett_luce(ours.gather(-1, candidates), order, reduction="none")
