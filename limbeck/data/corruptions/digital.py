"""What processing does: low contrast, elastic deformation, coarse pixels, JPEG compression."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from limbeck.data.corruptions.base import Severity, corruption, levels
from limbeck.data.corruptions.blur import gaussian_blurred
from limbeck.errors import MissingExtraError

_CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
# Parts of the side: strength and smoothness of the local shifts, size of the shift of three points.
_ELASTIC = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
_PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)
_JPEG = (80, 65, 58, 50, 40)


@corruption("contrast", "digital")
def contrast(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Pulls every value towards the mean of its channel."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * _CONTRAST[severity - 1] + mean


@corruption("elastic_transform", "digital", lambda shape: 6 + 2 * shape[1] * shape[2])
def elastic_transform(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Shifts three points at random and the picture with them, then every pixel by a smooth random field."""
    count, _, rows, columns = images.shape
    side = min(rows, columns)
    strength, smoothness, shift = (part * side for part in _ELASTIC[severity - 1])
    moved = _affine(images, (2 * numbers[:, :6].view(count, 3, 2) - 1) * shift)
    field = (2 * numbers[:, 6:].view(count, 2, rows, columns) - 1) * strength
    field = gaussian_blurred(field, smoothness, truncate=3.0, border="reflect")
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    # In grid_sample's coordinates without aligned corners, -1 and 1 are the outer borders of the outer pixels.
    place = torch.stack([(2 * (x + field[:, 1]) + 1) / columns - 1, (2 * (y + field[:, 0]) + 1) / rows - 1], -1)
    return nnf.grid_sample(moved, place, mode="bilinear", padding_mode="reflection", align_corners=False)


def _affine(images: Tensor, shifts: Tensor) -> Tensor:
    """Moves three points of pictures by ``shifts`` ``[n, 3, 2]`` (x, y) pixels, and everything else with them."""
    count, _, rows, columns = images.shape
    middle_x, middle_y, reach = columns // 2, rows // 2, min(rows, columns) // 3
    points = torch.tensor(
        [
            [middle_x + reach, middle_y + reach],
            [middle_x + reach, middle_y - reach],
            [middle_x - reach, middle_y - reach],
        ],
        dtype=torch.float64,
    )
    ones = torch.ones(count, 3, 1, dtype=torch.float64)
    # The inverse map takes the moved points to where they came from.
    inverse = torch.linalg.solve(torch.cat([points + shifts, ones], 2), points.expand(count, 3, 2))
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    m = inverse[:, :, :, None, None]
    source_x, source_y = (m[:, 0, axis] * x + m[:, 1, axis] * y + m[:, 2, axis] for axis in (0, 1))
    place = torch.stack([2 * source_x / (columns - 1) - 1, 2 * source_y / (rows - 1) - 1], -1)
    return nnf.grid_sample(images, place, mode="bilinear", padding_mode="reflection", align_corners=True)


@corruption("pixelate", "digital")
def pixelate(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Scales down by averaging over boxes and up again by repeating pixels."""
    small = levels(images)
    for axis in (3, 2):
        side = images.shape[axis]
        small = _resized(small, box_matrix(side, int(side * _PIXELATE[severity - 1])), axis)
    for axis in (3, 2):
        small = _resized(small, box_matrix(small.shape[axis], images.shape[axis]), axis)
    return small / 255


def _resized(images: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Resizes an axis of pictures of whole levels; a mean half-way between two levels is rounded up."""
    resized = images @ matrix.T if axis == 3 else matrix @ images
    return (resized + 0.5 + 1e-9).floor()


def box_matrix(side: int, target: int) -> Tensor:
    """Returns the ``[target, side]`` float64 matrix that resizes a line of pixels by a box filter.

    A pixel counts whole where its middle lies in the box, and not at all elsewhere.
    """
    scale = side / target
    reach = max(scale, 1.0) / 2
    matrix = np.zeros((target, side))
    for row in range(target):
        middle = (row + 0.5) * scale
        first, last = max(math.floor(middle - reach + 0.5), 0), min(math.floor(middle + reach + 0.5), side)
        places = np.arange(first, last)
        offset = (places - middle + 0.5) / max(scale, 1.0)
        chosen = places[(offset > -0.5) & (offset <= 0.5)]
        matrix[row, chosen] = 1 / len(chosen)
    return torch.from_numpy(matrix)


@corruption("jpeg_compression", "digital")
def jpeg_compression(images: Tensor, numbers: Tensor, severity: Severity) -> Tensor:
    """Saves the picture as a JPEG file of low quality and reads it again.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    pillow = _pillow()
    pixels = levels(images).byte().permute(0, 2, 3, 1).numpy()
    read = []
    for pixel in pixels:
        file = io.BytesIO()
        pillow.fromarray(pixel if pixel.shape[2] == 3 else pixel[:, :, 0]).save(
            file, "JPEG", quality=_JPEG[severity - 1]
        )
        read.append(np.asarray(pillow.open(file)).reshape(pixel.shape))
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).double() / 255


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "images", "JPEG compression") from None
    return Image
