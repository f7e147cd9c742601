"""Aligned gradients in the loop: the same for every split of a batch, and what their definition says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from limbeck.engine.combine import combine, term_means
from limbeck.engine.gradients import Gradients
from limbeck.engine.step import Step
from limbeck.functional import align_gradients
from limbeck.schedules import Progress
from limbeck.signals import Batch
from methods.workbench import Bench, bench

START = Progress(0, 2, 4)


def _gradients(built: Bench, micro_batches: int) -> dict[str, Tensor]:
    step = Step(built.method, built.learners, built.observers)
    gradients = Gradients(step, built.method, built.method.players(built.learners), micro_batches)
    for parameter in built.parameters().values():
        parameter.grad = None
    gradients(_all_of_class_0(built), START)
    return {n: p.grad.clone() for n, p in built.parameters().items() if p.grad is not None}


def _all_of_class_0(built: Bench) -> Batch:
    batch = built.batch()
    batch["labels"] = torch.zeros_like(batch["labels"])
    return batch


@pytest.fixture
def conflicting() -> Bench:
    """A teacher that finds class 0 most unlikely, for samples that are all of class 0."""
    built = bench("dhkd", {"gradients": "aligned", "heads": "single"})
    head = built.frozen["teacher"].model.get_submodule("head")
    with torch.no_grad():
        head.bias[0] -= 20.0
    return built


def test_aligned_gradients_are_those_of_their_definition(conflicting: Bench) -> None:
    means = term_means(conflicting.terms(_all_of_class_0(conflicting)))
    parameters = list(conflicting.parameters().values())
    apart = [
        torch.autograd.grad(
            combine(means, conflicting.method.weights, START, frozenset({name})), parameters, retain_graph=True
        )
        for name in ("ce", "logit")
    ]
    product = sum((a * b).sum() for a, b in zip(*apart))
    assert product < 0
    found = _gradients(conflicting, 1)
    for name, expected in zip(conflicting.parameters(), align_gradients(*apart)):
        torch.testing.assert_close(found[name], expected)


def test_aligned_gradients_do_not_depend_on_micro_batches(conflicting: Bench) -> None:
    whole, parts = _gradients(conflicting, 1), _gradients(conflicting, 3)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, parts[name], rtol=1e-9, atol=1e-12)


def test_each_classifier_learns_from_its_own_loss() -> None:
    built = bench("dhkd")
    means = term_means(built.terms())
    reached = {
        name: {
            n
            for n, g in zip(
                built.parameters(),
                torch.autograd.grad(mean, list(built.parameters().values()), retain_graph=True, allow_unused=True),
            )
            if g is not None
        }
        for name, mean in means.items()
    }
    assert {"student.head.weight", "student.head.bias"} == reached["ce"] - reached["logit"]
    assert {"method.head.weight", "method.head.bias"} == reached["logit"] - reached["ce"]


def test_without_the_logit_loss_the_student_trains_as_alone() -> None:
    """The auxiliary classifier neither moves the student nor draws from the global generator."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    plain, dual = bench("none"), bench("dhkd", {"alpha": 0.0})
    assert torch.equal(torch.random.get_rng_state(), before)
    for built in (plain, dual):
        built.train(3)
    for name, tensor in plain.learners["student"].state_dict().items():
        assert torch.equal(tensor, dual.learners["student"].state_dict()[name]), name


def test_dropout_of_the_auxiliary_classifier_can_be_replayed() -> None:
    built = bench("dhkd", {"auxiliary": "perceptron"})
    batch = built.batch()
    first, again = (built.terms(copy.copy(batch))["logit"] for _ in range(2))
    other = built.terms(type(batch)({**batch, "epoch": 1}))["logit"]
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]
