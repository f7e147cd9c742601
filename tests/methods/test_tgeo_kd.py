"""TGeo-KD: features, shares, and a controller that learns through a step of the student."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import distill
from limbeck.errors import RecipeError
from limbeck.functional import cross_entropy, kl
from limbeck.functional.trilateral import trilateral_features
from limbeck.methods.base import build_method
from limbeck.methods.logit.tgeo_kd import TGeoKD
from limbeck.signals import Signals, as_term
from limbeck.students.loading import build_model
from limbeck.tasks.classification import Classification
from limbeck.teachers.provider import Observer
from methods.workbench import Bench, all_labels, bench, select


def test_features_hold_points_and_squared_edges() -> None:
    student, teacher = (torch.randn(6, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    means, labels = torch.softmax(torch.randn(4, 4, dtype=torch.float64), 1), torch.arange(6) % 4
    found = trilateral_features(student, teacher, means, labels)
    s, t = torch.softmax(student, 1), torch.softmax(teacher, 1)
    g, m = torch.nn.functional.one_hot(labels, 4), means[labels]
    expected = [s, t, g, m, (m - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (m - g) ** 2]
    torch.testing.assert_close(found, torch.cat(expected, 1))
    assert not found.requires_grad


def _student_losses(built: Bench, value: float) -> tuple[Tensor, Tensor]:
    """Sums of the student's terms with every share at ``value``."""
    last = built.method.controller[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(value)
    terms = built.terms()
    return tuple(as_term(terms[name]).values for name in ("kd", "ce"))  # type: ignore[return-value]


def test_shares_at_the_ends_are_plain_kd_and_plain_labels() -> None:
    built = bench("tgeo_kd")
    batch = built.batch()
    signals = built.signals(batch)
    distilled = kl(signals["student"].logits, signals["teacher"].logits, temperature=4.0, reduction="none")
    labelled = cross_entropy(signals["student"].logits, batch["labels"], reduction="none")
    for value, kd, ce in ((1e3, distilled, 0 * labelled), (-1e3, 0 * distilled, labelled)):
        terms = _student_losses(built, value)
        torch.testing.assert_close(terms[0], kd)
        torch.testing.assert_close(terms[1], ce)


def test_shares_belong_to_samples() -> None:
    built = bench("tgeo_kd")
    batch, order = built.batch(), torch.tensor([5, 2, 0, 1, 4, 3])
    moved = select(batch, order)
    shares = [built.method.alpha(b, s["student"], s["teacher"]) for b in (batch, moved) for s in [built.signals(b)]]
    torch.testing.assert_close(shares[1], shares[0][order])
    assert ((shares[0] > 0) & (shares[0] < 1)).all()


def test_class_means_are_those_of_the_teachers_probabilities() -> None:
    built = bench("tgeo_kd")
    p = torch.cat([torch.softmax(built.signals(built.bench_batch(s))["teacher"].logits, 1) for s in range(4)])
    for number, mean in enumerate(built.method.class_probabilities):
        torch.testing.assert_close(mean, p[all_labels() == number].mean(0))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_controllers_gradient_is_that_of_the_loss_after_the_step(batch_norm: bool) -> None:
    """By finite differences through a real step of a copy of the student."""
    built = bench("tgeo_kd", {"step_size": 0.3}, batch_norm=batch_norm)
    batch, controller = built.batch(), built.method.controller

    def after_a_step() -> Tensor:
        moved = copy.deepcopy(built.learners["student"])
        observers = {**built.observers, "student": Observer("student", moved, Classification())}
        teacher, logits = built.observers["teacher"](batch), moved(batch["inputs"])
        share = built.method.alpha(batch, Signals(logits=logits), teacher)
        lower = share * kl(logits, teacher.logits, temperature=4.0, reduction="none")
        lower = lower + (1 - share) * cross_entropy(logits, batch["labels"], reduction="none")
        slopes = torch.autograd.grad(lower.mean(), list(moved.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(moved.parameters(), slopes):
                parameter -= 0.3 * slope
            return cross_entropy(observers["student"](batch["holdout"]).logits, batch["holdout"]["labels"])

    outer = as_term(built.terms()["held_out"]).mean()
    torch.testing.assert_close(outer.detach(), after_a_step())
    gradients = torch.autograd.grad(outer, list(controller.parameters()))
    for parameter, gradient in zip(controller.parameters(), gradients):
        place = int(gradient.abs().argmax())
        values = []
        for change in (1e-5, -2e-5):
            with torch.no_grad():
                parameter.view(-1)[place] += change
            values.append(after_a_step().item())
        with torch.no_grad():
            parameter.view(-1)[place] += 1e-5
        assert gradient.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-10)


def test_looking_ahead_moves_nothing() -> None:
    built = bench("tgeo_kd", batch_norm=True)
    student, twin = built.learners["student"], bench("tgeo_kd", batch_norm=True).learners["student"]
    built.terms()
    twin(built.batch()["inputs"])  # one pass in train mode moves running statistics once
    for (name, tensor), other in zip(student.state_dict().items(), twin.state_dict().values()):
        assert torch.equal(tensor, other), name


def test_held_out_samples_do_not_enter_the_students_loss() -> None:
    built = bench("tgeo_kd")
    own, only = built.method.players(built.learners)["student"]
    gradients = []
    for shift in (0.0, 3.0):
        batch = built.batch()
        batch["holdout"]["inputs"] = batch["holdout"]["inputs"] + shift
        terms = built.terms(batch)
        loss = torch.stack([as_term(terms[name]).mean() for name in sorted(only or ())]).sum()
        gradients.append(torch.autograd.grad(loss, own))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_a_transformer_can_be_looked_ahead_of() -> None:
    """Its fused attention has no second derivative, so another one is used."""
    built = bench("tgeo_kd")
    shape: dict[str, Any] = {"name": "vit", "dim": 8, "depth": 3, "heads": 2}
    student = build_model(shape, num_classes=5, input_shape=(3, 8, 8)).double()
    observers = {**built.observers, "student": Observer("student", student, Classification())}
    terms = built.method(built.batch(), **built.method.observe(built.batch(), observers))
    gradients = torch.autograd.grad(as_term(terms["held_out"]).mean(), list(built.method.controller.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)


class _Teacher(nn.Module):
    """Right, but wrong where the last input is 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        logits = 3 * inputs[:, :6] @ self.weight.T
        return torch.where(inputs[:, 6:] > 0, logits.roll(1, 1), logits)


class _Student(nn.Module):
    """Sees the first six inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        return self.fc(inputs[:, :6])


def test_a_wrong_teacher_is_listened_to_less() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(4, 6), torch.randn(400, 7)
    inputs[:, 6] = (torch.rand(400) < 0.3).float()
    labels = (inputs[:, :6] @ weight.T).argmax(1)
    method = build_method("tgeo_kd", temperature=1.5)
    assert isinstance(method, TGeoKD)
    teacher, student, start = _Teacher(weight), _Student(), None
    build = method.build

    def remembering(setup: Any) -> None:
        nonlocal start
        build(setup)
        start = copy.deepcopy(method.controller.state_dict())

    method.build = remembering  # type: ignore[method-assign]
    distill(
        teacher, student, (inputs, labels), method=method, holdout=0.25, epochs=8, lr=0.1, batch_size=64,
        players={"controller": {"lr": 0.02}},
    )  # fmt: skip
    assert start is not None
    assert any(not torch.equal(t, start[n]) for n, t in method.controller.state_dict().items())
    with torch.no_grad():
        shares = method.alpha(
            {"labels": labels},
            Signals(logits=student(inputs)),
            Signals(logits=teacher(inputs)),  # type: ignore[arg-type]
        )
    wrong = inputs[:, 6] > 0
    assert shares[wrong].mean() < shares[~wrong].mean() - 0.1


def test_compiled_students_are_refused() -> None:
    data = (torch.randn(20, 7), torch.arange(20) % 4)
    with pytest.raises(RecipeError, match=r"differentiates through a step of the student.*train\.compile"):
        distill(_Teacher(torch.randn(4, 6)), _Student(), data, method="tgeo_kd", holdout=0.2, epochs=1, compile=True)
