"""Test-time augmentation: what a model says about several views of a picture, averaged."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.predictions import predict
from limbeck.functional import metrics
from limbeck.functional.focal import average_logits
from limbeck.hyperparameters import Fraction, NonNegative

_DEGREES = 15.0
_CROP = 0.875


def views_of(images: Tensor, *, crop: float = _CROP, degrees: float = _DEGREES) -> Tensor:
    """Returns five views: as it is, mirrored, upside down, the enlarged centre, and turned.

    Args:
        images: ``[B, C, H, W]``.
        crop: side of the centre as a part of the whole, in (0, 1].
        degrees: angle of the turn, anticlockwise; what comes from outside repeats the border.

    Returns:
        ``[5, B, C, H, W]``.
    """
    height, width = images.shape[2:]
    inner = max(round(height * crop), 1), max(round(width * crop), 1)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    centre = images[..., top : top + inner[0], left : left + inner[1]]
    enlarged = interpolate(centre, (height, width), mode="bilinear", align_corners=False)
    return torch.stack([images, images.flip(3), images.flip(2), enlarged, _turned(images, degrees)])


def _turned(images: Tensor, degrees: float) -> Tensor:
    angle, (height, width) = math.radians(degrees), images.shape[2:]
    # In the grid's units, in which a picture is two wide and two high whatever its sides.
    rows = [
        [math.cos(angle), -math.sin(angle) * height / width, 0.0],
        [math.sin(angle) * width / height, math.cos(angle), 0.0],
    ]
    matrix = torch.tensor(rows, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


class FiveViews(nn.Module):
    """A classifier that averages the logits of five views of each picture.

    Args:
        model: the classifier.
        crop: see :func:`views_of`.
        degrees: see :func:`views_of`.
    """

    def __init__(self, model: nn.Module, *, crop: float = _CROP, degrees: float = _DEGREES) -> None:
        super().__init__()
        self.model, self.crop, self.degrees = model, crop, degrees

    def forward(self, images: Tensor) -> Tensor:
        """Returns ``[B, num_classes]``.

        Raises:
            DataError: the inputs are no pictures.
        """
        if images.dim() != 4:
            raise DataError(
                f"test-time augmentation turns images, but inputs have shape {tuple(images.shape[1:])}; leave it out"
            )
        views = views_of(images, crop=self.crop, degrees=self.degrees)
        return average_logits(torch.stack([self.model(view) for view in views]))


@evaluations.register(
    "five_views",
    title="Accuracy of the mean over five views of each picture",
    measures=(
        Measure(
            "five_views.top1", "Accuracy, five views", "fraction", "higher",
            "How often the most likely class is right when the logits of five views are averaged.",
        ),
    ),
)  # fmt: skip
def five_views(subject: Subject, *, crop: Fraction = _CROP, degrees: NonNegative = _DEGREES) -> Results:
    """Returns ``top1`` with the views and ``gain`` over one view, for the live models.

    Args:
        subject: what is judged.
        crop: see :func:`views_of`.
        degrees: see :func:`views_of`.

    Raises:
        DataError: the inputs are no pictures.
    """
    seen = {role: FiveViews(m, crop=crop, degrees=degrees) for role, m in subject.modules.items()}
    found = predict(dict(seen), subject.loader, subject.task, device=subject.device)
    results: dict[str, Results] = {}
    for role, logits in found.logits.items():
        top1 = metrics.accuracy(logits, found.labels).item()
        plain = subject.predictions.logits[role]
        results[role] = {"top1": top1, "gain": top1 - metrics.accuracy(plain, found.labels).item()}
    return {**results["student"], **({"teacher": results["teacher"]} if "teacher" in results else {})}
