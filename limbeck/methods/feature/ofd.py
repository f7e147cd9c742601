"""OFD: a comprehensive overhaul of feature distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.anatomy import anatomy_of
from limbeck.errors import NeedsError
from limbeck.functional.activation_boundaries import negative_part_mean, partial_distance
from limbeck.hyperparameters import Count
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.feature.pairing import paired_maps
from limbeck.methods.projectors import connector, project
from limbeck.signals import Batch, Signals, Terms


@register(
    "ofd",
    title="A Comprehensive Overhaul of Feature Distillation",
    authors="Byeongho Heo and Jeesoo Kim and Sangdoo Yun and Hyojin Park and Nojun Kwak and Jin Young Choi",
    paper="1904.01866",
    year=2019,
    family="feature",
    equation=r"L = L_{CE} + \beta \sum_{k=1}^{n} 2^{-(n-k)} \sum_{chw} d\big(r_k(f^S_k), \max(f^T_k, m_k)\big)_{chw}, "
    r"\quad d(s, t) = \begin{cases} 0 & s \le t \le 0 \\ (s-t)^2 & \text{otherwise} \end{cases}",
)
class OFD(FeatureMethod):
    """Maps before the activation are matched, but not where teacher and student agree that a neuron is silent.

    The teacher's negative responses are raised to a margin, the expected value of each channel's negative part; the
    student's map passes a connector (convolution and batch normalisation) that is dropped after training. Teacher
    maps are average-pooled to the student's size.

    Terms:
        ce: cross-entropy with the labels.
        ofd: partial squared distance, a sum over channels and positions; stage k of n counts 2^-(n-k).

    The teacher's batch normalisation uses the statistics of the batch, as in the authors' code; its running
    statistics do not move. Deviations: margins are kept in the precision of the teacher's weights (authors: float32),
    and channels without spread, where the authors' code divides by zero, get the margin min(mean, 0).

    Args:
        kernel_size: width of the connectors' convolution.
        margins: ``norm`` computes them from the teacher's last batch normalisations and needs the live teacher;
            ``measured`` averages the negative responses over one pass through the training data, for teachers without
            such normalisations or from a cache.
    """

    needs = Needs(student={"logits", "features.preacts"}, teacher={"features.preacts"}, batch={"labels"})
    semi_supervised = True
    batch_statistics = ("teacher",)

    def __init__(self, *, kernel_size: Count = 1, margins: Literal["norm", "measured"] = "norm") -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.margin_source = margins
        self.connectors = nn.ModuleList()
        self.weights = {"ce": 1.0, "ofd": 1e-3}

    def build(self, setup: Setup) -> None:
        """Makes the connectors and the margins."""
        pairs = paired_maps(setup, "preacts", "preacts")
        self.connectors = nn.ModuleList(connector(*pair, kernel_size=self.kernel_size) for pair in pairs)
        maps = [theirs for _, theirs in pairs]
        measured = self.margin_source == "measured"
        margins = [theirs.new_zeros(theirs.shape[1]) for theirs in maps] if measured else _norm_margins(setup, maps)
        self._keep(margins)

    def prepare(self, observe_all: Callable[[], Iterator[tuple[Batch, dict[str, Signals]]]]) -> None:
        """Measures the margins over the training data, where asked to."""
        if self.margin_source == "norm":
            return
        sums = [torch.zeros_like(margin, dtype=torch.float64) for margin in self.margins()]
        counts = [torch.zeros_like(total) for total in sums]
        for _, signals in observe_all():
            for total, count, tensor in zip(sums, counts, signals["teacher"].features["preacts"]):
                negative = tensor.double().clamp(max=0)
                total += negative.sum((0, 2, 3))
                count += (negative < 0).sum((0, 2, 3))
        self._keep([(total / count.clamp(min=1)).to(m) for total, count, m in zip(sums, counts, self.margins())])

    def _keep(self, margins: list[Tensor]) -> None:
        for number, margin in enumerate(margins):
            self.register_buffer(f"margin_{number}", margin)

    def margins(self) -> list[Tensor]:
        """The margin of each channel, ``[C]`` a stage."""
        return [self.get_buffer(f"margin_{number}") for number in range(len(self.connectors))]

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ofd``."""
        stages = zip(self.connectors, student.features["preacts"], teacher.features["preacts"], self.margins())
        losses = [
            partial_distance(project(connect, ours), theirs, margin, reduction="none")
            for connect, ours, theirs, margin in stages
        ]
        halvings = reversed(range(len(losses)))
        return {"ofd": torch.stack([loss / 2**times for loss, times in zip(losses, halvings)]).sum(0)}


def _norm_margins(setup: Setup, maps: list[Tensor]) -> list[Tensor]:
    """Returns the margin of each channel from the normalisations that the teacher's anatomy names.

    Raises:
        NeedsError: there is no live teacher, or its normalisations do not belong to the maps.
    """
    fix = "set `margins: measured`"
    teacher = setup.models.get("teacher")
    if teacher is None:
        raise NeedsError(
            f"OFD reads its margins from the live teacher's batch normalisations, and there is none; {fix}"
        )
    anatomy = anatomy_of(teacher)
    known = dict(zip(anatomy.preacts, anatomy.norms))
    taps = setup.taps.get("teacher", {}).get("preacts", anatomy.preacts)
    # Taps of a recipe may leave out some of the maps that the anatomy names.
    paths = [known[tap] for tap in taps] if known.keys() >= set(taps) > set() else list(anatomy.norms)
    if len(paths) != len(maps):
        raise NeedsError(
            f"OFD needs the normalisation before each of the teacher's {len(maps)} tapped maps, but the anatomy of "
            f"{type(teacher).__name__} names {len(paths)} (`norms`); name as many, or {fix}"
        )
    margins = []
    for path, tensor in zip(paths, maps):
        norm = teacher.get_submodule(path)
        scale, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
        fits = all(isinstance(p, Tensor) and p.shape == tensor.shape[1:2] for p in (scale, shift))
        if not fits or scale is None or shift is None:
            raise NeedsError(
                f"'{path}' of the teacher has no scale and shift for the {tensor.shape[1]} channels of its map; {fix}"
            )
        margins.append(negative_part_mean(shift.detach(), scale.detach()))
    return margins
