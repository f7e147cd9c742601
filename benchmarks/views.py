"""Time of augmenting one batch: limbeck's views against the same crop and flip, one sample after the other.

Both run interleaved in one process on one thread; the table gives medians in milliseconds and the ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.data import DataInfo, View

BATCH, PADDING, REPEATS = 128, 4, 200


def one_by_one(images: Tensor, index: np.ndarray, mean: Tensor, std: Tensor) -> Tensor:
    """Crop with padding, flip and normalise, sample by sample, with the numbers that the view draws."""
    place = streams.uniform(0, "view/inputs/0/crop", 0, index, 2)
    mirror = streams.uniform(0, "view/inputs/1/flip", 0, index, 1)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    side = images.shape[-1]
    seen = []
    for i, picture in enumerate(padded):
        top, left = int(place[i, 0] * (2 * PADDING + 1)), int(place[i, 1] * (2 * PADDING + 1))
        window = picture[:, top : top + side, left : left + side]
        seen.append((window.flip(2) if mirror[i, 0] < 0.5 else window).float().div_(255).sub_(mean).div_(std))
    return torch.stack(seen)


def median_times(*functions: Callable[[], object]) -> list[float]:
    """Returns the median time of each function in milliseconds, run in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(REPEATS + 20):
        for own, function in zip(times, functions):
            begin = time.perf_counter()
            function()
            if repeat >= 20:
                own.append(time.perf_counter() - begin)
    return [1000 * float(np.median(own)) for own in times]


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    for channels, side in ((1, 28), (3, 32)):
        images = torch.randint(0, 256, (BATCH, channels, side, side), dtype=torch.uint8)
        index = np.random.default_rng(0).permutation(60_000)[:BATCH]
        mean, std = torch.full((channels, 1, 1), 0.5), torch.full((channels, 1, 1), 0.25)
        info = DataInfo("noise", 10, (channels, side, side), (0.5,) * channels, (0.25,) * channels)
        view = View([{"name": "crop", "padding": PADDING}, "flip"], info)
        torch.testing.assert_close(view(images, index, seed=0, epoch=0), one_by_one(images, index, mean, std))
        ours, loop = median_times(
            lambda: view(images, index, seed=0, epoch=0),  # noqa: B023
            lambda: one_by_one(images, index, mean, std),  # noqa: B023
        )
        shape = f"{BATCH}x{channels}x{side}x{side}"
        print(f"{shape} crop+flip+normalise: {ours:.3f} ms, one by one {loop:.3f} ms, ratio {ours / loop:.3f}")
        for policy in ("strong", "randaugment", "color_jitter", "rotate", "cutout"):
            other = View([policy], info)
            (needed,) = median_times(lambda: other(images, index, seed=0, epoch=0))  # noqa: B023
            print(f"  {policy}: {needed:.3f} ms")


if __name__ == "__main__":
    main()
