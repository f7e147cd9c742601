"""Swing distillation: hotter and noisier targets where the teacher may tell a secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.functional.log_divergences import forward_kl
from limbeck.functional.privacy import swing_target
from limbeck.functional.sequences import spread_hits
from limbeck.functional.token_losses import Rule, Scores, TargetLogits, Targets, TokenLoss, rows_of
from limbeck.hyperparameters import Fraction, NonNegative, Positive
from limbeck.methods.base import Needs, Setup, register
from limbeck.methods.sequence.base import DENSE_TARGET, STUDENT, Average, SequenceMethod, logits_by_rows, vocabulary_of
from limbeck.signals import Batch, Signals, Terms
from limbeck.streams import torch_seed


@dataclass(frozen=True)
class SwingRule(Rule):
    """Forward KL from softened and disturbed targets.

    Attributes:
        floor: least probability of a disturbed target.
        shared: whether the student is softened like the teacher, or by the lowest temperature only.
        lowest: that temperature.
    """

    floor: float
    shared: bool
    lowest: float

    def values(self, scores: Scores, *targets: Tensor) -> Tensor:
        """Returns ``[n]`` losses from logits, temperatures, scores and, where there is some, noise."""
        logits, temperature, score = (t.to(scores.logits.dtype) for t in targets[:3])
        noise = targets[3].to(scores.logits.dtype) if len(targets) > 3 else None
        target = swing_target(logits, temperature, score, noise, floor=self.floor)
        own = temperature.unsqueeze(-1) if self.shared else self.lowest
        return forward_kl(target.log(), (scores.logits / own).log_softmax(-1)).sum(-1)


@dataclass(frozen=True)
class SwingLoss(TokenLoss):
    """The loss of positions with temperatures of their own.

    Attributes:
        rule: how they are compared.
        logits_of: gives the teacher's logits of rows.
        temperature: ``[B, T]``.
        score: ``[B, T]``.
        noise: ``[B, T, V]``, or None.
    """

    rule: SwingRule
    logits_of: TargetLogits
    temperature: Tensor
    score: Tensor
    noise: Tensor | None

    def targets(self, rows: Tensor | slice) -> Targets:
        """Returns logits, temperatures, scores and noise of rows."""
        with torch.no_grad():
            logits = self.logits_of(rows)
        found = (logits, rows_of(self.temperature, rows, 0), rows_of(self.score, rows, 0))
        return found if self.noise is None else (*found, rows_of(self.noise, rows))

    @property
    def leading(self) -> torch.Size:
        """Shape of the positions."""
        return self.temperature.shape


@register(
    "swing",
    title="Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework",
    authors="Junzhuo Li and Xinwei Wu and Weilong Dong and Shuangzhi Wu and Chao Bian and Deyi Xiong",
    paper="2212.08349",
    year=2022,
    family="sequence",
    equation=r"L = \frac{1}{M} \sum_t \mathrm{KL}\big(\mathrm{norm}(\mathrm{softmax}(z^T_t / T_t) + s_t n_t) \,\|\,"
    r" \mathrm{softmax}(z^S_t / T_t)\big), \qquad T_t = T_{\min} + (T_{\max} - T_{\min})\,s_t",
)
class Swing(SequenceMethod):
    """Raises the temperature and adds noise at tokens that are likely to be private, and at their neighbours.

    The batch says where a detector found something private: ``privacy_hits`` ``[B, T]`` in [0, 1], aligned with the
    labels.

    Terms:
        kd: forward KL from the softened, disturbed target at each token.

    Deviations: neither code nor formulas are public; these follow the published abstract. There is no cross-entropy
    with the labels, which would teach the secrets, and no squared temperature, which would give private tokens the
    largest weight. Noise depends on sample and token only, for noise drawn anew each epoch averages out. None of this
    is a formal guarantee of differential privacy.

    Args:
        lowest: temperature of tokens that are not private.
        highest: temperature of tokens that are.
        decay: how much of a hit its neighbour at distance one shares.
        noise: kind of noise; ``none`` for none.
        noise_scale: its scale, the sensitivity divided by the privacy budget.
        floor: least probability of a disturbed target.
        student_temperature: ``shared`` with the teacher, or the ``lowest``, which protects more.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={DENSE_TARGET}, batch={"labels", "mask", "privacy_hits"})

    def __init__(
        self,
        *,
        lowest: Positive = 1.0,
        highest: Positive = 8.0,
        decay: Fraction = 0.5,
        noise: Literal["laplace", "gaussian", "none"] = "laplace",
        noise_scale: NonNegative = 0.05,
        floor: Positive = 1e-6,
        student_temperature: Literal["shared", "lowest"] = "shared",
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        if lowest > highest:
            raise RecipeError(f"method 'swing': 'lowest' = {lowest} should not be above 'highest' = {highest}")
        self.lowest, self.highest, self.decay = lowest, highest, decay
        self.kind, self.noise_scale = noise, noise_scale
        self.rule = SwingRule(floor, student_temperature == "shared", lowest)
        self.average = average
        self.weights = {"kd": 1.0}
        self._seed = 0

    def build(self, setup: Setup) -> None:
        """Takes the run's seed for the noise."""
        self._seed = setup.seed

    def temperatures(self, score: Tensor) -> Tensor:
        """Returns the temperature of each token."""
        return self.lowest + (self.highest - self.lowest) * score

    def noise(self, batch: Batch, score: Tensor, classes: int) -> Tensor | None:
        """Returns ``[B, T, classes]`` noise that depends on sample and token only; None where there is to be none."""
        if self.kind == "none" or self.noise_scale == 0.0:
            return None
        found = torch.zeros(*score.shape, classes, dtype=score.dtype, device=score.device)
        for row, index in enumerate(batch["index"].tolist()):
            private = (score[row] > 0).nonzero().squeeze(-1).tolist()
            for position in private:
                seed = torch_seed(self._seed, f"swing/{position}", 0, index)
                generator = torch.Generator().manual_seed(seed)
                found[row, position] = self._drawn(classes, generator).to(found)
        return found * self.noise_scale

    def _drawn(self, classes: int, generator: torch.Generator) -> Tensor:
        if self.kind == "gaussian":
            return torch.randn(classes, generator=generator, dtype=torch.float64)
        uniform = torch.rand(classes, generator=generator, dtype=torch.float64) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs())

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd``."""
        logits_of, _ = logits_by_rows(teacher, "teacher")
        mask = batch["mask"]
        score = spread_hits(batch["privacy_hits"], decay=self.decay)
        classes = vocabulary_of(teacher) or 0
        loss = SwingLoss(self.rule, logits_of, self.temperatures(score), score, self.noise(batch, score, classes))
        values = self.position_losses(student, {"kd": loss}, mask)
        return {"kd": self.averaged(values["kd"], mask)}
