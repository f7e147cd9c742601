"""What recorded comparisons say about a method, and how close they are to what somebody wants."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from limbeck.bench.table import Row
from limbeck.data.source import datasets

_SAME, _SIBLING, _ALIKE, _OTHER = 1.0, 0.9, 0.5, 0.25
_UNKNOWN_SPREAD = 0.01
BASELINES = ("none", "label_smoothing")


@dataclass(frozen=True)
class Wish:
    """What somebody wants to distil.

    Attributes:
        teacher: the teacher's model.
        student: the student's model.
        data: the data set.
        samples: training samples; None for all there are.
        epochs: epochs; None where that is open.
    """

    teacher: str
    student: str
    data: str
    samples: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Comparison:
    """A method in one recorded comparison.

    Attributes:
        suite: name of the comparison.
        data: its data set, with the number of samples where it was limited.
        teacher: its teacher.
        student: its student.
        epochs: its epochs.
        seeds: runs of the method that share a seed with plain KD.
        gain: mean accuracy over plain KD, seed by seed.
        error: standard error of that mean; a guess from one point of accuracy where there is one seed.
        gain_over_none: mean accuracy over the student without distillation; NaN where none was run.
        closeness: how close the comparison is to the wish, in (0, 1].
    """

    suite: str
    data: str
    teacher: str
    student: str
    epochs: int
    seeds: int
    gain: float
    error: float
    gain_over_none: float
    closeness: float


@dataclass(frozen=True)
class Evidence:
    """What all comparisons together say about one arm.

    Attributes:
        arm: its label in the comparisons.
        method: its method.
        comparisons: where it took part, closest to the wish first.
    """

    arm: str
    method: str
    comparisons: tuple[Comparison, ...]

    @property
    def gain(self) -> float:
        """Mean accuracy over plain KD, comparisons weighted by how close they are."""
        return _weighted(self.comparisons, [c.gain for c in self.comparisons])

    @property
    def error(self) -> float:
        """Standard error of :attr:`gain`."""
        weights = [c.closeness for c in self.comparisons]
        squares = sum((w * c.error) ** 2 for w, c in zip(weights, self.comparisons))
        return math.sqrt(squares) / sum(weights)

    @property
    def score(self) -> float:
        """What the method is ranked by: the gain that is left when its standard error is taken off.

        Few seeds and a lucky mean so do not win over a smaller gain that is certain. Far comparisons count less: their
        gain shrinks towards that of plain KD, 0.
        """
        nearest = max(c.closeness for c in self.comparisons)
        return nearest * (self.gain - self.error)


def evidence_for(wish: Wish, rows: Iterable[Row]) -> list[Evidence]:
    """Returns what comparisons say about every arm that was run beside plain KD, best score first.

    Args:
        wish: what is wanted.
        rows: recorded runs of comparisons.
    """
    suites: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        suites.setdefault((row.suite, row.data, row.teacher, row.student), []).append(row)
    found: dict[str, list[Comparison]] = {}
    methods: dict[str, str] = {}
    for runs in suites.values():
        for arm, own in _by_arm(runs).items():
            comparison = _compared(wish, own, _by_arm(runs))
            if comparison is not None:
                found.setdefault(arm, []).append(comparison)
                methods[arm] = own[0].method
    evidence = [
        Evidence(arm, methods[arm], tuple(sorted(compared, key=lambda c: -c.closeness)))
        for arm, compared in found.items()
    ]
    return sorted(evidence, key=lambda e: (-e.score, e.arm))


def _by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    return arms


def _compared(wish: Wish, own: Sequence[Row], arms: Mapping[str, Sequence[Row]]) -> Comparison | None:
    gains = _gains(own, arms.get("kd", ()))
    if not gains:
        return None
    over_none = _gains(own, arms.get("none", ()))
    row = own[0]
    spread = stdev(gains) if len(gains) > 1 else _UNKNOWN_SPREAD
    # Plain KD differs from itself by nothing, so its certainty is that of its own seeds.
    if row.arm == "kd":
        spread = 0.0
    return Comparison(
        suite=row.suite,
        data=row.data,
        teacher=row.teacher,
        student=row.student,
        epochs=row.epochs,
        seeds=len(gains),
        gain=fmean(gains),
        error=spread / math.sqrt(len(gains)),
        gain_over_none=fmean(over_none) if over_none else math.nan,
        closeness=closeness(wish, row),
    )


def _gains(own: Sequence[Row], base: Sequence[Row]) -> list[float]:
    same = {(row.seed, row.fold): row.accuracy for row in base}
    return [row.accuracy - same[row.seed, row.fold] for row in own if (row.seed, row.fold) in same]


def closeness(wish: Wish, row: Row) -> float:
    """Returns how close a recorded run is to a wish: the product of data, pair and budget, in (0, 1].

    These are judgements, not measurements: the same data and models count 1, the same family of models or another
    extract of the data somewhat less, what has only the kind of task in common a quarter.
    """
    return _data_closeness(wish, row) * _pair_closeness(wish, row) * _budget_closeness(wish, row)


def _data_closeness(wish: Wish, row: Row) -> float:
    name = data_name(row)
    if name == wish.data:
        return _SAME
    if _whole(name) == _whole(wish.data):
        return _SIBLING
    return _OTHER


def _pair_closeness(wish: Wish, row: Row) -> float:
    if (wish.teacher, wish.student) == (row.teacher, row.student):
        return _SAME
    one_family = [family(t) == family(s) for t, s in ((wish.teacher, wish.student), (row.teacher, row.student))]
    if family(wish.student) == family(row.student) and family(wish.teacher) == family(row.teacher):
        return _SIBLING
    # Whether both models are of one family decides which methods can work at all.
    return _ALIKE if one_family[0] == one_family[1] else _OTHER


def _budget_closeness(wish: Wish, row: Row) -> float:
    """Halves with every factor of 16 in the number of samples seen during training."""
    logs = [math.log2(wish.epochs / row.epochs)] if wish.epochs else []
    recorded = samples_of(row)
    if wish.samples and recorded:
        logs.append(math.log2(wish.samples / recorded))
    return 0.5 ** (sum(abs(v) for v in logs) / 4)


def family(model: str) -> str:
    """Returns what models of several sizes have in common in their names.

    Example:
        >>> family("resnet20"), family("resnet8x4"), family("wrn_40_2"), family("timm:vit_tiny")
        ('resnet', 'resnet', 'wrn', 'timm:vit')
    """
    return re.split(r"[\d_]", model, maxsplit=1)[0] or model


def data_name(row: Row) -> str:
    """Returns the name of the data set of a recorded run."""
    return row.data.partition(" (")[0]


def samples_of(row: Row) -> int | None:
    """Returns to how many training samples a recorded run was limited; None where it was not."""
    found = re.search(r"\((\d+) samples\)", row.data)
    return int(found[1]) if found else None


def _whole(name: str) -> str:
    """The data set that a named one is an extract of; names tell, as nothing should be loaded for this."""
    plain = name.removesuffix("-small")
    return plain if plain in datasets else name


def _weighted(comparisons: Sequence[Comparison], values: Sequence[float]) -> float:
    weights = [c.closeness for c in comparisons]
    return sum(w * v for w, v in zip(weights, values)) / sum(weights)
