"""Whether a difference is more than chance: paired tests between two students, and tests over tasks and methods.

The distributions of the test statistics are scipy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.errors import MissingExtraError

_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A number and the range that holds it with some confidence.

    Attributes:
        value: the number itself.
        low: lower end.
        high: upper end.
        level: confidence, such as 0.95.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


class Tested(NamedTuple):
    """A test statistic and how likely one at least as extreme is by chance."""

    statistic: float
    p: float


class McNemar(NamedTuple):
    """On how many samples only one of two classifiers is right, and how likely such an imbalance is by chance.

    Attributes:
        first_only: samples on which only the first is right.
        second_only: samples on which only the second is right.
        p: exact two-sided probability; 1 where they differ nowhere.
    """

    first_only: int
    second_only: int
    p: float


def mcnemar(first_right: Tensor, second_right: Tensor) -> McNemar:
    """McNemar's exact test of whether two classifiers are equally often right on the same samples.

    Only samples on which exactly one is right can tell; were both equally good, each of these would fall to either
    like a coin. Reference: McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947; Dietterich, "Approximate statistical tests for comparing supervised classification learning
    algorithms", 1998.

    Args:
        first_right: ``[N]`` bool.
        second_right: ``[N]`` bool, on the same samples.

    Raises:
        ValueError: the two are not of one length.
        MissingExtraError: scipy is not installed.
    """
    if first_right.shape != second_right.shape or first_right.dim() != 1:
        raise ValueError(f"two vectors of one length, not {tuple(first_right.shape)} and {tuple(second_right.shape)}")
    first, second = first_right.bool(), second_right.bool()
    ours, theirs = int((first & ~second).sum()), int((second & ~first).sum())
    if ours + theirs == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(ours, theirs, float(_scipy_stats().binomtest(ours, ours + theirs, 0.5).pvalue))


def bootstrap_means(values: Tensor, *, resamples: int = 2000, seed: int = 0) -> Tensor:
    """Returns the column means of ``resamples`` draws of all samples with replacement.

    Columns share their draws, so differences of columns are paired.
    Reference: Efron, "Bootstrap methods: another look at the jackknife", 1979.

    Args:
        values: ``[N, M]``, one row a sample.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        ``[resamples, M]`` float64.

    Raises:
        ValueError: there is no sample.
    """
    if values.dim() != 2 or len(values) == 0:
        raise ValueError(f"values should be [samples, columns] with at least one sample, not {tuple(values.shape)}")
    count, table = len(values), values.double()
    generator = torch.Generator().manual_seed(seed)
    means = []
    for size in _chunks(resamples, max(1, _CHUNK // count)):
        drawn = torch.randint(count, (size, count), generator=generator)
        times = torch.zeros(size, count, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(size, count)
        )
        means.append(times @ table / count)
    return torch.cat(means)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def percentile_interval(value: float, drawn: Tensor, *, level: float = 0.95) -> Interval:
    """Returns the range in which the middle ``level`` of a bootstrap's values lies.

    Args:
        value: the number on the samples themselves.
        drawn: ``[resamples]`` the same number on each draw.
        level: confidence, in (0, 1).
    """
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.double().quantile(tail).tolist()
    return Interval(value, low, high, level)


def paired_bootstrap(
    first: Tensor, second: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Returns the mean difference ``first - second`` over the same samples with its bootstrap interval.

    Args:
        first: ``[N]`` a number for each sample: right or wrong, a loss.
        second: ``[N]`` the same for the other student.
        level: confidence, in (0, 1).
        resamples: number of draws.
        seed: seed of the draws.

    Raises:
        ValueError: the two are not of one length.
    """
    if first.shape != second.shape:
        raise ValueError(f"two vectors of one length, not {tuple(first.shape)} and {tuple(second.shape)}")
    difference = (first.double() - second.double()).unsqueeze(1)
    drawn = bootstrap_means(difference, resamples=resamples, seed=seed)[:, 0]
    return percentile_interval(float(difference.mean()), drawn, level=level)


def improvement_test(improvements: Sequence[float]) -> Tested:
    """One-sample t-test of whether the mean improvement is above 0 (one-sided).

    Args:
        improvements: metric of the distilled student minus that of the student alone, one a task or seed.

    Raises:
        ValueError: fewer than two values.
        MissingExtraError: scipy is not installed.
    """
    if len(improvements) < 2:
        raise ValueError("a t-test needs at least two values")
    found = _scipy_stats().ttest_1samp(list(improvements), 0.0, alternative="greater")
    return Tested(float(found.statistic), float(found.pvalue))


def analysis_of_variance(*groups: Sequence[float]) -> Tested:
    """One-way analysis of variance: whether groups, improvements by method for example, have one common mean.

    Args:
        *groups: the values of each group.

    Raises:
        ValueError: fewer than two groups.
        MissingExtraError: scipy is not installed.
    """
    if len(groups) < 2:
        raise ValueError("an analysis of variance needs at least two groups")
    found = _scipy_stats().f_oneway(*[list(g) for g in groups])
    return Tested(float(found.statistic), float(found.pvalue))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Tested:
    """Spearman's rank correlation, ties by average ranks, with its two-sided probability.

    Args:
        first: one number an item.
        second: another number for the same items.

    Raises:
        ValueError: the two are not of one length, or shorter than 3.
        MissingExtraError: scipy is not installed.
    """
    if len(first) != len(second) or len(first) < 3:
        raise ValueError(f"two vectors of one length of at least 3, not {len(first)} and {len(second)}")
    found = _scipy_stats().spearmanr(list(first), list(second))
    return Tested(float(found.statistic), float(found.pvalue))


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise MissingExtraError("scipy", "evaluate", "a significance test") from None
    return stats
