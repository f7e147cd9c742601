"""Samples on which student and teacher disagree, with their images and what each model says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.report.arms import Arm
from limbeck.report.figures.classes import class_name
from limbeck.report.png import encode_png
from limbeck.report.sections import Guess, ImageGrid, Picture, PictureGroup

Images = Callable[[np.ndarray], np.ndarray]
"""Gives the images of samples by their ids, as uint8 ``[n, C, H, W]``."""

_A_GROUP = 6


def disagreements(
    student: Arm,
    teacher: Arm,
    images: Images,
    class_names: Sequence[str] = (),
    *,
    other: Arm | None = None,
    each: int = _A_GROUP,
) -> ImageGrid | None:
    """Returns the samples on which student and teacher name different classes, grouped by who is right.

    Within a group those come first on which both are surest of what they say.

    Args:
        student: the distilled student.
        teacher: the teacher.
        images: gives the images of samples.
        class_names: name of each class.
        other: a third model whose answer is shown, such as the student trained alone.
        each: pictures a group.

    Returns None where an arm kept no predictions, they are not of the same samples, or there is no disagreement.
    """
    voices = [arm for arm in (teacher, student, other) if arm is not None]
    found = [arm.predictions for arm in voices]
    first = found[0]
    if first is None or any(p is None or not torch.equal(p.index, first.index) for p in found):
        return None
    beliefs = [p.logits[arm.role].softmax(1) for arm, p in zip(voices, found) if p is not None]
    if len({belief.shape for belief in beliefs}) != 1:
        return None
    gallery = _Gallery([_short(arm) for arm in voices], beliefs, first.labels, first.index, images, class_names)
    groups = tuple(group for title, who in gallery.kinds() if (group := gallery.group(title, who, each)) is not None)
    if not groups:
        return None
    differing = int((beliefs[0].argmax(1) != beliefs[1].argmax(1)).sum())
    text = (
        f"The student ({student.name}) and the teacher name different classes for {differing} of {len(first.labels)} "
        "samples. Shown are those on which both are surest, with the true class in bold."
    )
    return ImageGrid("Where student and teacher disagree", groups, text)


def _short(arm: Arm) -> str:
    return "teacher" if arm.kind == "teacher" else arm.name


class _Gallery:
    """Chooses samples and puts pictures and answers together."""

    def __init__(
        self,
        voices: Sequence[str],
        beliefs: Sequence[Tensor],
        labels: Tensor,
        index: Tensor,
        images: Images,
        class_names: Sequence[str],
    ) -> None:
        self._voices, self._beliefs, self._labels, self._index = voices, beliefs, labels, index
        self._images, self._names = images, class_names
        self._sure, self._says = zip(*(belief.max(1) for belief in beliefs))

    def kinds(self) -> list[tuple[str, Tensor]]:
        """What samples to show: a title, and which samples are of that kind."""
        teacher, student = self._says[0], self._says[1]
        differ = teacher != student
        return [
            ("The teacher is right, the student is not", differ & (teacher == self._labels)),
            ("The student is right, the teacher is not", differ & (student == self._labels)),
            ("Neither is right", differ & (teacher != self._labels) & (student != self._labels)),
        ]

    def group(self, title: str, who: Tensor, each: int) -> PictureGroup | None:
        rows = who.nonzero().flatten()
        if not len(rows):
            return None
        both_sure = torch.minimum(self._sure[0], self._sure[1])[rows]
        chosen = rows[both_sure.argsort(descending=True, stable=True)[:each]]
        pixels = self._images(self._index[chosen].numpy())
        pictures = tuple(self._picture(int(row), image) for row, image in zip(chosen, pixels))
        return PictureGroup(f"{title} ({len(rows)} of {len(self._labels)})", pictures)

    def _picture(self, row: int, image: np.ndarray) -> Picture:
        truth = int(self._labels[row])
        guesses = tuple(
            Guess(who, class_name(self._names, int(says[row])), float(sure[row]), int(says[row]) == truth)
            for who, sure, says in zip(self._voices, self._sure, self._says)
        )
        return Picture(encode_png(image), class_name(self._names, truth), guesses, f"Sample {int(self._index[row])}")
