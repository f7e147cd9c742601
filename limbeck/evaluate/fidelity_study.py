"""Fidelity against generalisation: whether students that repeat their teacher more closely gain more by it.

An observation is a distilled student beside the same student trained alone. Its *improvement* is the difference of
their scores. Tests ask whether improvements are above zero and whether methods differ; rank correlations ask what
improvements go along with. Reference: "On the generalization vs fidelity paradox in knowledge distillation",
arXiv 2505.15442.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from limbeck.evaluate.significance import Tested, analysis_of_variance, improvement_test, rank_correlation

_FEWEST = 3
_ROUNDING = 1e-12

QUANTITIES: Mapping[str, str] = {
    "teacher_score": "Score of the teacher",
    "baseline": "Score of the student alone",
    "parameters": "Parameters of the student",
    "agreement": "Agreement with the teacher",
    "on_teacher_errors": "Agreement on the teacher's errors",
    "kl": "KL to the teacher",
    "total_variation": "Total variation to the teacher",
    "bleu": "BLEU with the teacher's text",
}
"""What improvements are held against, by name."""


@dataclass(frozen=True)
class Observation:
    """A distilled student beside the same student trained alone.

    Attributes:
        method: how it was distilled.
        task: what it was trained on.
        cell: teacher, student and settings; runs of one cell differ in the seed alone.
        seed: its seed; None for a mean over seeds.
        score: its score, higher is better.
        improvement: its score minus that of the student alone with the same seed.
        quantities: numbers by the names of :data:`QUANTITIES`, as far as they are known.
    """

    method: str
    task: str
    cell: str
    seed: int | None
    score: float
    improvement: float
    quantities: Mapping[str, float]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of the improvement with a quantity.

    Attributes:
        quantity: name in :data:`QUANTITIES`.
        count: number of observations.
        rho: the correlation.
        p: two-sided probability.
        corrected: the same after Holm's correction for all correlations of the study.
    """

    quantity: str
    count: int
    rho: float
    p: float
    corrected: float


@dataclass(frozen=True)
class Study:
    """What observations show.

    Attributes:
        observations: means over the seeds of each cell and method.
        by_method: t-test that a method's improvements are above 0, by method.
        by_task: the same by task, over all methods.
        between_methods: analysis of variance of the improvements over methods; None where it cannot be done.
        correlations: of the improvement with each quantity that varies.
    """

    observations: tuple[Observation, ...]
    by_method: Mapping[str, Tested]
    by_task: Mapping[str, Tested]
    between_methods: Tested | None
    correlations: tuple[Correlation, ...]


def study(observations: Sequence[Observation]) -> Study:
    """Tests improvements and correlates them with what is known of the students.

    Seeds of one cell and method are averaged before correlations and the analysis of variance: they share everything
    but chance, and would pretend more evidence than there is. The t-tests take such means too where a method or task
    has at least two of them, its seeds otherwise. No run is chosen by its result; to look at the best temperature only
    would inflate all of this.

    Args:
        observations: one a run.

    Raises:
        ValueError: a gain or a score is NaN or infinite.
        MissingExtraError: scipy is not installed.
    """
    if not all(math.isfinite(o.score) and math.isfinite(o.improvement) for o in observations):
        raise ValueError("gains and scores should be finite numbers")
    means = averaged(observations)
    methods = _grouped(means, lambda o: o.method)
    between = [[o.improvement for o in group] for group in methods.values() if len(group) > 1]
    return Study(
        tuple(means),
        _t_tests(observations, means, lambda o: o.method),
        _t_tests(observations, means, lambda o: o.task),
        analysis_of_variance(*between) if len(between) > 1 and any(map(_vary, between)) else None,
        _correlations(means),
    )


def averaged(observations: Sequence[Observation]) -> list[Observation]:
    """Returns one observation for each cell and method: the means over its seeds."""
    found = []
    for group in _grouped(observations, lambda o: json.dumps([o.task, o.method, o.cell])).values():
        names = [n for n in QUANTITIES if all(n in o.quantities for o in group)]
        found.append(
            replace(
                group[0],
                seed=None,
                score=fmean(o.score for o in group),
                improvement=fmean(o.improvement for o in group),
                quantities={name: fmean(o.quantities[name] for o in group) for name in names},
            )
        )
    return found


def _grouped(observations: Iterable[Observation], key: Callable[[Observation], str]) -> dict[str, list[Observation]]:
    groups: dict[str, list[Observation]] = {}
    for observation in observations:
        groups.setdefault(key(observation), []).append(observation)
    return groups


def _t_tests(
    single: Sequence[Observation], means: Sequence[Observation], key: Callable[[Observation], str]
) -> dict[str, Tested]:
    seeds, found = _grouped(single, key), {}
    for name, group in _grouped(means, key).items():
        values = [o.improvement for o in (group if len(group) > 1 else seeds[name])]
        if len(values) > 1 and _vary(values):
            found[name] = improvement_test(values)
    return found


def _correlations(means: Sequence[Observation]) -> tuple[Correlation, ...]:
    found: dict[str, tuple[int, Tested]] = {}
    for name in QUANTITIES:
        pairs = [(o.quantities[name], o.improvement) for o in means if name in o.quantities]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if len(pairs) >= _FEWEST and all(map(_vary, zip(*pairs))):
            found[name] = len(pairs), rank_correlation(*map(list, zip(*pairs)))
    corrected = holm([tested.p for _, tested in found.values()])
    return tuple(
        Correlation(name, count, tested.statistic, tested.p, p)
        for (name, (count, tested)), p in zip(found.items(), corrected)
    )


def _vary(values: Sequence[float]) -> bool:
    """Whether numbers differ by more than rounding, without which a test would be surest of all where it knows nothing.

    Example:
        >>> _vary([0.3, 0.1 + 0.2]), _vary([0.3, 0.31])
        (False, True)
    """
    return max(values) - min(values) > _ROUNDING * max(map(abs, values))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Returns probabilities corrected for how many tests there are, by Holm's step-down method.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(probabilities)), key=lambda n: (math.isnan(probabilities[n]), probabilities[n]))
    corrected, largest = [1.0] * len(probabilities), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(probabilities[place] * (len(probabilities) - rank), 1.0))
        corrected[place] = largest
    return corrected
