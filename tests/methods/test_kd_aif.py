"""KD-AIF: weights by sample, what they find, and when they are set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck import distill
from limbeck.errors import NeedsError
from limbeck.functional import kl
from limbeck.functional.influence import influence_weights
from limbeck.methods.base import Passes, Setup, build_method
from limbeck.methods.logit.kd_aif import KDAIF
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, as_term
from limbeck.tasks.classification import Classification
from limbeck.teachers.provider import Observer
from methods.workbench import SAMPLES, bench


def test_until_the_first_estimate_it_is_plain_kd() -> None:
    built = bench("kd_aif")
    signals = built.signals(built.batch())
    expected = kl(signals["student"].logits, signals["teacher"].logits, temperature=7.0, reduction="none")
    torch.testing.assert_close(as_term(built.terms()["kd"]).values, expected)


def test_weights_are_looked_up_by_sample() -> None:
    built = bench("kd_aif")
    plain = as_term(built.terms()["kd"]).values.detach()
    built.method.sample_weights.copy_(torch.arange(SAMPLES))
    torch.testing.assert_close(as_term(built.terms()["kd"]).values.detach(), torch.arange(6) * plain)


def test_estimates_come_every_so_many_epochs_and_are_in_the_state() -> None:
    for every, moved in ((1, True), (2, False)):
        built = bench("kd_aif", {"every": every})
        built.train(2)
        assert (built.method.sample_weights.std() > 0).item() == moved
    assert "sample_weights" in built.method.state_dict()
    built.train(4)
    assert built.method.sample_weights.std() > 0  # at the end of the second epoch


def test_an_estimate_is_that_of_the_classifiers_parameters() -> None:
    """Through autograd on the student's own classifier, with the dense damped Hessian."""
    built = bench("kd_aif", {"temperature": 3.0, "damping": 0.1})
    method, student = built.method, built.learners["student"]
    method.refresh(Progress(2, 2, 12), Passes(built.observe_all, built.observe_holdout))
    train = [(b, s) for b, s in built.observe_all()]
    ((held_batch, held),) = built.observe_holdout()
    features = torch.cat([s["student"].feature("pooled") for _, s in train])
    teacher = torch.cat([s["teacher"].logits for _, s in train])
    shape = student.head.weight.shape

    def logits(theta: Tensor, read: Tensor) -> Tensor:
        return read @ theta[: shape.numel()].view(shape).T + theta[shape.numel() :]

    theta = torch.cat([student.head.weight.detach().flatten(), student.head.bias.detach()])
    rows = lambda t: kl(logits(t, features), teacher, temperature=3.0, reduction="none")  # noqa: E731
    held_loss = lambda t: nn.functional.cross_entropy(  # noqa: E731
        logits(t, held["student"].feature("pooled")), held_batch["labels"]
    )
    hessian = torch.func.hessian(lambda t: rows(t).mean())(theta) + 0.1 * torch.eye(len(theta), dtype=theta.dtype)
    direction = torch.linalg.solve(hessian, torch.func.grad(held_loss)(theta))
    expected = torch.func.jacrev(rows)(theta) @ direction
    index = torch.cat([b["index"] for b, _ in train])
    torch.testing.assert_close(method.helpfulness[index], expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(method.sample_weights, influence_weights(method.helpfulness))


@pytest.mark.parametrize("hyperparameter", ["tolerance", "iterations"])
def test_the_solver_of_the_classifier_stops_when_it_is_told_to(hyperparameter: str) -> None:
    found = []
    for value in (0.9, 1e-12) if hyperparameter == "tolerance" else (1, 1000):
        built = bench("kd_aif", {hyperparameter: value, "damping": 1e-4})
        built.method.refresh(Progress(2, 2, 12), Passes(built.observe_all, built.observe_holdout))
        found.append(built.method.helpfulness.clone())
    assert not torch.allclose(*found, rtol=1e-3)


class _TwoLayers(nn.Module):
    """A tiny student whose Hessian can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        return self.head(torch.tanh(self.first(inputs)))


def _observed(student: nn.Module, inputs: Tensor, labels: Tensor, first: int) -> list[tuple[Batch, dict[str, Signals]]]:
    batches = []
    for rows in torch.arange(len(inputs)).split(5):
        batch = Batch(inputs=inputs[rows], labels=labels[rows], index=first + rows)
        says = student(inputs[rows]).detach()
        batches.append((batch, {"student": Signals(logits=says), "teacher": Signals(logits=3 * says.roll(1, 0))}))
    return batches


def test_through_all_parameters_it_is_the_exact_inverse_of_the_damped_hessian() -> None:
    torch.manual_seed(0)
    student = _TwoLayers().double()
    inputs, labels = torch.randn(12, 3).double(), torch.arange(12) % 2
    train, held = _observed(student, inputs, labels, 0), _observed(student, -inputs, labels, 100)
    method = build_method("kd_aif", temperature=2.0, through="all", damping=0.05)
    assert isinstance(method, KDAIF)
    method.build(Setup(signals={}, models={"student": student}, labels=labels))
    method.double().observe(train[0][0], {r: Observer(r, student, Classification()) for r in ("student", "teacher")})
    method.refresh(Progress(1, 1, 2), Passes(lambda: iter(train), lambda: iter(held)))
    named = dict(student.named_parameters())
    shapes = [p.shape for p in named.values()]
    theta = torch.cat([p.detach().flatten() for p in named.values()])

    def logits(vector: Tensor, seen: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        return torch.func.functional_call(student, {n: p.view(s) for n, p, s in zip(named, parts, shapes)}, seen)

    teacher = torch.cat([signals["teacher"].logits for _, signals in train])
    rows = lambda t: kl(logits(t, inputs), teacher, temperature=2.0, reduction="none")  # noqa: E731
    hessian = torch.func.hessian(lambda t: rows(t).mean())(theta)
    assert torch.linalg.eigvalsh(hessian).min() < -1e-4
    slope = torch.func.grad(lambda t: nn.functional.cross_entropy(logits(t, -inputs), labels))(theta)
    direction = torch.linalg.solve(hessian + 0.05 * torch.eye(len(theta), dtype=theta.dtype), slope)
    expected = torch.func.jacrev(rows)(theta) @ direction
    torch.testing.assert_close(method.helpfulness, expected, rtol=1e-6, atol=1e-8)
    assert all(p.grad is None for p in student.parameters())


class _Corrupted(nn.Module):
    """A linear teacher that says something else of samples whose last input is 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        logits = 4 * inputs[:, :-1] @ self.weight.T
        return torch.where(inputs[:, -1:] > 0, logits.roll(1, 1), logits)


class _Linear(nn.Module):
    """A linear student that does not see the last input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        return self.fc(inputs[:, :-1])


def test_samples_with_wrong_teacher_outputs_lose_weight() -> None:
    torch.manual_seed(3)
    weight = torch.randn(4, 6)
    inputs = torch.randn(300, 7)
    inputs[:, -1] = (torch.rand(300) < 0.3).float()
    labels = (inputs[:, :-1] @ weight.T).argmax(1)
    method = build_method("kd_aif", temperature=2.0, form="sigmoid")
    assert isinstance(method, KDAIF)
    student, seen = _Linear(), []
    method.refresh, estimate = lambda *a: (seen.append(a), estimate(*a)), method.refresh  # type: ignore[method-assign]
    # Held-out samples are judged by their labels alone, so wrong teacher outputs do no harm there.
    distill(_Corrupted(weight), student, (inputs, labels), method=method, holdout=0.3, epochs=3, lr=0.05, batch_size=32)
    from limbeck.data import as_source
    from limbeck.data.subsets import hold_out

    rest = hold_out(as_source((inputs, labels)), 0.3, "rest", purpose="holdout")
    wrong = torch.stack([rest.fetch([i], 0)["inputs"][0, -1] for i in range(len(rest))]) > 0
    right_weights, wrong_weights = method.sample_weights[~wrong], method.sample_weights[wrong]
    assert len(seen) == 3
    auc = (right_weights[:, None] > wrong_weights[None]).float().mean()
    assert auc > 0.75
    assert right_weights.mean() > wrong_weights.mean() + 0.15


def test_what_it_cannot_work_with_is_refused() -> None:
    with pytest.raises(NeedsError, match="training data with labels"):
        build_method("kd_aif").build(Setup(signals={}, models={"student": nn.Linear(2, 2)}))
    with pytest.raises(NeedsError, match="linear classifier, which Conv2d does not have"):
        build_method("kd_aif").build(
            Setup(signals={}, models={"student": nn.Conv2d(1, 1, 1)}, labels=torch.zeros(3, dtype=torch.long))
        )
