"""The sections of a report that go beyond accuracy; each is left out where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from limbeck.data.corruptions import corrupt, corruptions
from limbeck.data.corruptions.base import Severity, check_shape
from limbeck.errors import DataError, MissingExtraError, RecipeError
from limbeck.evaluate import DEFAULT, evaluations, measures
from limbeck.evaluate.paired import Paired, compare
from limbeck.report.arms import Arm
from limbeck.report.comparison import alone, best, results_table
from limbeck.report.disagreement import Images
from limbeck.report.figures.corruptions import accuracy_by_kind, by_kind, by_severity, kind_name
from limbeck.report.figures.paired import differences
from limbeck.report.figures.palette import palette
from limbeck.report.png import encode_png
from limbeck.report.sections import Figures, ImageGrid, Picture, PictureGroup, Section

_SHOWN = 8
_TABLES = {
    "Certainty and classes": ("bootstrap", "classes"),
    "Robustness": ("corruptions", "robustness_attacks", "ood"),
    "Privacy": ("membership",),
    "Size and memory": ("int8", "memory"),
}
_SEVERITY: Severity = 3


def beyond_sections(arms: Sequence[Arm], images: Images | None = None) -> list[Section]:
    """Returns what was measured beyond accuracy: paired tests, robustness with its pictures, privacy, size.

    Args:
        arms: what is compared.
        images: gives images of the test data by the samples' ids; None where there are none to show.
    """
    known: list[Section | None] = [
        _paired(arms),
        *_tables(arms),
        _robustness(arms),
        _pictures(arms, images) if images is not None else None,
    ]
    return [section for section in known if section is not None]


def _tables(arms: Sequence[Arm]) -> list[Section | None]:
    """Tables of what the overview does not hold, in groups that fit a page."""
    grouped = {name for names in _TABLES.values() for name in names}
    tables = {**_TABLES, "Further measures": [n for n in evaluations if n not in grouped and n not in DEFAULT]}
    # An empty choice of measures stands for the default ones.
    return [results_table(title, arms, found) for title, names in tables.items() if (found := measures(names))]


def _paired(arms: Sequence[Arm]) -> Figures | None:
    reference = alone(arms)
    if reference is None or reference.predictions is None:
        return None
    found: list[tuple[Arm, Paired]] = []
    for arm in arms:
        if arm is reference or arm.kind == "teacher" or arm.predictions is None:
            continue
        try:
            roles = (arm.role, reference.role)
            found.append((arm, compare(arm.predictions, reference.predictions, roles=roles)))
        except (DataError, MissingExtraError):
            # Other samples, other classes or no scipy: there is no paired test, and nothing else depends on it.
            continue
    figure = differences(reference, sorted(found, key=lambda p: -p[1].accuracy[0])[:_SHOWN], palette(arms))
    return None if figure is None else Figures("Against " + reference.name, (figure,))


def _robustness(arms: Sequence[Arm]) -> Figures | None:
    looks = palette(arms)
    few = [arm for arm in arms if accuracy_by_kind(arm)][:_SHOWN]
    drawn = tuple(f for f in (by_severity(few, looks), by_kind(few, looks)) if f is not None)
    return Figures("Robustness to corruptions", drawn) if drawn else None


def _pictures(arms: Sequence[Arm], images: Images) -> ImageGrid | None:
    """One test image under every kind that was measured, with the accuracy of the student under it."""
    student = best(arms, "distilled") or alone(arms)
    rates = accuracy_by_kind(student) if student is not None else {}
    if student is None or student.predictions is None or not rates:
        return None
    index = student.predictions.index[:1].numpy()
    pixels = torch.from_numpy(images(index).copy()).float() / 255
    try:
        check_shape(tuple(pixels.shape[1:]))
    except RecipeError:
        return None
    shown = [Picture(encode_png(_bytes(pixels)), "as it is", (), f"Sample {int(index[0])}")]
    for kind in sorted(rates, key=lambda k: -rates[k]):
        # Numbers of no stream: the picture illustrates the kind and is none of those that were judged.
        draws = corruptions[kind].part.draws((pixels.shape[1], pixels.shape[2], pixels.shape[3]))
        numbers = torch.rand(1, draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        changed = corrupt(pixels, kind, _SEVERITY, numbers)
        shown.append(Picture(encode_png(_bytes(changed)), f"{kind_name(kind)}: {rates[kind]:.0%}", (), "Corrupted"))
    group = PictureGroup(f"Severity {_SEVERITY} of 5, with the accuracy of {student.name} under all", tuple(shown))
    return ImageGrid("What the corruptions look like", (group,))


def _bytes(images: torch.Tensor) -> np.ndarray:
    return (images[0] * 255).round().byte().numpy()
