"""SimKD: the student reuses the teacher's classifier."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from limbeck.anatomy import Anatomy, anatomy_of, head_of
from limbeck.errors import NeedsError
from limbeck.functional.feature_maps import mean_squared_features, pool_to_smaller
from limbeck.hyperparameters import Count
from limbeck.methods.base import Method, Needs, Setup, register
from limbeck.methods.feature.pairing import feature_maps
from limbeck.methods.projectors import bottleneck, project
from limbeck.signals import Batch, Signals, Terms
from limbeck.taps import untap

_POOLING_TOLERANCE = 2e-2
"""Room for a teacher that runs in bfloat16, relative to the largest pooled feature."""


class ReusedClassifier(nn.Module):
    """Classifies a student's map: pooled to the size it was trained at, projected, averaged, read by a frozen head.

    Args:
        projector: to the teacher's channels.
        head: the teacher's linear classifier; a frozen copy is made.
        size: height and width of the map that is projected.
    """

    def __init__(self, projector: nn.Module, head: nn.Linear, size: tuple[int, int]) -> None:
        super().__init__()
        self.projector = projector
        place = {"device": head.weight.device, "dtype": head.weight.dtype}
        self.head = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, **place)
        self.head.load_state_dict(head.state_dict())
        self.head.requires_grad_(False)
        self.size = size

    def projected(self, features: Tensor) -> Tensor:
        """Returns maps ``[B, C, H, W]`` in the teacher's channels, at the size they were trained at."""
        if features.shape[2:] != self.size:
            features = adaptive_avg_pool2d(features, self.size)
        return project(self.projector, features)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the logits ``[B, classes]`` of maps ``[B, C, H, W]``."""
        return self.head(self.projected(features).mean((2, 3)))


class _Catch:
    """A hook that keeps what a module takes or gives; a copy of its model keeps its own."""

    def __init__(self) -> None:
        self.caught: Any = None

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:
        self.caught = args[0] if output is None else output

    def take(self) -> Tensor:
        caught, self.caught = self.caught, None
        return caught


class ReusedClassifierStudent(nn.Module):
    """The deployable student: a backbone without its own classifier, and the teacher's in its place.

    Args:
        backbone: a student; a copy is made, and its classifier is left out.
        tap: path of the backbone's map, as in :mod:`limbeck.taps`.
        classifier: what reads that map; a copy is made.

    Attributes:
        anatomy: tap paths of the whole.
    """

    def __init__(self, backbone: nn.Module, tap: str, classifier: ReusedClassifier) -> None:
        super().__init__()
        anatomy = anatomy_of(backbone)
        self.backbone = copy.deepcopy(backbone)
        untap(self.backbone)
        if anatomy.head:
            parent, _, name = anatomy.head.rpartition(".")
            setattr(self.backbone.get_submodule(parent), name, nn.Identity())
        self.classifier = copy.deepcopy(classifier)
        self._catch = _Catch()
        path = tap.removesuffix("@in")
        tapped = self.backbone if path in (".", "") else self.backbone.get_submodule(path)
        register = tapped.register_forward_pre_hook if tap.endswith("@in") else tapped.register_forward_hook
        register(self._catch)
        groups = {group: tuple(f"backbone.{p}" for p in paths) for group, paths in anatomy.groups().items()}
        groups["pooled"] = ("classifier.head@in",)
        self.anatomy = Anatomy(**groups, head="classifier.head", norms=tuple(f"backbone.{p}" for p in anatomy.norms))
        self.train(backbone.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the logits ``[B, classes]``."""
        self.backbone(inputs)
        return self.classifier(self._catch.take())


@register(
    "simkd",
    title="Knowledge Distillation with the Reused Teacher Classifier",
    authors="Defang Chen and Jian-Ping Mei and Hailin Zhang and Can Wang and Yan Feng and Chun Chen",
    paper="2203.14001",
    year=2022,
    family="feature",
    equation=r"L = \frac{1}{C H W} \left\| P(f^S) - f^T \right\|_2^2, \quad "
    r"\hat y = W^T \, \overline{P(f^S)} + b^T",
)
class SimKD(Method):
    """The student learns the teacher's last map and is read by the teacher's own classifier, which stays frozen.

    A bottleneck projector carries the student's last map to the teacher's channels; of two sizes the larger map is
    average-pooled to the smaller. No label is used.

    Terms:
        simkd: mean squared difference of the projected and the teacher's last map.

    The deployable student is the backbone, the projector and the teacher's classifier: it has more parameters than the
    bare student, and its own classifier is left out. Deviations: none known.

    Args:
        factor: how many times narrower than the teacher's map the projector's inner maps are.
    """

    needs = Needs(student={"features.stages"}, teacher={"features.stages", "features.pooled"})
    semi_supervised = True
    extends_student = True

    def __init__(self, *, factor: Count = 2) -> None:
        super().__init__()
        self.factor = factor
        self.classifier: nn.Module = nn.Identity()
        self.tap: str | None = None
        self.weights = {"simkd": 1.0}

    def build(self, setup: Setup) -> None:
        """Makes the projector and takes a frozen copy of the teacher's classifier.

        Raises:
            NeedsError: there is no live teacher, or its classifier does not read the average of its last map.
        """
        ours, theirs = feature_maps(setup, "student")[-1], feature_maps(setup, "teacher")[-1]
        head = _linear_head(setup, theirs, type(self).__name__)
        smaller, _ = pool_to_smaller(ours, theirs)
        projector = bottleneck(ours, theirs, factor=self.factor)
        self.classifier = ReusedClassifier(projector, head, (smaller.shape[2], smaller.shape[3])).to(ours.device)
        paths = setup.taps.get("student", {}).get("stages") or anatomy_of(setup.models["student"]).stages
        self.tap = paths[-1]

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``simkd``."""
        ours, theirs = pool_to_smaller(student.feature("stages"), teacher.feature("stages").detach())
        projected = project(self.classifier.get_submodule("projector"), ours)
        return {"simkd": mean_squared_features(projected, theirs, reduction="none")}

    def finish(self, student: nn.Module) -> nn.Module:
        """Returns a copy of the student's backbone with the projector and the teacher's classifier.

        Raises:
            NeedsError: the method was not built.
        """
        if self.tap is None or not isinstance(self.classifier, ReusedClassifier):
            raise NeedsError(f"{type(self).__name__} has no projector yet: call build() with a dry run first")
        return ReusedClassifierStudent(student, self.tap, self.classifier)


def _linear_head(setup: Setup, last_map: Tensor, owner: str) -> nn.Linear:
    """Returns the teacher's classifier after checking that it reads the average of ``last_map``; names ``owner``."""
    teacher = setup.models.get("teacher")
    if teacher is None:
        raise NeedsError(f"{owner} keeps the teacher's classifier, so the teacher must be a live model, not a cache")
    head = head_of(teacher)
    if not isinstance(head, nn.Linear):
        raise NeedsError(f"{owner} needs a linear classifier to reuse, but the teacher's is {type(head).__name__}")
    pooled, average = setup.signals["teacher"].feature("pooled"), last_map.mean((2, 3))
    gap = float("inf") if pooled.shape != average.shape else float((pooled - average).abs().max())
    if not gap <= _POOLING_TOLERANCE * float(pooled.abs().max().clamp(min=torch.finfo(pooled.dtype).tiny)):
        raise NeedsError(
            f"{owner} needs the map whose average the teacher's classifier reads, {head.in_features} channels, but the "
            f"teacher's last tap is another map ({last_map.shape[1]} channels); name the module right before the "
            "global pooling as its last stage, `roles: {teacher: {taps: {stages: [...]}}}`"
        )
    return head
