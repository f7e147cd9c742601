"""What evaluations beyond accuracy say: options, classes, calibration, foreign images, memory, rounding."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data.adapt import as_source
from limbeck.data.load import load_data
from limbeck.data.loader import Loader
from limbeck.data.source import Source
from limbeck.data.subsets import limit
from limbeck.errors import DataError, RecipeError, UnknownNameError
from limbeck.evaluate import Predictions, Subject, evaluate, evaluations, planned, with_options
from limbeck.evaluate.corruptions import relative_error
from limbeck.evaluate.cost import energy_millijoules
from limbeck.evaluate.int8 import rounded, rounded_bytes, rounded_copy
from limbeck.evaluate.membership import judge
from limbeck.evaluate.memory import peak_bytes
from limbeck.evaluate.ood import Resized
from limbeck.functional import detection, metrics
from limbeck.students.loading import build_model
from limbeck.tasks.classification import Classification

SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def source() -> Source:
    return limit(load_data("fashion-mnist-small", split="test"), 80)


@pytest.fixture(scope="module")
def train() -> Source:
    return limit(load_data("fashion-mnist-small", split="train"), 60)


@pytest.fixture(scope="module")
def loader(source: Source) -> Loader:
    return Loader(source, (), batch_size=32, shuffle=False)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("resnet8", num_classes=10, input_shape=SHAPE)


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return network(0)


def known(logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None = None) -> Subject:
    roles = {"student": logits} | ({} if teacher is None else {"teacher": teacher})
    return Subject(nn.Identity(), [], Classification(), known=Predictions(torch.arange(len(labels)), labels, roles))


def test_options_are_checked_before_anything_runs() -> None:
    plan = planned(["accuracy", {"name": "corruptions", "severities": [1, 5], "samples": 10}])
    assert plan == {"accuracy": {}, "corruptions": {"severities": (1, 5), "samples": 10}}
    for wrong, message in (
        ([{"name": "corruptions", "sample": 3}], "unknown key 'sample'. Did you mean 'samples'"),
        ([{"name": "corruptions", "severities": [6]}], "evaluation 'corruptions'.*severities"),
        ([{"name": "corruptions", "samples": 0}], "samples"),
        (["accuracy", "accuracy"], "named twice"),
        ([{"data": "digits"}], "an evaluation is a name"),
    ):
        with pytest.raises(RecipeError, match=message):
            planned(wrong)
    with pytest.raises(UnknownNameError, match="Did you mean 'corruptions'"):
        planned(["corruption"])


def test_options_of_the_command_name_their_evaluation() -> None:
    assert with_options(["ood", "ood.data=digits", "bootstrap.level=0.9", "accuracy"]) == [
        {"name": "ood", "data": "digits"},
        {"name": "bootstrap", "level": 0.9},
        {"name": "accuracy"},
    ]
    for wrong in ("ood.data", "ood=digits", "ood.=3"):
        with pytest.raises(RecipeError, match=r"evaluation\.option=value"):
            with_options([wrong])


def test_classes_tell_the_worst_one_and_what_was_won_and_lost() -> None:
    labels = torch.arange(40) % 4
    teacher, ours = (5.0 * nn.functional.one_hot(labels, 4) for _ in range(2))
    ours[labels == 2] = torch.tensor([9.0, 0, 0, 0])
    ours[2] = torch.tensor([0.0, 0, 9, 0])
    results = evaluations["classes"].part(known(ours, labels, teacher), groups={"low": (0, 1), "high": (2, 3)})
    assert (results["worst"], results["worst_class"], results["best"]) == (pytest.approx(0.1), 2, 1)
    assert results["gap"] == pytest.approx(0.9)
    assert results["gain"] == pytest.approx([0, 0, -0.9, 0])
    assert results["groups"] == {"low": 1, "high": pytest.approx(0.55)}
    assert results["worst_group"]["name"] == "high"
    assert evaluations["classes"].part(known(ours, labels), fewest=11)["note"] == "no class has 11 test samples"
    with pytest.raises(RecipeError, match="the group 'none' has no test sample"):
        evaluations["classes"].part(known(ours, labels), groups={"none": (7,)})


def test_conditional_information_is_the_divergence_from_the_mean_output_of_a_class() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = 3 * torch.randn(40, 4, generator=generator), torch.arange(40) % 3  # the fourth class has no sample
    constant = torch.randn(4, 4, generator=generator)[labels]
    judge_information = evaluations["conditional_information"].part
    found = judge_information(known(logits, labels, constant))
    p = logits.double().softmax(1)
    by_class = {}
    for number in range(3):
        own = p[labels == number]
        by_class[str(number)] = float((own * (own.log() - own.mean(0).log())).sum(1).mean())
    assert found["by_class"] == pytest.approx(by_class, rel=1e-5)
    assert found["mean"] == pytest.approx(sum((p[labels == int(c)].shape[0] / 40) * v for c, v in by_class.items()))
    # Outputs that depend on the class alone tell nothing beyond it.
    assert found["teacher"]["mean"] == pytest.approx(0, abs=1e-6)
    assert judge_information(known(logits, labels), temperature=4.0)["mean"] < found["mean"]


def test_temperature_scaling_mends_overconfidence_and_leaves_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 5, generator=generator)
    labels = torch.multinomial((2 * logits).softmax(1), 1, generator=generator).squeeze(1)
    subject = known(10 * logits, labels)
    found = evaluations["calibration"].part(subject)
    scaled = found["scaled"]
    assert scaled["temperature"] == pytest.approx(5, rel=0.15)
    assert scaled["ece"] < 0.05 < found["ece"]
    assert scaled["nll"] < found["nll"]
    assert scaled["brier"] < found["brier"]
    assert "scaled" not in evaluations["calibration"].part(known(logits[:10], labels[:10]))
    assert len(evaluations["calibration"].part(subject, bins=4)["curve"]["samples"]) == 4


def test_no_label_scales_its_own_sample() -> None:
    # With labels that say nothing, the best temperature is infinite; a temperature fitted on the judged samples
    # themselves would find what chance offers, and be better than the uniform guess.
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(60, 10, generator=generator), torch.randint(10, (60,), generator=generator)
    found = evaluations["calibration"].part(known(logits, labels))["scaled"]
    assert found["nll"] > 0.99 * math.log(10)


def test_bootstrap_stands_beside_what_it_is_about() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    logits, teacher = (torch.randn(300, 4, generator=generator) + 3 * nn.functional.one_hot(labels, 4) for _ in "ab")
    found = evaluations["bootstrap"].part(known(logits, labels, teacher), resamples=400)
    assert found["accuracy"]["value"] == pytest.approx(metrics.accuracy(logits, labels).item())
    assert found["teacher"]["accuracy"]["value"] == pytest.approx(metrics.accuracy(teacher, labels).item())
    assert found["agreement"]["value"] == pytest.approx(metrics.agreement(logits, teacher).item())
    for name in ("accuracy", "agreement", "nll", "brier"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    wide = evaluations["bootstrap"].part(known(logits, labels), resamples=400, level=0.999)
    assert wide["accuracy"]["low"] < found["accuracy"]["low"]


def test_corrupted_accuracy_is_that_of_the_corrupted_images(loader: Loader, source: Source, student: nn.Module) -> None:
    found = evaluate(
        student, loader=loader, task=Classification(), teacher=network(1),
        names=[{"name": "corruptions", "kinds": ["fog", "contrast"], "severities": [2, 5]}],
    )["corruptions"]  # fmt: skip
    shown = Loader(source, [{"name": "corruption", "kind": "fog", "severity": 5}], batch_size=80, shuffle=False)
    batch = next(iter(shown.epoch(0)))
    with torch.no_grad():
        logits = student.eval()(batch["inputs"])
    assert found["by_kind"]["fog"][1] == pytest.approx(metrics.accuracy(logits, batch["labels"]).item())
    means = {kind: sum(rates) / 2 for kind, rates in found["by_kind"].items()}
    assert found["accuracy"] == pytest.approx(sum(means.values()) / 2)
    assert found["worst"] == min(means.values()) == means[found["worst_kind"]]
    assert found["by_family"] == {"weather": means["fog"], "digital": means["contrast"]}
    assert set(found["teacher"]["by_kind"]) == {"fog", "contrast"}
    assert found["relative_error"] == pytest.approx(relative_error(found["by_kind"], found["teacher"]["by_kind"]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_relative_error_sums_over_severities_first() -> None:
    ours, theirs = {"a": [0.5, 0.3], "b": [0.9, 0.8]}, {"a": [0.7, 0.7], "b": [0.9, 0.5]}
    assert relative_error(ours, theirs) == pytest.approx((1.2 / 0.6 + 0.3 / 0.6) / 2)
    assert relative_error(ours, {"a": [1, 1], "b": [0.9, 0.5]}) is None


def test_foreign_images_are_shown_in_the_size_of_the_others(loader: Loader, source: Source, student: nn.Module) -> None:
    digits = load_data("digits", split="test")
    shown = Resized(digits, source.info)
    found = shown.fetch(np.array([0, 3]), 0)
    assert found["inputs"].shape == (2, *SHAPE)
    assert found["labels"].tolist() == [0, 0]
    colour = as_source((torch.rand(6, 3, 32, 32), torch.arange(6) % 2), split="test")
    grey = Resized(colour, source.info).fetch(np.arange(6), 0)["inputs"]
    assert grey.shape == (6, *SHAPE)
    assert Resized(digits, colour.info).fetch(np.arange(2), 0)["inputs"].shape == (2, 3, 32, 32)
    results = evaluate(
        student, loader=loader, task=Classification(), names=[{"name": "ood", "data": "digits", "samples": 50}]
    )["ood"]
    with torch.no_grad():
        student.eval()
        scores = [
            torch.cat([student(b["inputs"]).double().log_softmax(1).amax(1) for b in batches.epoch(0)])
            for batches in (loader, Loader(Resized(limit(digits, 50), source.info), (), batch_size=50, shuffle=False))
        ]
    assert results["auroc"] == pytest.approx(detection.auroc(*scores).item(), abs=1e-6)
    assert results["fpr95"] == pytest.approx(detection.false_positive_rate(*scores).item(), abs=1e-6)
    assert set(results) == {"auroc", "fpr95", "max_logit", "energy", "data", "samples"}


def test_foreign_data_must_be_named_and_be_other_data(loader: Loader, student: nn.Module) -> None:
    for options, message in (({}, r"ood\.data=digits"), ({"data": "fashion-mnist-small"}, "judged on")):
        with pytest.raises(DataError, match=message):
            evaluate(student, loader=loader, task=Classification(), names=[{"name": "ood", **options}])
    with pytest.raises(DataError, match="limbeck's own loader"):
        evaluate(student, loader=list(loader.epoch(0)), task=Classification(), names=["corruptions"])


def test_membership_tells_who_was_trained_on(loader: Loader, train: Source, student: nn.Module) -> None:
    with pytest.raises(DataError, match="training samples"):
        evaluate(student, loader=loader, task=Classification(), names=["membership"])
    found = evaluate(student, loader=loader, task=Classification(), names=["membership"], train=train)["membership"]
    assert (found["members"], found["others"]) == (60, 80)
    assert abs(found["advantage"]) < 0.35  # an untrained network remembers nothing


def test_membership_of_a_model_that_remembers_and_of_one_that_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = (0.1 * torch.rand(400, generator=generator) + shift for shift in (0.0, 1.0))
    assert judge(low, high)["advantage"] > 0.98
    assert judge(low, high)["tpr_at_1_fpr"] == 1
    mean = np.mean(
        [
            judge(torch.rand(100, generator=generator), torch.rand(100, generator=generator))["advantage"]
            for _ in range(60)
        ]
    )
    # The threshold comes from other samples, so that chance is worth nothing; that of these would give 0.1.
    assert abs(mean) < 0.04


def test_peak_memory_counts_what_is_held_at_once() -> None:
    x = torch.zeros(256)
    assert peak_bytes(lambda: x.neg()) == 1024
    assert peak_bytes(lambda: x.neg().neg().neg()) == 2048
    assert peak_bytes(lambda: [x.neg(), x.neg(), x.neg()]) == 3072


def test_memory_grows_with_the_batch_and_not_with_repetition(loader: Loader) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))
    found = evaluate(wide, loader=loader, task=Classification(), names=["memory"])["memory"]
    weights = 4 * (784 * 1000 + 1000 + 10_000 + 10)
    assert found["weights_bytes"] == weights
    assert found["batch_1"]["activations_bytes"] >= 2 * 4 * 1000
    assert found["batch_32"]["activations_bytes"] == pytest.approx(32 * found["batch_1"]["activations_bytes"], rel=0.2)
    assert found["batch_32"]["peak_bytes"] == weights + found["batch_32"]["activations_bytes"]


def test_rounded_weights_lie_on_the_nearest_of_255_levels_of_their_channel() -> None:
    weight = torch.randn(6, 4, 3, 3)
    weight[2] = 0
    scale = weight.abs().amax((1, 2, 3)).double() / 127
    scale[2] = 1
    step = scale.numpy().reshape(6, 1, 1, 1)
    np.testing.assert_allclose(rounded(weight).numpy(), np.round(weight.numpy() / step) * step, atol=1e-6)
    assert (rounded(weight) - weight).abs().amax((1, 2, 3)).double().le(scale / 2 + 1e-6).all()


def test_rounding_leaves_the_model_and_counts_every_storage_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(50, 8), nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 50)
            self.head.weight = self.table.weight

    model = Tied()
    before = copy.deepcopy(model.state_dict())
    changed = rounded_copy(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert changed.head.weight is changed.table.weight
    assert len(changed.table.weight[0].unique()) <= 255
    rest = 4 * (50 + 4 * 8) + 8  # bias of the head, four vectors of the norm, its 64-bit counter
    assert rounded_bytes(model) == 50 * 8 + 4 * 50 + rest


def test_int8_reports_what_rounding_costs(loader: Loader, student: nn.Module) -> None:
    found = evaluate(student, loader=loader, task=Classification(), names=["int8", "accuracy", "cost"])
    assert found["int8"]["drop"] == pytest.approx(found["accuracy"]["top1"] - found["int8"]["accuracy"])
    assert found["int8"]["agreement"] > 0.9
    assert 0.2 < found["int8"]["weights_bytes"] / found["cost"]["weights_bytes"] < 0.35


def test_energy_is_the_price_of_operations_and_of_reading_weights(loader: Loader, student: nn.Module) -> None:
    assert energy_millijoules(10**9, 4 * 10**6) == pytest.approx(4.6 + 0.64)
    found = evaluate(student, loader=loader, task=Classification(), names=["cost"])["cost"]
    assert found["energy_mj"] == pytest.approx(energy_millijoules(found["macs"], found["weights_bytes"]))
