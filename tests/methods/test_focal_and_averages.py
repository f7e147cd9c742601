from __future__ import annotations

import copy

import pytest
import torch

from limbeck.errors import NeedsError
from limbeck.methods.base import Setup, build_method
from limbeck.methods.logit.focal import Focal
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.schedules import Progress
from limbeck.signals import Signals
from methods.networks import small_student


def _focal(model: torch.nn.Module, **options: object) -> Focal:
    method = build_method("focal", **options)
    assert isinstance(method, Focal)
    signals = {"student": Signals(logits=torch.zeros(2, 5))}
    method.build(
        Setup(signals=signals, models={"student": model}, num_classes=5, labels=torch.tensor([0, 0, 1, 2, 3, 4]))
    )
    return method


def test_the_average_is_that_of_the_last_epochs_and_replaces_the_model_at_the_end() -> None:
    model = small_student(batch_norm=True)
    method = _focal(model, average_from=0.5)
    kept: list[dict[str, torch.Tensor]] = []
    for step in range(1, 13):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * step)
        if step in (8, 10, 12):
            kept.append(copy.deepcopy(model.state_dict()))
        method.after_step(Progress(step, 2, 6))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([k[name] for k in kept]).mean(0))


def test_a_resumed_average_is_the_same() -> None:
    model = small_student()
    whole = _focal(model, average_from=0.0)
    whole.after_step(Progress(2, 2, 6))
    resumed = _focal(copy.deepcopy(model), average_from=0.0)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.average is not None
    assert resumed.average.count == 1


def test_classes_are_balanced_by_the_training_labels_or_refused() -> None:
    assert _focal(small_student()).class_weights is not None
    method = build_method("focal")
    with pytest.raises(NeedsError, match="balanced: false"):
        method.build(Setup(signals={"student": Signals(logits=torch.zeros(2, 5))}, models={}))


def test_the_recipe_trains_teacher_and_student_of_the_same_fold() -> None:
    recipe = load_recipe("breast_cancer_kd_oct", ["train.epochs=1", "data.options.fold=3"])
    folds = [stage.data.options for stage in recipe.stages]
    assert folds == [{"fold": 3}, {"fold": 3}]
    for spec in recipe.stages:
        built = build_stage(recipe, spec, earlier=lambda name, model: None)
        before = copy.deepcopy(built.stage.learners["student"].state_dict())
        built.stage.rehearse(built.stage.first_batch())
        after = built.stage.learners["student"].state_dict()
        assert any(not torch.equal(before[n], t) for n, t in after.items())
