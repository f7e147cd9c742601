"""The evaluations of a student: what they say, what they leave alone, what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.data.adapt import as_source
from limbeck.data.loader import Loader as OwnLoader
from limbeck.errors import CheckpointError, DataError, LimbeckError, UnknownNameError
from limbeck.evaluate import Measure, Predictions, Spread, evaluate, evaluations, measures, of_teacher, predict
from limbeck.evaluate.latency import measure
from limbeck.functional import metrics
from limbeck.signals import Batch, Signals
from limbeck.tasks.classification import Classification

SAMPLES, CLASSES = 50, 10


class Network(nn.Module):
    """A network whose output depends on its mode: batch normalisation and dropout."""

    def __init__(self, seed: int, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 6 * 6, classes)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(self.body(images))


class Loader:
    """Test data in the order of a shuffled permutation, as a loader gives it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.randn(SAMPLES, 1, 8, 8, generator=generator)
        self.labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        self.order = torch.randperm(SAMPLES, generator=generator)

    def epoch(self, number: int) -> Iterator[Batch]:
        assert number == 0
        for index in self.order.split(16):
            yield Batch(inputs=self.images[index], labels=self.labels[index], index=index, epoch=0)


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def student() -> Network:
    return Network(1)


@pytest.fixture
def teacher() -> Network:
    return Network(2)


def test_every_number_is_the_metric_of_the_logits_in_eval_mode(
    loader: Loader, student: Network, teacher: Network
) -> None:
    names = ("accuracy", "agreement", "calibration")
    results = evaluate(student, loader=loader, task=Classification(), teacher=teacher, names=names)
    with torch.no_grad():
        ours, theirs = student.eval()(loader.images), teacher.eval()(loader.images)
    labels = loader.labels
    assert results["accuracy"]["top1"] == pytest.approx(metrics.accuracy(ours, labels).item())
    assert results["accuracy"]["top5"] == pytest.approx(metrics.accuracy(ours, labels, k=5).item())
    assert results["accuracy"]["samples"] == SAMPLES
    assert results["accuracy"]["teacher"]["top1"] == pytest.approx(metrics.accuracy(theirs, labels).item())
    assert results["agreement"]["top1"] == pytest.approx(metrics.agreement(ours, theirs).item())
    forward = metrics.predictive_divergence(theirs, ours).item()
    assert results["agreement"]["kl_teacher_student"] == pytest.approx(forward, abs=1e-6)
    assert results["agreement"]["kl_teacher_student"] != pytest.approx(results["agreement"]["kl_student_teacher"])
    assert sum(results["agreement"]["right"].values()) == pytest.approx(1.0)
    ece = metrics.expected_calibration_error(ours, labels).item()
    assert results["calibration"]["ece"] == pytest.approx(ece, abs=1e-6)
    assert sum(results["calibration"]["curve"]["samples"]) == SAMPLES
    assert results["calibration"]["teacher"]["nll"] == pytest.approx(
        metrics.negative_log_likelihood(theirs, labels).item(), abs=1e-5
    )


def test_results_are_json_and_each_model_runs_once(loader: Loader, student: Network, teacher: Network) -> None:
    names = ("accuracy", "agreement", "calibration")
    results = evaluate(student, loader=loader, task=Classification(), teacher=teacher, names=names)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert student.calls == teacher.calls == math.ceil(SAMPLES / 16)


def test_modes_buffers_and_gradients_are_left_as_they_were(loader: Loader, student: Network, teacher: Network) -> None:
    student.train()
    student.body[1].eval()
    before = [module.training for module in student.modules()]
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    evaluate(student, loader=loader, task=Classification(), teacher=teacher.eval())
    assert [module.training for module in student.modules()] == before
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())
    assert torch.is_grad_enabled()


def test_modes_are_restored_after_an_error(loader: Loader, student: Network) -> None:
    student.train()
    student.head = nn.Linear(3, CLASSES)
    with pytest.raises(RuntimeError):
        evaluate(student, loader=loader, task=Classification(), names=["accuracy"])
    assert all(module.training for module in student.modules())


def test_without_a_teacher_the_results_say_so(loader: Loader, student: Network) -> None:
    results = evaluate(student, loader=loader, task=Classification())
    assert results["agreement"] == {"note": "no teacher"}
    assert all("teacher" not in part for part in results.values())
    assert of_teacher(results) == {}


def test_a_teacher_of_other_classes_is_not_compared(loader: Loader, student: Network) -> None:
    results = evaluate(
        student, loader=loader, task=Classification(), teacher=Network(2, 12), names=["accuracy", "agreement"]
    )
    assert results["agreement"]["note"].startswith("the teacher has 12 classes and the student 10")
    assert "teacher" not in results["accuracy"]


def test_a_provider_serves_as_teacher(loader: Loader, student: Network, teacher: Network) -> None:
    teacher.eval()

    def provider(batch: Batch) -> Signals:
        return Signals(logits=teacher(batch["inputs"]))

    live = evaluate(student, loader=loader, task=Classification(), teacher=teacher, names=["agreement"])
    provided = evaluate(student, loader=loader, task=Classification(), teacher=provider, names=["agreement", "cost"])
    assert provided["agreement"] == live["agreement"]
    assert "teacher" not in provided["cost"]


def test_the_teacher_sees_its_own_inputs(loader: Loader, student: Network, teacher: Network) -> None:
    batches = [Batch(b, teacher_inputs=b["inputs"] * 0) for b in loader.epoch(0)]
    found = predict({"student": student, "teacher": teacher}, batches, Classification())
    assert torch.equal(found.logits["teacher"][0], found.logits["teacher"][-1])
    assert not torch.equal(found.logits["student"][0], found.logits["student"][-1])


def test_predictions_are_sorted_by_sample_and_survive_a_file(loader: Loader, student: Network, tmp_path: Path) -> None:
    found = predict({"student": student}, loader, Classification())
    assert found.index.tolist() == list(range(SAMPLES))
    assert torch.equal(found.labels, loader.labels)
    found.save(tmp_path / "predictions.safetensors")
    again = Predictions.load(tmp_path / "predictions.safetensors")
    assert torch.equal(again.logits["student"], found.logits["student"])
    assert torch.equal(again.index, found.index)
    student.calls = 0
    results = evaluate(student, loader=loader, task=Classification(), names=["accuracy"], predictions=again)
    assert student.calls == 0
    assert results["accuracy"]["top1"] == pytest.approx(metrics.accuracy(found.logits["student"], loader.labels).item())


def test_a_file_that_holds_no_predictions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    for content in (b"", b"\x00" * 40, b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="does not hold predictions"):
            Predictions.load(path)
    with pytest.raises(CheckpointError):
        Predictions.load(tmp_path / "absent.safetensors")


def test_an_unknown_evaluation_is_refused_before_anything_runs(loader: Loader, student: Network) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'calibration'"):
        evaluate(student, loader=loader, task=Classification(), names=["accuracy", "calibratoin"])
    assert student.calls == 0


def test_empty_data_missing_labels_and_diverged_models_are_refused(loader: Loader, student: Network) -> None:
    with pytest.raises(DataError, match="empty"):
        evaluate(student, loader=[], task=Classification(), names=["accuracy"])
    with pytest.raises(DataError, match="empty"):
        evaluate(student, loader=[], task=Classification(), names=["latency"])
    bare = [Batch(inputs=loader.images, index=torch.arange(SAMPLES))]
    with pytest.raises(DataError, match="labels"):
        evaluate(student, loader=bare, task=Classification(), names=["accuracy"])
    with torch.no_grad():
        student.head.bias[3] = math.nan
    with pytest.raises(LimbeckError, match="role 'student' gives NaN"):
        evaluate(student, loader=loader, task=Classification(), names=["accuracy"])


def test_latency_states_the_machine_and_ordered_percentiles(loader: Loader, student: Network, teacher: Network) -> None:
    result = evaluate(student, loader=loader, task=Classification(), teacher=teacher, names=["latency"])["latency"]
    assert result["threads"] == torch.get_num_threads()
    assert result["processor"]
    assert result["device"] == "cpu"
    for size in (1, 32):
        for times in (result[f"batch_{size}"], result["teacher"][f"batch_{size}"]):
            assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
            assert times["repeats"] >= 20
            assert times["samples_per_second"] == pytest.approx(size / times["p50_ms"] * 1e3)


def test_timing_alternates_between_models_and_stops_when_it_takes_long() -> None:
    now, order = [0.0], []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    passes = {"student": lambda: run("student", 0.01), "teacher": lambda: run("teacher", 0.5)}
    times = measure(passes, clock=lambda: now[0])
    assert order[:4] == ["student", "teacher"] * 2
    assert len(times["student"]) == len(times["teacher"]) == 20
    assert times["student"] == pytest.approx([0.01] * 20)
    assert times["teacher"] == pytest.approx([0.5] * 20)


def test_measures_of_every_evaluation_of_images_are_found_in_its_results(student: Network, teacher: Network) -> None:
    images = torch.rand(40, 1, 16, 16)
    source = as_source((images, torch.arange(40) % CLASSES), split="test")
    for network in (student, teacher):
        network.head = nn.Linear(4 * 14 * 14, CLASSES)
    options: dict[str, dict[str, object]] = {
        "ood": {"data": "digits", "samples": 20},
        "corruptions": {"severities": [1]},
        "robustness_attacks": {"steps": 1, "samples": 8, "attacks": ["fgsm", "pgd", "cw", "apgd"], "apgd_steps": 2},
    }
    # Groups need data that knows some.
    entries = [
        e
        for e in evaluations.entries()
        if e.about.get("task", "classification") == "classification" and e.name != "groups"
    ]
    results = evaluate(
        student,
        loader=OwnLoader(source, (), batch_size=16, shuffle=False),
        task=Classification(),
        teacher=teacher,
        names=[{"name": entry.name, **options.get(entry.name, {})} for entry in entries],
        train=source,
    )
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    for entry in entries:
        assert entry.about["title"]
        for item in entry.about["measures"]:
            assert item.key.startswith(entry.name + ".")
            assert isinstance(item.read(results), float), item.key
    assert [m.key for m in measures({"method": "kd", "calibration": {}, "seed": 1})] == [
        "calibration.ece",
        "calibration.nll",
        "calibration.scaled.ece",
    ]
    assert Measure("accuracy.top1", "").read(of_teacher(results)) == results["accuracy"]["teacher"]["top1"]
    assert Measure("accuracy.nothing", "").read(results) is None
    assert Measure("nothing.at.all", "").read(results) is None


def test_spread_is_the_sample_deviation() -> None:
    assert Spread.of([]) is None
    assert Spread.of([0.25]) == Spread(0.25, 0.0, 1)
    spread = Spread.of([0.90, 0.92, 0.97])
    assert spread is not None
    assert spread.std == pytest.approx(torch.tensor([0.90, 0.92, 0.97], dtype=torch.float64).std().item())
    assert spread.n == 3
