"""The gradients of single terms: what is measured, and weights balanced by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limbeck
from limbeck.engine.settings import Balance
from limbeck.engine.term_gradients import TermGradients
from limbeck.errors import RecipeError
from limbeck.schedules import During, Progress, Ramp, Warmup, weight_at

START = Progress(0, 1, 1)


def problem() -> tuple[nn.Linear, dict[str, Tensor], dict[str, Tensor]]:
    """A layer, two losses of it, and the gradient of each."""
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3).double(), torch.randn(7, 5, dtype=torch.float64)
    out = layer(x)
    means = {"ce": out.logsumexp(1).mean(), "far": 100 * out.square().mean(), "apart": torch.tensor(1.0)}
    gradients = {}
    for name in ("ce", "far"):
        found = torch.autograd.grad(means[name], list(layer.parameters()), retain_graph=True)
        gradients[name] = torch.cat([g.flatten() for g in found])
    return layer, means, gradients


def test_lengths_and_cosines_are_those_of_the_weighted_gradients() -> None:
    layer, means, gradients = problem()
    watch = TermGradients(list(layer.parameters()), every=1)
    watch.measure(means, {"ce": 1.0, "far": 0.5, "apart": 1.0}, START)
    seen = watch.summary()
    own, other = gradients["ce"], 0.5 * gradients["far"]
    assert seen["ce"]["norm"] == pytest.approx(own.norm().item(), rel=1e-6)
    assert seen["far"]["norm"] == pytest.approx(other.norm().item(), rel=1e-6)
    cosine = torch.nn.functional.cosine_similarity(own, other, dim=0).item()
    assert seen["ce"]["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert seen["far"]["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert seen["apart"] == {"norm": 0.0, "cosine": 0.0}
    assert watch.summary() == {}


def test_summary_is_the_mean_over_measurements() -> None:
    layer, means, _ = problem()
    watch = TermGradients(list(layer.parameters()), every=1)
    for weight in (1.0, 3.0):
        watch.measure(means, {"ce": weight, "far": 1.0, "apart": 1.0}, START)
    once = TermGradients(list(layer.parameters()), every=1)
    once.measure(means, {"ce": 2.0, "far": 1.0, "apart": 1.0}, START)
    assert watch.summary()["ce"]["norm"] == pytest.approx(once.summary()["ce"]["norm"])


def test_balance_makes_gradients_as_long_as_the_first_ones_share() -> None:
    layer, means, gradients = problem()
    weights: dict[str, Any] = {"ce": 0.3, "far": 7.0, "apart": 1.0}
    watch = TermGradients(list(layer.parameters()), 1, Balance(shares={"far": 0.5}))
    assert watch.weights(weights) is weights
    watch.measure(means, weights, START)
    balanced = watch.weights(weights)
    length = weight_at(balanced["far"], START) * gradients["far"].norm().item()
    assert length == pytest.approx(0.5 * 0.3 * gradients["ce"].norm().item(), rel=1e-6)
    assert balanced["ce"] == 0.3
    # It has no gradient, so nothing to balance by.
    assert balanced["apart"] == 1.0
    assert watch.summary()["far"]["norm"] == pytest.approx(length, rel=1e-6)


def test_balance_smooths_logarithms_and_leaves_what_is_off_off() -> None:
    layer, means, gradients = problem()
    watch = TermGradients(list(layer.parameters()), 1, Balance(smoothing=0.75))
    weights: dict[str, Any] = {"ce": 1.0, "far": During(1.0, start=0.5), "apart": 1.0}
    watch.measure(means, weights, START)
    watch.measure({**means, "far": means["far"] * math.e**4}, weights, START)
    balanced = watch.weights(weights)
    assert weight_at(balanced["far"], START) == 0.0
    later = weight_at(balanced["far"], Progress(1, 2, 1))
    # A quarter of the four that the logarithm grew.
    assert later == pytest.approx((gradients["ce"].norm() / gradients["far"].norm()).item() / math.e, rel=1e-6)


def test_state_goes_on_where_it_was() -> None:
    layer, means, _ = problem()
    weights: dict[str, Any] = {"ce": 1.0, "far": 1.0, "apart": 1.0}
    one, other = (TermGradients(list(layer.parameters()), 1, Balance()) for _ in range(2))
    one.measure(means, weights, START)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for watch in (one, other):
        watch.measure({**means, "far": means["far"] * 3}, weights, START)
    assert one.state_dict() == other.state_dict()
    assert one.summary() == other.summary()


def run(tmp_path: Path, method: Any, **train: Any) -> list[dict[str, Any]]:
    """Distils a small network on random data and returns its metrics."""
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
    data = (torch.randn(48, 6), torch.arange(48) % 4)
    out = tmp_path / "run"
    limbeck.distill(teacher, student, data, method=method, epochs=2, batch_size=16, out=out, **train)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_metrics_hold_contributions_that_sum_to_the_loss(tmp_path: Path) -> None:
    for record in run(tmp_path, "kd"):
        assert record["contributions"]["kd"] == pytest.approx(0.9 * record["terms"]["kd"])
        assert sum(record["contributions"].values()) == pytest.approx(record["loss"], rel=1e-6)
        assert "gradients" not in record


def test_metrics_hold_gradients_and_measuring_changes_nothing(tmp_path: Path) -> None:
    watched = run(tmp_path / "watched", "kd", gradient_metrics=2)
    plain = run(tmp_path / "plain", "kd")
    assert all(set(record.pop("gradients")) == {"ce", "kd"} for record in watched)
    assert watched == plain


def test_balanced_run_has_terms_of_equal_pull(tmp_path: Path) -> None:
    balance = {"every": 1, "smoothing": 0.0}
    for record in run(tmp_path, "dist", balance=balance):
        lengths = [term["norm"] for term in record["gradients"].values()]
        assert max(lengths) == pytest.approx(min(lengths), rel=1e-4)


@pytest.mark.parametrize("split", [1, 4])
def test_balance_does_not_break_micro_batches(tmp_path: Path, split: int) -> None:
    records = run(tmp_path, "kd", balance={"every": 2}, micro_batches=split)
    assert all(math.isfinite(record["loss"]) for record in records)


def test_what_has_no_sum_of_terms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="names no term 'kdd'"):
        run(tmp_path / "misspelt", "kd", balance={"shares": {"kdd": 1.0}})


class TestSchedules:
    def test_ramp_by_cosine_is_flat_at_both_ends(self) -> None:
        ramp = Ramp(1.0, 3.0, "cosine", start=0.25, stop=0.75)
        values = [ramp(Progress(step, 8, 1)) for step in range(9)]
        assert values[:3] == [1.0, 1.0, 1.0]
        assert values[4] == pytest.approx(2.0)
        assert values[6:] == [3.0, 3.0, 3.0]
        assert values[3] - 1.0 == pytest.approx(3.0 - values[5])

    def test_recipes_write_them(self) -> None:
        from limbeck.recipes.weights import weight_from

        assert weight_from({"value": 2.0, "warmup_epochs": 3}, "w") == Warmup(2.0, 3.0)
        assert weight_from({"value": 2.0, "stop": 0.5}, "w") == During(2.0, 0.0, 0.5)
        assert weight_from({"from": 1, "to": 0, "shape": "cosine"}, "w") == Ramp(1.0, 0.0, "cosine")
        assert weight_from(3, "w") == 3.0

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"from": 1.0}, "'to' is missing"),
            ({"value": -1.0}, "greater than or equal to 0"),
            ({"value": 1.0, "begin": 0.5}, "unknown key 'begin'"),
            ({"from": 0, "to": 1, "shape": "exponential"}, "'linear' or 'cosine'"),
            (True, "should be a number"),
            ("1", "should be a number"),
            (float("nan"), "finite"),
            (-0.5, "greater than or equal to 0"),
        ],
    )
    def test_malformed_ones_are_explained(self, given: Any, message: str) -> None:
        from limbeck.recipes.weights import weight_from

        with pytest.raises(RecipeError, match=message):
            weight_from(given, "method.weights.kd")
