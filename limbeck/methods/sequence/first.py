"""FIRST: the few likeliest tokens of a calibrated teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.functional.log_divergences import forward_kl
from limbeck.functional.sparse_targets import top_k
from limbeck.functional.token_losses import Rule, Scores, Targets, TokenLoss, rows_of
from limbeck.hyperparameters import Count, Fraction, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, Average, SequenceMethod, whole_logits
from limbeck.signals import Batch, Signals, Terms

Calibration = Literal["none", "label_smoothing", "probability_temperature", "logit_temperature"]

_FLOOR = 1e-6
"""Least probability after smoothing, which the first class may not survive where it has less than it should lose."""


def calibrated(
    logprobs: Tensor, calibration: Calibration, *, temperature: float, smoothing: float, eps: float
) -> Tensor:
    """Returns the probabilities of the kept classes after calibration, which sum to one.

    Args:
        logprobs: ``[..., k]`` in decreasing order, of the whole vocabulary's softmax.
        calibration: ``none`` scales them up to one; ``label_smoothing`` takes ``smoothing`` from the first and spreads
            it over the others; ``probability_temperature`` is ``softmax(p / temperature)``, of probabilities;
            ``logit_temperature`` the ordinary ``softmax(log p / temperature)``.
        temperature: of either kind.
        smoothing: mass that the first class loses.
        eps: added to probabilities that are neither smoothed nor softened, before they are scaled.
    """
    p = logprobs.exp()
    if calibration == "probability_temperature":
        return (p / temperature).softmax(-1)
    if calibration == "logit_temperature":
        return (logprobs / temperature).softmax(-1)
    if calibration == "label_smoothing":
        change = torch.full_like(p, smoothing / max(p.shape[-1] - 1, 1))
        change[..., 0] = -smoothing if p.shape[-1] > 1 else 0.0
        p = (p + change).clamp(min=_FLOOR)
        return p / p.sum(-1, keepdim=True)
    return (p + eps) / (p + eps).sum(-1, keepdim=True)


@dataclass(frozen=True)
class KeptRule(Rule):
    """Forward KL within the kept classes; the student's side is scaled up to one there.

    Attributes:
        side: how: ``linear`` adds ``eps`` to probabilities and divides by their sum, ``softmax`` takes the softmax of
            probabilities, ``conditional`` that of their logarithms.
        eps: see above.
    """

    side: Literal["linear", "softmax", "conditional"]
    eps: float = 0.0

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` divergences from probabilities ``[n, k]`` of classes ``[n, k]``."""
        target, indices = targets
        kept = scores.log_probabilities().gather(-1, indices)
        if self.side == "softmax":
            log_q = kept.exp().log_softmax(-1)
        elif self.side == "conditional" or self.eps == 0.0:
            log_q = kept.log_softmax(-1)
        else:
            raised = kept.exp() + self.eps
            log_q = raised.log() - raised.sum(-1, keepdim=True).log()
        return forward_kl(target.log(), log_q).sum(-1)


@dataclass(frozen=True)
class KeptLoss(TokenLoss):
    """The loss of positions against calibrated probabilities of a few classes.

    Attributes:
        rule: how the student is compared.
        probabilities: ``[..., k]``.
        indices: ``[..., k]``.
    """

    rule: KeptRule
    probabilities: Tensor
    indices: Tensor

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns probabilities and classes of rows."""
        return rows_of(self.probabilities, rows), rows_of(self.indices, rows)

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.probabilities.shape[:-1]


@register(
    "first",
    title="FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy Distillation",
    authors="KaShun Shum and Minrui Xu and Jianshu Zhang and Zixin Chen and Shizhe Diao and Hanze Dong and"
    " Jipeng Zhang and Muhammad Omer Raza",
    paper="2408.12168",
    year=2024,
    family="sequence",
    equation=r"L = \frac{1}{M} \sum_t \sum_{i \in \mathrm{top}_k} \tilde p_i \log\frac{\tilde p_i}{\tilde q_i},"
    r" \qquad \tilde p = \mathrm{softmax}(p_{\mathrm{top}_k} / c)",
)
class FIRST(SequenceMethod):
    """The teacher's few likeliest tokens, recalibrated on validation data, are all that is stored and matched.

    Terms:
        kd: forward KL within the kept tokens, each side scaled to one.

    What the student gives to other tokens costs nothing: word-level KD with the ``tail`` reading does not have that
    weakness. Deviations: the authors' code sums over the tokens of a sequence; here terms are means over tokens. Its
    label smoothing works on log-probabilities, which is taken for a slip.

    Args:
        k: number of tokens kept; that of the cache if there is one.
        calibration: see :func:`calibrated`. The paper's is ``probability_temperature``, whose confidence has a ceiling;
            ``logit_temperature`` suits a confident teacher better.
        temperature: of the calibration.
        smoothing: of the calibration.
        eps: added to probabilities of both sides before they are scaled linearly.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={"hidden|logits|topk"}, batch={"labels", "mask"})

    def __init__(
        self,
        *,
        k: Count = 5,
        calibration: Calibration = "probability_temperature",
        temperature: Positive = 0.3,
        smoothing: Fraction = 0.1,
        eps: Fraction = 1e-6,
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.k = k
        self.calibration: Calibration = calibration
        self.temperature, self.smoothing, self.eps = temperature, smoothing, eps
        self.average = average
        side = {"probability_temperature": "softmax", "logit_temperature": "conditional"}.get(calibration, "linear")
        self.rule = KeptRule(side, eps)  # type: ignore[arg-type]
        self.weights = {"kd": 1.0}

    def kept(self, teacher: Signals) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities and classes ``[B, T, k]`` of the teacher's likeliest tokens."""
        if teacher.topk is not None:
            return teacher.topk.logprobs.detach()[..., : self.k], teacher.topk.indices[..., : self.k]
        with torch.no_grad():
            logits = whole_logits(teacher, "teacher")
            found = top_k(logits, min(self.k, logits.shape[-1]))
        return found.logprobs, found.indices

    def target(self, logprobs: Tensor) -> Tensor:
        """Returns the calibrated probabilities of kept tokens."""
        return calibrated(
            logprobs, self.calibration, temperature=self.temperature, smoothing=self.smoothing, eps=self.eps
        )

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd``."""
        logprobs, indices = self.kept(teacher)
        losses = {"kd": KeptLoss(self.rule, self.target(logprobs), indices)}
        values = self.position_losses(student, losses, batch["mask"])
        return {"kd": self.averaged(values["kd"], batch["mask"])}
