"""TGeo-KD: a small network learns, on held-out data, how much each sample should listen to the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from limbeck.functional.classification import class_indices, cross_entropy
from limbeck.functional.divergences import kl
from limbeck.functional.trilateral import trilateral_features
from limbeck.hyperparameters import Positive
from limbeck.methods.base import Method, Needs, Observed, Observers, Setup, register
from limbeck.methods.class_means import class_means
from limbeck.signals import Batch, Signals, Terms

_AHEAD = "lookahead"


@register(
    "tgeo_kd",
    title="Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation",
    authors="Chengming Hu and Haolun Wu and Xuan Li and Chen Ma and Xi Chen and Jun Yan and Boyu Wang and Xue Liu",
    paper="2312.15112",
    year=2024,
    family="logit",
    equation=r"\min_\omega L_{CE}^{val}\big(\theta - \eta \nabla_\theta L(\theta, \omega)\big),"
    r" \quad L = \alpha_\omega\,T^2\,\mathrm{KL}(p^T \| p^S) + (1 - \alpha_\omega)\,L_{CE}",
)
class TGeoKD(Method):
    """Each sample's share of distillation is learned from how student, teacher, class mean and label lie to each other.

    A controller of three layers reads these probabilities and the squared edges between them and gives the share
    alpha. The student learns with alpha as it is. The controller learns from held-out samples: it lowers the loss that
    the student would have on them after one step of gradient descent on this batch, by differentiating through the
    step. Held-out samples never enter the student's own loss. The controller is left out of the deployed student. A
    step costs a further pass of the student and a second derivative.

    Terms:
        kd: alpha times the KL divergence from the teacher's tempered probabilities to the student's.
        ce: one minus alpha, times the cross-entropy with the labels.
        held_out: the controller's: cross-entropy of held-out samples after a step ahead.

    The controller is a player of its own with Adam; ``train: {players: {controller: {lr: ...}}}`` sets it otherwise.

    Deviations: the paper leaves open how the bilevel problem is solved; here one unrolled step of plain gradient
    descent, at every step of training. In the authors' script no gradient reaches the controller, which stays as it was
    initialised, and the cross-entropy is taken of probabilities in place of logits; here it follows the equations.

    Args:
        temperature: divides both logits in ``kd``; the divergence is multiplied by its square.
        step_size: length of the step ahead; about the student's learning rate or larger.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={"labels"}, holdout="batches")
    batch_coupled = True
    second_order = True
    optimizers: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "controller": {"optimizer": "adam", "lr": 0.005, "weight_decay": 0.0, "schedule": "constant"}
    }
    class_probabilities: Tensor

    def __init__(self, *, temperature: Positive = 4.0, step_size: Positive = 0.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.step_size = step_size
        self.weights = {"kd": 1.0, "ce": 1.0, "held_out": 1.0}

    def build(self, setup: Setup) -> None:
        """Makes the controller and room for the teacher's mean probabilities of each class."""
        logits = setup.signals["teacher"].logits
        assert logits is not None
        classes = logits.shape[1]
        self.controller = nn.Sequential(
            nn.Linear(9 * classes, 32), nn.LeakyReLU(), nn.Linear(32, 16), nn.LeakyReLU(), nn.Linear(16, 1)
        ).to(logits.device)
        self.register_buffer("class_probabilities", torch.full((classes, classes), 1 / classes, device=logits.device))

    def prepare(self, observe_all: Callable[[], Observed]) -> None:
        """Averages the teacher's probabilities over each class of the training data."""

        def probabilities(signals: dict[str, Signals]) -> Tensor:
            logits = signals["teacher"].logits
            assert logits is not None
            return torch.softmax(logits.double(), -1)

        self.class_probabilities.copy_(class_means(observe_all(), probabilities, len(self.class_probabilities)))

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Runs both roles, and the student on the held-out batch as it would be after a step on this one."""
        training = torch.is_grad_enabled()
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if training else nullcontext():
            said = super().observe(batch, observers)
            student, held_out = said["student"], batch["holdout"]
            if training:
                losses = self._lower(batch, student, said["teacher"])
                look: Any = observers["student"]
                ahead = look.lookahead(held_out, losses["kd"] + losses["ce"], self.step_size)
            else:
                ahead = observers["student"](held_out)
        return {**said, "student": replace(student, views={**student.views, _AHEAD: Signals(logits=ahead.logits)})}

    def alpha(self, batch: Batch, student: Signals, teacher: Signals) -> Tensor:
        """Returns each sample's share of distillation ``[B]``, in (0, 1)."""
        assert student.logits is not None
        assert teacher.logits is not None
        labels = class_indices(batch["labels"])
        seen = trilateral_features(student.logits, teacher.logits, self.class_probabilities, labels)
        share: Tensor = self.controller(seen.to(self.class_probabilities.dtype))
        return torch.sigmoid(share).squeeze(-1)

    def _lower(self, batch: Batch, student: Signals, teacher: Signals) -> dict[str, Tensor]:
        """The student's losses ``[B]``, with a graph to the controller."""
        assert student.logits is not None
        assert teacher.logits is not None
        alpha = self.alpha(batch, student, teacher)
        distilled = kl(student.logits, teacher.logits, temperature=self.temperature, reduction="none")
        labelled = cross_entropy(student.logits, batch["labels"], reduction="none")
        return {"kd": alpha * distilled, "ce": (1 - alpha) * labelled}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd``, ``ce`` and ``held_out``."""
        ahead = student.views[_AHEAD].logits
        assert ahead is not None
        held_out = cross_entropy(ahead, batch["holdout"]["labels"])
        return {**self._lower(batch, student, teacher), "held_out": held_out}

    def players(self, learners: Mapping[str, nn.Module]) -> dict[str, tuple[list[nn.Parameter], frozenset[str] | None]]:
        """Returns the student, which minimises its own two terms, and the controller, which minimises the third."""
        return {
            "student": ([p for p in learners["student"].parameters() if p.requires_grad], frozenset({"kd", "ce"})),
            "controller": (list(self.parameters()), frozenset({"held_out"})),
        }
