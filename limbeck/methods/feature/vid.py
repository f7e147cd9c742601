"""VID: variational information distillation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.functional.feature_likelihood import gaussian_feature_nll
from limbeck.functional.feature_maps import pool_to_smaller
from limbeck.hyperparameters import Positive
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.feature.pairing import paired_maps
from limbeck.methods.projectors import perceptron, project
from limbeck.signals import Batch, Signals, Terms


class _Likelihood(nn.Module):
    """A normal distribution over the teacher's map of one stage, predicted from the student's."""

    def __init__(self, student: Tensor, teacher: Tensor, init_variance: float, min_variance: float) -> None:
        super().__init__()
        self.mean = perceptron(student, teacher)
        self.min_variance = min_variance
        start = init_variance - min_variance
        raw = start + math.log(-math.expm1(-start))
        self.log_scale = nn.Parameter(torch.full((teacher.shape[1],), raw, device=student.device))

    def variance(self) -> Tensor:
        """The variance of each channel, ``[C]``."""
        return torch.logaddexp(self.log_scale, torch.zeros_like(self.log_scale)) + self.min_variance

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the negative log-likelihood of ``[B]`` teacher maps."""
        student, teacher = pool_to_smaller(student, teacher)
        return gaussian_feature_nll(project(self.mean, student), teacher, self.variance(), reduction="none")


@register(
    "vid",
    title="Variational Information Distillation for Knowledge Transfer",
    authors="Sungsoo Ahn and Shell Xu Hu and Andreas Damianou and Neil D. Lawrence and Zhenwen Dai",
    paper="1904.05835",
    year=2019,
    family="feature",
    equation=r"L = L_{CE} + \beta \sum_k \frac{1}{2 C_k H_k W_k} \sum_{chw} \left[ "
    r"\frac{(\mu_k(f^S_k) - f^T_k)_{chw}^2}{\sigma_{kc}^2} + \log \sigma_{kc}^2 \right], "
    r"\quad \sigma_{kc}^2 = \log(1 + e^{\alpha_{kc}}) + \epsilon",
)
class VID(FeatureMethod):
    """The student keeps as much information about the teacher's maps as a normal distribution can tell.

    Each stage has a mean (three 1x1 convolutions with ReLU) and one variance a channel, both trained with the student
    and dropped afterwards. The larger of two maps is average-pooled to the smaller.

    Terms:
        ce: cross-entropy with the labels.
        vid: negative log-likelihood of the teacher's maps, summed over the stages, without the constant; it may be
            negative.

    Deviations: the terms are means over elements, as in authors' and RepDistiller's code, where the paper sums.
    mdistiller keeps the log-scales outside its modules, so they stay at their start; here they are parameters.

    Args:
        init_variance: variance of every channel at the start.
        min_variance: smallest variance, so that the likelihood stays bounded; below ``init_variance``.
    """

    needs = Needs(student={"logits", "features.stages"}, teacher={"features.stages"}, batch={"labels"})
    semi_supervised = True

    def __init__(self, *, init_variance: Positive = 5.0, min_variance: Positive = 1e-5) -> None:
        super().__init__()
        if init_variance <= min_variance:
            raise RecipeError(
                f"method 'vid': 'init_variance' = {init_variance} should be above 'min_variance' = {min_variance}"
            )
        self.init_variance = init_variance
        self.min_variance = min_variance
        self.stages = nn.ModuleList()
        self.weights = {"ce": 1.0, "vid": 1.0}

    def build(self, setup: Setup) -> None:
        """Makes a mean and variances for each pair of stages."""
        pairs = paired_maps(setup)
        self.stages = nn.ModuleList(_Likelihood(*pair, self.init_variance, self.min_variance) for pair in pairs)

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``vid``."""
        pairs = zip(self.stages, student.features["stages"], teacher.features["stages"])
        return {"vid": torch.stack([stage(ours, theirs) for stage, ours, theirs in pairs]).sum(0)}
