"""ULD: the sorted probabilities of two models, whatever their tokenizers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.sorted_probabilities import SortedLoss, SortedRule, SortedTopLoss, SortedTopRule
from limbeck.functional.token_losses import LabelLoss, TokenLoss
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, Average, SequenceMethod, on_policy_rows
from limbeck.methods.sequence.text_pair import ENTRIES, TextPair, partner_logits, partner_places, text_pair
from limbeck.signals import Batch, Signals, Term, Terms


@register(
    "uld",
    title="Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    authors="Nicolas Boizard and Kevin El Haddad and Céline Hudelot and Pierre Colombo",
    paper="2402.12030",
    year=2024,
    family="sequence",
    equation=r"L = \mathrm{CE} + \lambda\,\frac{1}{N} \sum_n \sum_i \big|p_{n,(i)} - q_{n,(i)}\big|",
)
class ULD(SequenceMethod):
    """Matches the shape of the teacher's next-token distribution: its probabilities from the largest to the smallest.

    It needs no common token. The distance is in [0, 2] and does not see which token is how likely, so it is a weak
    signal beside the cross-entropy. Of a server or a cache that tells the largest probabilities alone, the others count
    as one sum, which bounds the distance from below.

    Terms:
        ce: negative log-probability of the data's next token; not of tokens that the student wrote itself.
        uld: distance of the sorted probabilities.

    Deviations: the authors compare the n-th token of the answer with the n-th, up to the end of the shorter side
    (``alignment: order``), which after the first difference in cutting compares predictions after different texts. Here
    both have read the same text, up to a boundary that both tokenizers have. The authors average over answers
    (``average: sequence_mean``) but the cross-entropy over tokens, which it does here in any case.

    Args:
        distill: weight of ``uld``.
        alignment: ``boundaries`` of both tokenisations, or ``order`` of tokens.
        student_temperature: divides the student's logits in ``uld``.
        teacher_temperature: divides the teacher's logits.
        skip_student_end: leave out each sequence's last token, with ``alignment: order``.
        skip_teacher_end: likewise of the teacher.
        average: ``token_mean`` over all compared places of the batch, or ``sequence_mean`` over sequences of theirs.
    """

    needs = Needs(student={STUDENT}, teacher={"hidden|logits|topk"}, batch={"labels", "mask"})
    optional_entries = ENTRIES | {"on_policy"}

    def __init__(
        self,
        *,
        distill: NonNegative = 1.5,
        alignment: Literal["boundaries", "order"] = "boundaries",
        student_temperature: Positive = 1.0,
        teacher_temperature: Positive = 1.0,
        skip_student_end: bool = False,
        skip_teacher_end: bool = False,
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.alignment = alignment
        self.skip_student_end, self.skip_teacher_end = skip_student_end, skip_teacher_end
        self.rule = SortedRule(student_temperature, teacher_temperature)
        self.average = average
        self.weights = {"ce": 1.0, "uld": distill}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and ``uld``."""
        pair = self._paired(text_pair(batch))
        compared, partner = pair.beginnings()
        loss = self._loss(teacher, partner)
        values = self.position_losses(student, {"uld": loss}, compared)["uld"]
        given = on_policy_rows(batch, pair.mask)
        tokens = self.position_losses(student, {"ce": LabelLoss(pair.labels)}, given)["ce"]
        return {"ce": Term(tokens, pair.mask), "uld": self.averaged(values, compared)}

    def _loss(self, teacher: Signals, partner: Tensor) -> TokenLoss:
        if teacher.topk is None:
            return SortedLoss(partner_logits(teacher, partner), partner.shape, self.rule)
        if self.rule.target_temperature != 1.0:
            raise NeedsError(
                f"teacher_temperature = {self.rule.target_temperature}, but the teacher's largest probabilities are "
                "those at 1 and the others are not known; set it to 1, or use a live teacher"
            )
        kept = teacher.topk
        places = partner_places(partner, kept.tail.shape[-1])
        return SortedTopLoss(kept.logprobs, kept.tail, places, SortedTopRule(self.rule.temperature))

    def _paired(self, pair: TextPair) -> TextPair:
        if self.alignment == "boundaries":
            return pair
        return pair.in_order(skip_student_end=self.skip_student_end, skip_teacher_end=self.skip_teacher_end)
