"""PNG files from arrays of pixels, without an imaging library."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns a PNG file.

    Args:
        pixels: uint8 ``[C, H, W]`` with one channel (grey) or three (red, green, blue).

    Raises:
        ValueError: the array is of another kind.

    Reference:
        W3C Recommendation, Portable Network Graphics Specification: signature, IHDR, IDAT with filter type 0, IEND.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"pixels should be uint8 [1 or 3, H, W], not {pixels.dtype} {pixels.shape}")
    channels, height, width = pixels.shape
    rows = pixels.transpose(1, 2, 0).reshape(height, width * channels)
    unfiltered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, _GREY if channels == 1 else _RGB, 0, 0, 0)
    content = zlib.compress(unfiltered.tobytes(), 9)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def data_uri(png: bytes) -> str:
    """Returns a PNG file as the address of an image inside a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
