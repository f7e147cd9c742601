"""USKD: soft labels that the student invents, for the target and for the other classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.errors import NeedsError
from limbeck.functional.classification import cross_entropy
from limbeck.functional.self_labels import (
    left_out_classes,
    nontarget_cross_entropy,
    self_target_loss,
    target_values,
    zipf_labels,
)
from limbeck.functional.tokens import split_tokens
from limbeck.hyperparameters import Fraction, NonNegative
from limbeck.methods.base import Method, Needs, Setup, register
from limbeck.methods.projectors import project
from limbeck.signals import Batch, Signals, Terms


@register(
    "uskd",
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
    "Customized Soft Labels",
    authors="Zhendong Yang and Ailing Zeng and Zhe Li and Tianke Zhang and Chun Yuan and Yu Li",
    paper="2303.13005",
    year=2023,
    family="self",
    equation=r"L = L_{CE} - \alpha P_y \log p_y - \beta \sum_{c \ne y} z_c \log \hat p_c + \mu L_{CE}^{weak},"
    r" \quad P_y = 1 + p_y^2 - \overline{p_y^2}, \quad z_c \propto 1 / \mathrm{rank}_c",
)
class USKD(Method):
    """No teacher: the squared confidence of the student is its soft target, Zipf's law on a ranking gives the rest.

    The ranking of the other classes is made by the student together with a weak classifier on the middle of the
    network, which is trained along and thrown away. With class probabilities as labels (mixup), the two largest are
    targets.

    Terms:
        ce: cross-entropy with the labels.
        target: cross-entropy of the label's class, weighted by the student's own confidence relative to the batch.
        nontarget: cross-entropy with Zipf's distribution over the other classes.
        weak: cross-entropy of the weak classifier with smoothed labels.

    Deviations: the ranking follows the paper; in the authors' code the student's part of it is a ratio of
    log-probabilities (accuracies do not differ). For mixed labels that hold one class only, their code also takes a
    second, arbitrary one out of the ranking's distribution and into the mean confidence of second targets.
    ``released_code`` repeats both. Their 1e-6 in the denominators of the ranking, here ``eps``, is not needed.

    Args:
        alpha: weight of ``target``: 1 for ImageNet, 0.1 for CIFAR-100.
        beta: weight of ``nontarget``.
        mu: weight of ``weak``: 0.005 for ImageNet, 0.1 for CIFAR-100.
        smoothing: part of the mass of the weak classifier's labels that is spread over all classes.
        released_code: whether to rank, and to treat mixed labels of one class, as the authors' code does.
        eps: added to the denominators of the ranking.
    """

    needs = Needs(student={"logits", "features.stages"}, batch={"labels"})
    batch_coupled = True

    def __init__(
        self,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 0.1,
        mu: NonNegative = 0.005,
        smoothing: Fraction = 0.1,
        released_code: bool = False,
        eps: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.released_code = released_code
        self.eps = eps
        self.weak: nn.Module = nn.Identity()
        self.weights = {"ce": 1.0, "target": alpha, "nontarget": beta, "weak": mu}

    def build(self, setup: Setup) -> None:
        """Makes the weak classifier.

        Raises:
            NeedsError: the student has no stage before its last one, or one whose tokens are no square grid.
        """
        said = setup.signals["student"]
        assert said.logits is not None
        middle = _middle(said)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(streams.torch_seed(setup.seed, "head/uskd"))
            self.weak = nn.Linear(middle.shape[1], said.logits.shape[1]).to(middle.device)

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce``, ``target``, ``nontarget`` and ``weak``."""
        assert student.logits is not None
        labels = batch["labels"]
        weak = project(self.weak, _middle(student))
        targets = target_values(labels, student.logits.shape[1])
        left_out = self.left_out(labels, student.logits.shape[1])
        zipf = zipf_labels(student.logits, weak, left_out, eps=self.eps, released_code=self.released_code)
        return {
            "ce": cross_entropy(student.logits, labels, reduction="none"),
            "target": self_target_loss(student.logits, targets, released_code=self.released_code, reduction="none"),
            "nontarget": nontarget_cross_entropy(student.logits, zipf, left_out, reduction="none"),
            "weak": cross_entropy(weak, labels, label_smoothing=self.smoothing, reduction="none"),
        }

    def left_out(self, labels: Tensor, num_classes: int) -> Tensor:
        """Returns ``[B, C]``, positive at the classes that the ranking's distribution leaves out."""
        return (left_out_classes if self.released_code else target_values)(labels, num_classes)


def _middle(student: Signals) -> Tensor:
    """Returns what the weak classifier reads ``[B, D]``: of the last stage but one the mean, or the class token if any.

    Raises:
        NeedsError: there is no such stage, or its tokens are no square grid.
    """
    stages = student.features["stages"]
    if len(stages) < 2:
        raise NeedsError(
            "USKD reads the stage before the last one, but the student has one stage only; name two or more modules, "
            "`roles: {student: {taps: {stages: [...]}}}`"
        )
    middle = stages[-2]
    if middle.dim() == 2:
        return middle
    if middle.dim() == 4:
        return middle.flatten(2).mean(2)
    try:
        places, class_tokens = split_tokens(middle)
    except ValueError as error:
        raise NeedsError(
            f"USKD cannot read the stage before the last one: {error}; name taps that give maps, vectors or tokens of "
            "a square grid, `roles: {student: {taps: {stages: [...]}}}`"
        ) from None
    return class_tokens[:, 0] if class_tokens.shape[1] else places.mean(1)
