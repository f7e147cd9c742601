"""FitNets: hints from a teacher's hidden layer."""

from __future__ import annotations

from torch import nn

from limbeck.errors import NeedsError
from limbeck.functional.feature_maps import mean_squared_features, pool_to_smaller
from limbeck.hyperparameters import Count
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.feature.pairing import feature_maps
from limbeck.methods.projectors import project, resizing_regressor
from limbeck.signals import Batch, Signals, Terms


@register(
    "fitnet",
    title="FitNets: Hints for Thin Deep Nets",
    authors="Adriana Romero and Nicolas Ballas and Samira Ebrahimi Kahou and "
    "Antoine Chassang and Carlo Gatta and Yoshua Bengio",
    paper="1412.6550",
    year=2015,
    family="feature",
    equation=r"L = L_{CE} + \frac{\beta}{CHW} \left\| r(f^S_k) - f^T_k \right\|_2^2",
)
class FitNet(FeatureMethod):
    """The student's middle stage, carried by a regressor, imitates the teacher's.

    The regressor is a convolution with batch normalisation and ReLU that follows the sizes of the two maps
    (:func:`limbeck.methods.projectors.resizing_regressor`); it is trained with the student and dropped afterwards.

    Terms:
        ce: cross-entropy with the labels.
        hint: mean squared difference of the regressed and the teacher's map.

    Deviations: the paper first trains the lower half of the student on hints alone and then distils the whole; as in
    the CIFAR code of mdistiller and RepDistiller both happen together. Two stages in a recipe, the first with
    ``weights: {ce: 0}``, give the paper's order. Where the sizes follow none of the code's rules it stops; here the
    teacher's map is then average-pooled to the student's.

    Args:
        hint_stage: stage of the student that learns, counted from 1.
        guided_by: stage of the teacher that it imitates; the same number when None.
        relu: whether the regressor ends in a ReLU; turn it off for targets before the teacher's activation.
    """

    needs = Needs(student={"logits", "features.stages"}, teacher={"features.stages"}, batch={"labels"})
    semi_supervised = True

    def __init__(self, *, hint_stage: Count = 2, guided_by: Count | None = None, relu: bool = True) -> None:
        super().__init__()
        self.hint_stage = hint_stage
        self.guided_by = hint_stage if guided_by is None else guided_by
        self.relu = relu
        self.regressor: nn.Module = nn.Identity()
        self.weights = {"ce": 1.0, "hint": 100.0}

    def build(self, setup: Setup) -> None:
        """Makes the regressor from the shapes of the two maps.

        Raises:
            NeedsError: a model has fewer stages than the hyperparameters ask for.
        """
        maps = []
        for role, name, stage in (("student", "hint_stage", self.hint_stage), ("teacher", "guided_by", self.guided_by)):
            stages = feature_maps(setup, role)
            if stage > len(stages):
                raise NeedsError(
                    f"{name} is {stage}, but the {role} has {len(stages)} stages; set {name} to one of them"
                )
            maps.append(stages[stage - 1])
        self.regressor = resizing_regressor(*maps, relu=self.relu)

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``hint``."""
        ours = project(self.regressor, student.features["stages"][self.hint_stage - 1])
        ours, theirs = pool_to_smaller(ours, teacher.features["stages"][self.guided_by - 1])
        return {"hint": mean_squared_features(ours, theirs, reduction="none")}
