"""Data that is labelled in part: what learns from it, what refuses it, and DHO from end to end."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.engine.combine import combine
from limbeck.engine.gradients import Gradients
from limbeck.engine.preflight import dry_run
from limbeck.engine.step import Step
from limbeck.errors import NeedsError
from limbeck.functional.head_mixture import mixed_log_probabilities
from limbeck.methods.base import Setup, methods
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import reopen, run_recipe
from limbeck.schedules import Progress
from limbeck.signals import UNLABELLED, Batch, as_term
from methods.workbench import CLASSES, ROWS, Bench, bench

START = Progress(0, 2, 4)
SEMI_SUPERVISED = [name for name in methods if methods[name].part.semi_supervised]


def _partly(batch: Batch, labelled: Tensor) -> Batch:
    labels = batch["labels"].masked_fill(~labelled, UNLABELLED)
    return Batch({**batch, "labels": labels, "labelled_mask": labelled, "unlabelled_mask": ~labelled})


def _bench(name: str) -> tuple[Bench, Batch]:
    built = bench(name)
    batch = _partly(built.batch(), torch.tensor([1, 0, 0, 1, 0, 0]).bool())
    signals = dry_run(built.method, batch, built.observers)
    models = {role: observer.model for role, observer in built.observers.items()}
    taps = {role: observer.taps.groups for role, observer in built.observers.items()}
    if name == "dho":  # what a method is built for depends on whether there are unlabelled samples
        built = bench(name)
        built.method.weights = {"ce": 0.5, "kd": 0.5, "kd_unlabelled": 0.5}
        built.method.build(Setup(signals, models, taps, num_classes=CLASSES, batch=batch))
        built.method.double()
    return built, batch


@pytest.mark.parametrize("name", SEMI_SUPERVISED)
def test_the_cross_entropy_is_of_the_labelled_samples_and_the_rest_of_all(name: str) -> None:
    built, batch = _bench(name)
    signals = built.method.observe(batch, built.observers)
    terms = {n: as_term(t) for n, t in built.method(batch, **signals).items()}
    if "ce" in terms:
        expected = nn.functional.cross_entropy(signals["student"].logits[[0, 3]], batch["labels"][[0, 3]])
        torch.testing.assert_close(terms["ce"].mean(), expected)
    others = [n for n in terms if n != "ce"]
    reached = torch.autograd.grad(
        torch.stack([terms[n].mean() for n in others]).sum(),
        [t for tensors in signals["student"].features.values() for t in tensors] or [signals["student"].logits],
        allow_unused=True,
    )
    assert any(g is not None and g[1].abs().max() > 0 for g in reached), "an unlabelled sample teaches nothing"


@pytest.mark.parametrize("name", ["dkd", "nkd", "pld", "uskd", "dhkd", "crd"])
def test_methods_that_read_every_label_refuse_such_data(name: str) -> None:
    built = bench(name)
    batch = _partly(built.batch(), torch.arange(ROWS) < 2)
    with pytest.raises(NeedsError, match="labelled in part"):
        dry_run(built.method, batch, built.observers)


@pytest.mark.parametrize("name", ["kd", "dho"])
def test_micro_batches_add_up_although_their_numbers_of_labels_differ(name: str) -> None:
    built, batch = _bench(name)
    built.method.eval()

    def gradients(parts: int) -> dict[str, Tensor]:
        step = Step(built.method, built.learners, built.observers)
        for parameter in built.parameters().values():
            parameter.grad = None
        means = Gradients(step, built.method, built.method.players(built.learners), parts)(batch, START)
        found = {n: p.grad.clone() for n, p in built.parameters().items() if p.grad is not None}
        return {**found, "loss": combine(means, built.method.weights, START)}

    whole, split = gradients(1), gradients(3)
    assert whole.keys() == split.keys()
    for key, value in whole.items():
        torch.testing.assert_close(value, split[key], rtol=1e-9, atol=1e-12)


def test_dho_adds_the_means_of_labelled_and_of_unlabelled_samples() -> None:
    built, batch = _bench("dho")
    terms = {n: as_term(t) for n, t in built.method(batch, **built.method.observe(batch, built.observers)).items()}
    rows = terms["kd"].values
    torch.testing.assert_close(terms["kd"].mean(), rows[[0, 3]].mean())
    torch.testing.assert_close(terms["kd_unlabelled"].mean(), rows[[1, 2, 4, 5]].mean())
    named = list(built.parameters())
    reached = {
        n: {p for p, g in zip(named, _gradients(built, t.mean())) if g is not None and g.abs().max() > 0}
        for n, t in terms.items()
    }
    assert {"student.head.weight", "student.head.bias"} == reached["ce"] - reached["kd"]
    assert {"method.head.weight", "method.head.bias"} == reached["kd"] - reached["ce"]
    assert reached["kd_unlabelled"] == reached["kd"]


def _gradients(built: Bench, loss: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, list(built.parameters().values()), retain_graph=True, allow_unused=True)


def test_dho_without_unlabelled_samples_has_two_terms() -> None:
    built = bench("dho")
    assert set(built.terms()) == set(built.method.weights) == {"ce", "kd"}


def test_the_deployed_student_of_dho_mixes_both_classifiers() -> None:
    built, batch = _bench("dho")
    student, inputs = built.learners["student"].eval(), batch["inputs"]
    finished = built.method.finish(student).eval()
    signals = built.method.observe(batch, built.observers)["student"]
    with torch.no_grad():
        second = built.method.head(signals.feature("pooled"))
        expected = mixed_log_probabilities(signals.logits, second, alpha=0.5, beta=0.5)
        torch.testing.assert_close(finished(inputs), expected)
        torch.testing.assert_close(finished(inputs).exp().sum(1), torch.ones(ROWS, dtype=torch.float64))
    assert "head.teacher_head.weight" in dict(finished.named_parameters())


def test_dho_learns_from_samples_without_labels_through_distill() -> None:
    """Two of five classes have labels; the others can only come from the teacher."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 10, generator=generator)
    teacher = nn.Sequential(nn.Linear(10, 5))
    with torch.no_grad():
        teacher[0].weight.copy_(3 * torch.randn(5, 10, generator=generator))
    truth = teacher(inputs).argmax(1)
    labels = torch.full_like(truth, UNLABELLED)
    labels[:40] = torch.where(truth[:40] < 2, truth[:40], UNLABELLED)
    labels[399] = 4  # so that the data says how many classes there are
    done = {}
    for name in ("kd", "dho"):
        student = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5))
        done[name] = limbeck.distill(
            copy.deepcopy(teacher), student, (inputs, labels), method=name, evaluate_on=(inputs, truth),
            evaluations=("accuracy",), labelled_per_batch=8, epochs=8, batch_size=50, lr=0.1,
        )  # fmt: skip
    assert done["dho"].results["accuracy"]["top1"] > 0.8
    assert set(done["dho"].student(inputs).argmax(1).tolist()) == set(range(5))
    assert done["kd"].results["accuracy"]["top1"] > 0.8


def test_a_recipe_searches_its_mixture_on_data_kept_apart(tmp_path: Path) -> None:
    small = ["data.limit={train: 120, test: 40}", "data.labelled=40", "data.labelled_per_batch=8", "train.epochs=2"]
    recipe = load_recipe("fashion_mnist_dho", [*small, "train.batch_size=32", "evaluate=[accuracy]"])
    finished = run_recipe(recipe, out=tmp_path / "run")
    assert 0 <= finished.results["accuracy"]["top1"] <= 1
    _, built = reopen(tmp_path / "run")
    alpha, beta = built.stage.method.mixture.tolist()
    head = built.stage.student().get_submodule(built.stage.student().anatomy.head)
    assert (head.alpha, head.beta) == (alpha, beta)
    assert alpha in [0.05 * step for step in range(21)]
