"""What methods promise of teachers, peers and samples, on real digits: information, weights, a peer that keeps up."""

from __future__ import annotations

import copy
from statistics import mean

import pytest
import torch
from torch import Tensor, nn

import limbeck.methods.logit.kd_aif
from limbeck import distill
from limbeck.data import as_source
from limbeck.data.subsets import hold_out
from limbeck.engine.roles import Role
from limbeck.functional.conditional_information import conditional_mutual_information, log_centroids, log_class_sums
from limbeck.functional.influence import influence_weights
from limbeck.methods.base import build_method
from limbeck.methods.logit.kd_aif import KDAIF
from methods.handwriting import accuracy, digits, perceptron, trained


def information(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    logits = model(inputs).detach().double()
    centroids = log_centroids(log_class_sums(logits, labels, num_classes=10))
    return conditional_mutual_information(logits, labels, centroids).item()


def test_mcmi_raises_the_information_of_a_teacher_and_keeps_its_accuracy() -> None:
    train, test = digits("train", 900), digits("test")
    teacher = trained(perceptron(0, 64), *train, steps=25)
    found, scores = [], []
    for weight in (0.0, 0.15, 0.3):
        prepared = copy.deepcopy(teacher)
        distill(None, prepared, train, method={"name": "mcmi", "weight": weight}, epochs=12, batch_size=64, lr=0.01)
        found.append(information(prepared, *train))
        scores.append(accuracy(prepared, *test))
    assert found[0] < found[1] < found[2]
    assert found[2] > 1.1 * found[0]
    assert min(scores) > accuracy(teacher, *test) - 0.02


class PartlyWrong(nn.Module):
    """A teacher that says something of another digit where the first pixel, blank in every digit, is marked."""

    def __init__(self, teacher: nn.Module, blank: float) -> None:
        super().__init__()
        self.teacher, self.blank = teacher, blank

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        seen = inputs.clone()
        seen[:, 0, 0, 0] = self.blank
        logits = self.teacher(seen)
        return torch.where(inputs[:, 0, 0, :1] > self.blank + 1, logits.roll(3, 1), logits)


class Linear(nn.Module):
    """A linear student that does not see the mark."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc = nn.Linear(63, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        return self.fc(inputs.flatten(1)[:, 1:])


def reversed_weights(scores: Tensor, **options: object) -> Tensor:
    return influence_weights(-scores, **options)  # type: ignore[arg-type]


def test_influence_finds_the_samples_of_which_a_teacher_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """And weights of the opposite sign, as in the authors' example, do harm."""
    inputs, labels = digits("train", 400)
    test = digits("test")
    blank = inputs[:, 0, 0, 0].min().item()
    assert (inputs[:, 0, 0, 0] == blank).all()
    marked = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.3
    teacher = PartlyWrong(trained(perceptron(0, 64), *digits("train"), steps=150), blank)
    inputs[marked, 0, 0, 0] = blank + 2

    def student(method: object) -> nn.Module:
        model = Linear()
        distill(
            teacher, model, (inputs, labels), method=method, holdout=0.25, epochs=30, batch_size=50, lr=0.1,
            weight_decay=0.0,
        )  # fmt: skip
        return model

    options = {"name": "kd_aif", "temperature": 2.0, "form": "sigmoid", "sharpness": 5.0, "every": 10}
    weighed = build_method(**options)
    assert isinstance(weighed, KDAIF)
    scores = {
        "even": accuracy(student({**options, "every": 31}), *test),
        "weighed": accuracy(student(weighed), *test),
    }
    rest = hold_out(as_source((inputs, labels)), 0.25, "rest", purpose="holdout")
    wrong = torch.stack([rest.fetch([i], 0)["inputs"][0, 0, 0, 0] for i in range(len(rest))]) > blank + 1
    helps = weighed.helpfulness
    auc = (helps[~wrong][:, None] > helps[wrong][None]).float().mean().item()
    monkeypatch.setattr(limbeck.methods.logit.kd_aif, "influence_weights", reversed_weights)
    scores["reversed"] = accuracy(student(options), *test)
    assert auc > 0.75
    assert scores["weighed"] > scores["even"] + 0.1
    assert scores["reversed"] < scores["even"] - 0.1


def test_the_larger_model_of_bd_kd_does_not_suffer() -> None:
    """Which mutual learning with a weak partner may make it."""
    train, test = digits("train", 300), digits("test")
    alone, together = [], []
    for seed in (0, 1):
        settings = {"epochs": 40, "batch_size": 50, "optimizer": "adam", "lr": 0.002, "seed": seed}
        model = perceptron(seed, 256)
        distill(None, model, train, method="none", **settings)
        alone.append(accuracy(model, *test))
        peer = perceptron(seed, 256)
        method = {"name": "bd_kd", "temperature": 1.0, "alpha": 0.5, "beta": 0.5}
        distill(None, perceptron(seed + 9, 12), train, method=method, roles={"peer": Role(model=peer)}, **settings)
        together.append(accuracy(peer, *test))
        assert any(not torch.equal(a, b) for a, b in zip(peer.parameters(), model.parameters()))
    assert mean(alone) > 0.9
    assert mean(together) > mean(alone) - 0.015
