"""Paired tests and bootstrap intervals, against scipy and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from limbeck.errors import DataError, RunFolderError
from limbeck.evaluate import Predictions, significance
from limbeck.evaluate.bootstrap import intervals
from limbeck.evaluate.paired import compare, compare_runs
from limbeck.evaluate.significance import (
    analysis_of_variance,
    bootstrap_means,
    improvement_test,
    mcnemar,
    paired_bootstrap,
    rank_correlation,
)
from limbeck.functional import metrics


def rights(seed: int, samples: int = 400, first: float = 0.8, second: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, generator=generator) < first, torch.rand(samples, generator=generator) < second


def test_mcnemar_counts_what_only_one_gets_right() -> None:
    first = torch.tensor([1, 1, 1, 1, 0, 0, 1, 1], dtype=torch.bool)
    second = torch.tensor([0, 0, 0, 0, 1, 0, 1, 1], dtype=torch.bool)
    found = mcnemar(first, second)
    assert found[:2] == (4, 1)
    assert found.p == pytest.approx(2 * (1 + 5) / 2**5)  # at most one head of five, both sides
    assert mcnemar(second, first).p == found.p
    assert mcnemar(first, first) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="one length"):
        mcnemar(first, second[:3])


def test_mcnemar_is_rarely_wrong_about_equal_students() -> None:
    rejected = sum(mcnemar(*rights(seed, 300, 0.75, 0.75)).p < 0.05 for seed in range(300))
    assert rejected <= 0.07 * 300


def test_the_paired_interval_equals_scipys() -> None:
    first, second = (r.double() for r in rights(1))
    ours = paired_bootstrap(first, second, resamples=8000)
    theirs = stats.bootstrap(
        ((first - second).numpy(),), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours.value == pytest.approx(float((first - second).mean()))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    assert ours.excludes_zero


def test_pairing_makes_the_interval_narrower() -> None:
    first, _ = rights(2)
    second = first.clone()
    second[first.nonzero()[:10]] = False
    paired = paired_bootstrap(first, second)
    assert paired.high - paired.low < 0.04  # two independent accuracies would differ by +-0.055
    assert paired.excludes_zero


def test_bootstrap_draws_are_those_of_the_seed_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(50, 3, dtype=torch.float64)
    whole = bootstrap_means(values, resamples=64, seed=3)
    assert torch.equal(whole, bootstrap_means(values, resamples=64, seed=3))
    assert not torch.equal(whole, bootstrap_means(values, resamples=64, seed=4))
    monkeypatch.setattr(significance, "_CHUNK", 1000)
    torch.testing.assert_close(bootstrap_means(values, resamples=64, seed=3), whole)
    assert whole.std(0) == pytest.approx((values.std(0) / 50**0.5).numpy(), rel=0.3)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(120):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(3, (200,), generator=generator)
        right = torch.rand(200, generator=generator) < 0.8
        logits = 3 * torch.nn.functional.one_hot(torch.where(right, labels, (labels + 1) % 3), 3).double()
        found = intervals(logits, labels, resamples=300)["accuracy"]
        covered += found.low <= 0.8 <= found.high
    assert 0.88 <= covered / 120 <= 0.99


def test_intervals_hold_the_metrics_of_the_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    found = intervals(logits, labels)
    expected = {
        "accuracy": metrics.accuracy,
        "brier": metrics.brier_score,
        "nll": metrics.negative_log_likelihood,
        "ece": metrics.expected_calibration_error,
    }
    for name, metric in expected.items():
        assert found[name].value == pytest.approx(metric(logits, labels).item(), abs=1e-6), name
    for name in ("accuracy", "brier", "nll"):
        assert found[name].low < found[name].value < found[name].high


def test_the_other_tests_are_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, 12, generator=generator, dtype=torch.float64).round(decimals=1).tolist()
    assert improvement_test(first) == pytest.approx(tuple(stats.ttest_1samp(first, 0, alternative="greater")))
    assert analysis_of_variance(first, second, third) == pytest.approx(tuple(stats.f_oneway(first, second, third)))
    assert rank_correlation(first, second) == pytest.approx(tuple(stats.spearmanr(first, second)))
    assert rank_correlation(first, [3 * v + 1 for v in first]).statistic == pytest.approx(1)
    for call in (
        lambda: improvement_test([1.0]),
        lambda: analysis_of_variance(first),
        lambda: rank_correlation([1], [2]),
    ):
        with pytest.raises(ValueError, match="at least"):
            call()


def predictions(strength: float, seed: int, samples: int = 300) -> Predictions:
    labels = torch.arange(samples) % 4
    logits = torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(samples), labels] += strength
    return Predictions(torch.arange(samples), labels, {"student": logits})


def test_two_students_are_compared_sample_by_sample() -> None:
    good, poor = predictions(3.0, 0), predictions(0.5, 1)
    found = compare(good, poor)
    assert found.difference.value == pytest.approx(found.accuracy[0] - found.accuracy[1])
    assert found.difference.low > 0
    assert found.test.p < 1e-6
    assert found.nll.high < 0
    assert found.verdict.startswith("The first is more accurate")
    assert compare(poor, good).verdict.startswith("The second is more accurate")
    assert sum(v for v in found.per_class if v is not None) / 4 == pytest.approx(found.difference.value, abs=0.01)
    same = compare(good, good)
    assert same.verdict.startswith("These 300 samples do not tell the two apart")
    assert same.agreement == 1
    assert (same.difference.low, same.difference.high) == (0, 0)


def test_other_samples_or_classes_are_refused() -> None:
    first = predictions(1.0, 0)
    with pytest.raises(DataError, match="different samples"):
        compare(first, predictions(1.0, 0, samples=200))
    with pytest.raises(DataError, match="no predictions of the role 'teacher'"):
        compare(first, first, roles=("student", "teacher"))
    wide = Predictions(first.index, first.labels, {"student": torch.zeros(300, 5)})
    with pytest.raises(DataError, match="4 and 5 classes"):
        compare(first, wide)


def test_runs_are_compared_by_their_folders(tmp_path) -> None:
    for name, strength in (("first", 3.0), ("second", 0.5)):
        (tmp_path / name).mkdir()
        predictions(strength, 0).save(tmp_path / name / "predictions.safetensors")
    found = compare_runs(tmp_path / "first", tmp_path / "second")
    written = (tmp_path / "first" / "against-second.json").read_text()
    assert found.verdict in written
    with pytest.raises(RunFolderError, match="no predictions"):
        compare_runs(tmp_path / "first", tmp_path / "third")
