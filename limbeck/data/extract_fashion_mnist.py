"""Makes the extract of Fashion-MNIST that comes with limbeck.

Run it as ``python -m limbeck.data.extract_fashion_mnist [--output FILE]``.

Of each class it takes the 800 training and 200 test images whose keyed content hash is smallest, in the order of the
original, so the choice depends on nothing but the images. Running it on the published data set gives the same arrays
again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from limbeck import streams
from limbeck.data.fashion_mnist import EXTRACT, Split, find_original
from limbeck.data.hashing import hash_rows
from limbeck.data.subsets import balanced

SIZES: dict[Split, int] = {"train": 8000, "test": 2000}


def extract() -> dict[str, np.ndarray]:
    """Returns the arrays ``x_*``, ``y_*`` and ``original_*``, the numbers of the samples in the published files.

    Raises:
        DataError: Fashion-MNIST is not on this machine.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, size in SIZES.items():
        images, labels = find_original(split)
        hashes = hash_rows(torch.from_numpy(images[:, None].copy()))
        keys = streams.words(0, "fashion-mnist-small", 0, hashes, 1)[:, 0]
        chosen = balanced(torch.from_numpy(labels.astype(np.int64)), len(images), size, keys)
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images[chosen], labels[chosen]
        arrays[f"original_{split}"] = chosen.astype(np.uint16)
    return arrays


def main() -> None:
    """Writes the extract and says how large it is."""
    parser = argparse.ArgumentParser(
        prog="python -m limbeck.data.extract_fashion_mnist", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=EXTRACT, help="file to write (default: the one in the package)")
    output = parser.parse_args().output
    with output.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **extract())
    sys.stdout.write(f"{output}: {output.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
