"""ReviewKD: distilling knowledge via knowledge review."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from limbeck.functional.feature_maps import hierarchical_context
from limbeck.hyperparameters import Count, NonNegative
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.feature.pairing import paired_maps
from limbeck.schedules import Warmup
from limbeck.signals import Batch, Signals, Terms

_MOST_MID_CHANNELS = 512


class AttentionFusion(nn.Module):
    """Fuses a student's map with what came from the deeper level, and predicts the teacher's map from it.

    Args:
        student: ``[B, Cs, H, W]`` from a dry run; only its shape and device are used.
        teacher: ``[B, Ct, H', W']``, likewise.
        mid_channels: channels of the fused map.
        deepest: whether there is nothing deeper to fuse with.
    """

    def __init__(self, student: Tensor, teacher: Tensor, mid_channels: int, *, deepest: bool) -> None:
        super().__init__()
        self.size = (teacher.shape[2], teacher.shape[3])
        self.entry = nn.Sequential(
            nn.Conv2d(student.shape[1], mid_channels, 1, bias=False), nn.BatchNorm2d(mid_channels)
        )
        self.exit = nn.Sequential(
            nn.Conv2d(mid_channels, teacher.shape[1], 3, padding=1, bias=False), nn.BatchNorm2d(teacher.shape[1])
        )
        self.gate = None if deepest else nn.Conv2d(2 * mid_channels, 2, 1)
        for convolution in (self.entry[0], self.exit[0]):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.to(student.device)

    def forward(self, features: Tensor, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the predicted teacher map and the fused map, which the next shallower level receives."""
        fused = self.entry(features)
        if self.gate is not None and deeper is not None:
            deeper = interpolate(deeper, fused.shape[2:], mode="nearest")
            gates = torch.sigmoid(self.gate(torch.cat([fused, deeper], 1)))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        if fused.shape[2:] != self.size:
            fused = interpolate(fused, self.size, mode="nearest")
        return self.exit(fused), fused


@register(
    "reviewkd",
    title="Distilling Knowledge via Knowledge Review",
    authors="Pengguang Chen and Shu Liu and Hengshuang Zhao and Jiaya Jia",
    paper="2104.09044",
    year=2021,
    family="feature",
    equation=r"L = L_{CE} + \beta \sum_k \mathrm{HCL}\big(o_k, f^T_k\big), \quad "
    r"(o_k, r_k) = \mathrm{ABF}_k(f^S_k, r_{k+1})",
)
class ReviewKD(FeatureMethod):
    """Every level of the teacher is taught by the student's same and all deeper levels.

    From the pooled vector (a 1x1 map) to the shallowest stage, attention-based fusion (ABF) joins the student's map
    with the fused map of the deeper level and predicts the teacher's map before its activation; predictions are
    compared by the hierarchical context loss (HCL). The fusions are trained with the student and dropped afterwards.

    Terms:
        ce: cross-entropy with the labels.
        review: hierarchical context loss, summed over the levels.

    Deviations: the channels and sizes that the authors' configuration lists come from a dry run.

    Args:
        weight: weight of ``review`` after the warm-up; the paper's lie between 1 and 8 by pair.
        warmup_epochs: epochs in which the weight grows linearly; when None, 20 of 240, or the same part of the run.
        mid_channels: channels of the fused maps; those of the student's pooled vector, at most 512, when None.
        student_preact: whether the student's maps too are taken before their activation.
        pools: sizes that the hierarchical context loss pools maps to, from large to small.
    """

    needs = Needs(
        student={"logits", "features.stages", "features.pooled"},
        teacher={"features.preacts", "features.pooled"},
        batch={"labels"},
    )
    semi_supervised = True

    def __init__(
        self,
        *,
        weight: NonNegative = 5.0,
        warmup_epochs: NonNegative | None = None,
        mid_channels: Count | None = None,
        student_preact: bool = False,
        pools: tuple[Count, ...] = (4, 2, 1),
    ) -> None:
        super().__init__()
        self.mid_channels = mid_channels
        self.student_group = "preacts" if student_preact else "stages"
        if student_preact:
            student = {"logits", "features.preacts", "features.pooled"}
            self.needs = Needs(student=student, teacher=student - {"logits"}, batch={"labels"})
        self.pools = pools
        self.fusions = nn.ModuleList()
        self.weights = {"ce": 1.0, "review": Warmup(weight, warmup_epochs)}

    def build(self, setup: Setup) -> None:
        """Makes a fusion for each stage and for the pooled vector, from shallow to deep."""
        pairs = paired_maps(setup, self.student_group, "preacts")
        pooled = _as_map(setup.signals["student"]), _as_map(setup.signals["teacher"])
        mid = self.mid_channels or min(pooled[0].shape[1], _MOST_MID_CHANNELS)
        stages = [AttentionFusion(*pair, mid, deepest=False) for pair in pairs]
        self.fusions = nn.ModuleList([*stages, AttentionFusion(*pooled, mid, deepest=True)])

    def review(self, student: Signals) -> list[Tensor]:
        """Returns the predicted teacher maps, from shallow to deep."""
        levels = [*student.features[self.student_group], _as_map(student)]
        predicted: list[Tensor] = []
        deeper = None
        for fusion, features in zip(reversed(self.fusions), reversed(levels)):
            dtype = next(fusion.parameters()).dtype
            output, deeper = fusion(features.to(dtype), deeper)
            predicted.insert(0, output)
        return predicted

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``review``."""
        targets = [*teacher.features["preacts"], _as_map(teacher)]
        losses = [
            hierarchical_context(ours, theirs, pools=self.pools, reduction="none")
            for ours, theirs in zip(self.review(student), targets)
        ]
        return {"review": torch.stack(losses).sum(0)}


def _as_map(signals: Signals) -> Tensor:
    """Returns the pooled vector as a map of one position."""
    return signals.feature("pooled").flatten(1)[:, :, None, None]
