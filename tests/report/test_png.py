"""PNG files, read back by Pillow."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from limbeck.report.png import data_uri, encode_png


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 5, 9), (1, 1, 1), (3, 200, 3)])
def test_pixels_survive(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    image.load()
    assert image.mode == ("L" if shape[0] == 1 else "RGB")
    read = np.asarray(image).reshape(*shape[1:], shape[0]).transpose(2, 0, 1)
    np.testing.assert_array_equal(read, pixels)


def test_the_address_holds_the_file() -> None:
    png = encode_png(np.zeros((1, 2, 2), np.uint8))
    scheme, _, content = data_uri(png).partition(",")
    assert scheme == "data:image/png;base64"
    assert base64.b64decode(content) == png


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 2, 2), np.float32),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((1, 0, 4), np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_png(pixels)
