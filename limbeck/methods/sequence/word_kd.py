"""Word-level KD: the teacher's next-token distributions on given sequences, by any divergence."""

from __future__ import annotations

from limbeck.functional.sequences import sequence_means
from limbeck.functional.sparse_targets import Reading
from limbeck.functional.token_losses import LabelLoss
from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import (
    STUDENT,
    TARGET,
    Average,
    DivergenceChoice,
    SequenceMethod,
    chosen_divergence,
    on_policy_rows,
    target_loss,
)
from limbeck.methods.sequence.token_choice import TokenChoice, chosen_tokens
from limbeck.selection.base import build_selector
from limbeck.signals import Batch, Signals, Term, Terms


@register(
    "word_kd",
    title="Sequence-Level Knowledge Distillation",
    authors="Yoon Kim and Alexander M. Rush",
    paper="1606.07947",
    year=2016,
    family="sequence",
    equation=r"L = (1-\lambda)\,L_{CE} + \lambda\,\frac{1}{M} \sum_t D\big(p(\cdot \mid y_{<t}) \,\|\,"
    r" q(\cdot \mid y_{<t})\big)",
)
class WordKD(SequenceMethod):
    """The student matches the teacher's distribution of the next token at every position of a sequence.

    Forward KL is the classic; any divergence by name serves: ``reverse_kl``, ``jeffreys``, ``jsd``, ``skew_kl``,
    ``skew_rkl``, ``total_variation``, ``alpha_beta``, ``adaptive_kl`` or one registered elsewhere. Where the sequences
    come from (data, teacher, student) is the data's business; with the student's own this is on-policy distillation.

    Terms:
        ce: cross-entropy with the tokens of the data; zero on the student's own sequences.
        kd: divergence of the student's from the teacher's distribution, in nats a token.

    Deviations: codes for language models often log the cross-entropy with the teacher (``cross_entropy``), which has
    the same gradient as forward KL; here the value is zero at equality. They leave the squared temperature out, as is
    the default here.

    Args:
        divergence: name of a divergence, or a dict of its ``name`` and parameters.
        kd_ratio: weight of ``kd``; ``ce`` has the rest.
        temperature: divides both logits.
        scale_by_t2: whether to multiply by the squared temperature.
        sparse: how targets are read of which only the largest classes are known.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
        tokens: a selector of tokens by name, or a dict of its ``name`` and options: ``kd`` is then the mean over the
            tokens that it takes, each with its weight. Where it leaves tokens out, ``token_mean`` is over those of
            the whole batch, which then cannot be split. All tokens when None.
    """

    needs = Needs(student={STUDENT}, teacher={TARGET}, batch={"labels", "mask"})
    optional_entries = frozenset({"on_policy"})

    def __init__(
        self,
        *,
        divergence: DivergenceChoice = "forward_kl",
        kd_ratio: Fraction = 0.5,
        temperature: Positive = 1.0,
        scale_by_t2: bool = False,
        sparse: Reading = "tail",
        average: Average = "token_mean",
        tokens: TokenChoice | None = None,
    ) -> None:
        super().__init__()
        self.divergence = chosen_divergence(divergence)
        self.temperature = temperature
        self.scale_by_t2 = scale_by_t2
        self.sparse = sparse
        self.average = average
        self.tokens = None if tokens is None else build_selector(tokens, "tokens")
        self.weights = {"ce": 1.0 - kd_ratio, "kd": kd_ratio}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and ``kd``."""
        labels, mask = batch["labels"], batch["mask"]
        target = target_loss(
            self.divergence, teacher, student, temperature=self.temperature, scale_by_t2=self.scale_by_t2,
            reading=self.sparse, labels=labels,
        )  # fmt: skip
        gradient = "forward" if self.tokens is None else "backward"
        values = self.position_losses(student, {"ce": LabelLoss(labels), "kd": target}, mask, gradient=gradient)
        ce: Term = self.averaged(values["ce"] * on_policy_rows(batch, mask), mask)
        if self.tokens is None:
            return {"ce": ce, "kd": self.averaged(values["kd"], mask)}
        choice = chosen_tokens(self.tokens, {"student": student, "teacher": teacher}, mask)
        weighted = values["kd"] * choice.share
        if self.average == "sequence_mean":
            return {"ce": ce, "kd": Term(sequence_means(weighted, choice.chosen), mask.bool().any(-1))}
        return {"ce": ce, "kd": Term(weighted, choice.chosen)}
