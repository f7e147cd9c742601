"""Accuracy under attack, where it can be told by hand, and against the attacks themselves."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from limbeck.errors import DataError
from limbeck.evaluate import evaluate
from limbeck.signals import Batch
from limbeck.tasks.classification import Classification


class Brightness(nn.Module):
    """Says class 1 from a mean brightness of one half on: an attack of size eps moves the mean by eps exactly."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.gain = nn.Parameter(torch.tensor(3.0))
        self.classes = classes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        over = self.gain * (inputs.mean((1, 2, 3)) - 0.5)
        far = torch.full_like(over, -9.0)
        return torch.stack([-over, over, far, far - 1][: self.classes], 1)


LEVELS = torch.tensor([0.1, 0.3, 0.46, 0.49, 0.51, 0.54, 0.7, 0.9])


def batches(levels: torch.Tensor = LEVELS) -> list[Batch]:
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    labels = (levels >= 0.5).long()
    batch = Batch(inputs=images, labels=labels, index=torch.arange(len(levels)), epoch=0)
    return [batch.map(lambda t: t[:5]), batch.map(lambda t: t[5:])]


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_accuracy_under_attack_is_what_the_distance_to_the_boundary_says(classes: int) -> None:
    options = {"name": "robustness_attacks", "eps": 0.05, "apgd_steps": 10}
    model = Brightness(classes).train()
    results = evaluate(model, loader=batches(), task=Classification(), names=[options])["robustness_attacks"]
    expected = float(((LEVELS - 0.5).abs() > 0.05).double().mean())
    assert results["clean"] == 1.0
    assert [results[name] for name in ("fgsm", "pgd", "cw", "apgd")] == pytest.approx([expected] * 4)
    assert results["weighted"] == pytest.approx((1 + expected) / 2)
    assert results["samples"] == len(LEVELS)
    assert json.loads(json.dumps(results)) == results
    assert model.training
    assert model.gain.grad is None


def test_the_teacher_is_attacked_by_its_own_gradients_and_samples_are_limited() -> None:
    teacher = Brightness()
    with torch.no_grad():
        teacher.gain.neg_()
    options = {"name": "robustness_attacks", "samples": 6, "attacks": ["fgsm"], "eps": 0.02}
    results = evaluate(Brightness(), loader=batches(), task=Classification(), teacher=teacher, names=[options])
    results = results["robustness_attacks"]
    assert results["samples"] == 6
    assert results["fgsm"] == pytest.approx(4 / 6)
    assert results["teacher"]["clean"] == 0.0
    assert "weighted" not in results
    options["teacher"] = False
    alone = evaluate(Brightness(), loader=batches(), task=Classification(), teacher=teacher, names=[options])
    assert "teacher" not in alone["robustness_attacks"]
    assert alone["robustness_attacks"]["fgsm"] == results["fgsm"]


def test_inputs_that_are_no_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="range of the inputs"):
        evaluate(Brightness(), loader=batches(LEVELS * 4), task=Classification(), names=["robustness_attacks"])
