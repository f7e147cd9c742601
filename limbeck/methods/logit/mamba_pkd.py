"""Mamba-PKD: an ensemble of small students that grows while it learns what is left of the teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import LogitMethod, Setup, register
from limbeck.schedules import Progress
from limbeck.signals import Terms


@register(
    "mamba_pkd",
    title="Mamba base PKD for efficient knowledge compression",
    authors="José Medina and Amnir Hadachi and Paul Honeine and Abdelaziz Bensrhair",
    paper="2503.01727",
    year=2025,
    family="logit",
    equation=r"L_k = \alpha\,L_{CE}(E_k) + (1-\alpha)\,\tau^2\,\mathrm{KL}\big(\mathrm{softmax}(t/\tau) \,\|\,"
    r" \mathrm{softmax}(E_k/\tau)\big), \quad E_k = \sum_{j \le k} z_j",
)
class MambaPKD(LogitMethod):
    """Trains the members of a growing ensemble one after the other, each on what those before it left over.

    The run is divided into as many equal parts as the student has members (``mamba_ensemble``). In part ``k`` the first
    ``k`` members count and only the last is trained. Any first part of the finished ensemble is a model, so accuracy
    can be traded for cost afterwards. For a student that is one network it is ordinary KD.

    Terms:
        ce: cross-entropy of the ensemble so far with the labels.
        kd: KL divergence from the teacher's to the ensemble's softened probabilities, times the squared temperature.

    Deviations: the paper's readable parts do not say how students are combined and weighted; the sum of logits with
    frozen earlier members is what the progressive ensembles do that it builds on (arXiv 2302.10093).

    Args:
        alpha: weight of ``ce``; ``kd`` has the rest.
        temperature: divides both logits before the softmax.
    """

    def __init__(self, *, alpha: Fraction = 0.5, temperature: Positive = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.weights = {"ce": alpha, "kd": 1 - alpha}
        # In a tuple, so that the student is no part of the method's own state.
        self._student: tuple[Any, ...] = ()

    def build(self, setup: Setup) -> None:
        """Lets the first member begin."""
        student: Any = setup.models.get("student")
        self._student = (student,) if hasattr(student, "grow") else ()
        for ensemble in self._student:
            ensemble.grow(1)

    def after_step(self, progress: Progress) -> None:
        """Lets the next member join when its part of the run begins."""
        for ensemble in self._student:
            count = len(ensemble.members)
            ensemble.grow(min(int(progress.fraction * count) + 1, count))

    def distill(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
        """Returns ``kd``."""
        return {"kd": kl(student_logits, teacher_logits, temperature=self.temperature, reduction="none")}
