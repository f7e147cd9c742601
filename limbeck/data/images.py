"""Image files to tensors, by pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import DataError, MissingExtraError

Resize = int | tuple[int, int] | None
Mode = Literal["rgb", "grey"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"})


def require_pillow(purpose: str) -> Any:
    """Returns the module ``PIL.Image``.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "images", purpose) from None
    return Image


def decode_image(origin: bytes | Path, called: str, *, mode: Mode = "rgb", resize: Resize = None) -> Tensor:
    """Returns an image as uint8 ``[C, H, W]``.

    Args:
        origin: a file, or its bytes.
        called: what to call it in errors.
        mode: ``rgb`` for three channels, ``grey`` for one.
        resize: a number scales the shorter side to it and cuts the middle square; ``(height, width)`` scales to
            exactly that. Bilinear with antialiasing.

    Raises:
        DataError: it is not there, is no image, or is damaged.
    """
    image_module = require_pillow("reading images")
    try:
        with image_module.open(io.BytesIO(origin) if isinstance(origin, bytes) else origin) as opened:
            picture = opened.convert("RGB" if mode == "rgb" else "L")
    except (OSError, SyntaxError, ValueError, EOFError, image_module.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {called}: {error}") from error
    return image_tensor(picture, mode=mode, resize=resize)


def image_tensor(picture: Any, *, mode: Mode = "rgb", resize: Resize = None) -> Tensor:
    """Returns a pillow image as uint8 ``[C, H, W]``; arguments as for :func:`decode_image`."""
    picture = picture.convert("RGB" if mode == "rgb" else "L")
    if resize is not None:
        picture = _resized(picture, resize)
    array = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def _resized(picture: Any, resize: int | tuple[int, int]) -> Any:
    bilinear = require_pillow("resizing images").Resampling.BILINEAR
    if not isinstance(resize, int):
        return picture.resize((resize[1], resize[0]), bilinear)
    width, height = picture.size
    scale = resize / min(width, height)
    width, height = max(resize, round(width * scale)), max(resize, round(height * scale))
    left, top = (width - resize) // 2, (height - resize) // 2
    return picture.resize((width, height), bilinear).crop((left, top, left + resize, top + resize))
