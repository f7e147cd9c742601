"""FSP: the flow of the solution procedure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.feature_maps import flow_matrix, mean_squared_features
from limbeck.hyperparameters import Fraction
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.feature.pairing import paired_maps
from limbeck.schedules import During
from limbeck.signals import Batch, Signals, Terms


@register(
    "fsp",
    title="A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning",
    authors="Junho Yim and Donggyu Joo and Jihoon Bae and Junmo Kim",
    paper="https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html",
    year=2017,
    family="feature",
    equation=r"L = \beta \sum_k \frac{1}{C_k C_{k+1}} \left\| G^S_k - G^T_k \right\|_F^2 \text{ first, then } L_{CE}, "
    r"\quad G_k = \frac{1}{HW} f_{k+1} f_k^\top",
)
class FSP(FeatureMethod):
    """The student first learns how features flow from layer to layer in the teacher, then the task.

    The flow between two neighbouring taps is the Gram matrix of their channels. The paper uses it to initialise: for
    the first part of the run only the flow counts, for the rest only the labels.

    Terms:
        ce: cross-entropy with the labels.
        fsp: mean squared difference of the flow matrices, summed over neighbouring taps.

    Student and teacher must have the same channels at every tap, so the method serves pairs of one family and width.

    Deviations: RepDistiller trains 30 epochs on the flow with the student in eval mode, then 240 with a new
    optimizer. Here both happen in one stage with one optimizer and the student in train mode, the flow for the same
    part of the epochs. For a new optimizer use two stages in a recipe: the first with ``initialisation: 1``, the
    second without a method. ``weights: {ce: 1, fsp: 50}`` trains on both all the time.

    Args:
        initialisation: part of the stage in which only the flow is matched.
        stem: whether the flow from the stem to the first stage counts, as in RepDistiller.
    """

    needs = Needs(
        student={"logits", "features.stages", "features.stem"},
        teacher={"features.stages", "features.stem"},
        batch={"labels"},
    )
    semi_supervised = True
    same_channels = True

    def __init__(self, *, initialisation: Fraction = 30 / 270, stem: bool = True) -> None:
        super().__init__()
        self.initialisation = initialisation
        self.groups = ("stem", "stages") if stem else ("stages",)
        if not stem:
            self.needs = Needs(student={"logits", "features.stages"}, teacher={"features.stages"}, batch={"labels"})
        self.weights = {"ce": During(1.0, start=initialisation), "fsp": During(50.0, stop=initialisation)}

    def build(self, setup: Setup) -> None:
        """Checks that the taps pair up and have the same channels.

        Raises:
            NeedsError: the channels differ, or there are fewer than two taps.
        """
        pairs = [pair for group in self.groups for pair in paired_maps(setup, group, group)]
        if len(pairs) < 2:
            raise NeedsError(
                "FSP compares the flow between neighbouring taps, so it needs at least two; name more stages"
            )
        for ours, theirs in pairs:
            if ours.shape[1] != theirs.shape[1]:
                widths = [f"{s.shape[1]}/{t.shape[1]}" for s, t in pairs]
                raise NeedsError(
                    f"FSP needs the same channels in student and teacher at every tap, not {', '.join(widths)}; "
                    "use a teacher of the student's width, tap layers of equal width, or a method with projectors "
                    "(vid, reviewkd, ofd)"
                )

    def _flows(self, signals: Signals) -> Iterator[Tensor]:
        taps = [tensor for group in self.groups for tensor in signals.features[group]]
        return (flow_matrix(lower, upper) for lower, upper in pairwise(taps))

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``fsp``."""
        pairs = zip(self._flows(student), self._flows(teacher))
        return {"fsp": torch.stack([mean_squared_features(*pair, reduction="none") for pair in pairs]).sum(0)}
