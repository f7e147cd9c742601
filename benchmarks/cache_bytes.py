"""Bytes a sample of the top-k teacher cache, against TinyViT's 4 + 4 k: a seed and k pairs of 16-bit numbers.

Caches are really written, with a single view, and every file counts: rows, sample keys, checksums, header.

    python benchmarks/cache_bytes.py [--samples 10000]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.signals import Batch, Signals
from limbeck.teachers.cache import describe, write_cache

CASES = ((10, 10), (10, 5), (100, 10), (1000, 10), (1000, 50), (21841, 100))


class RandomTeacher:
    """Gives random logits over a number of classes."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, batch: Batch) -> Signals:
        """Returns logits that depend on the samples' numbers only."""
        generator = torch.Generator().manual_seed(int(batch["index"][0]))
        return Signals(logits=3 * torch.randn(batch.size, self.classes, generator=generator))

    def start(self) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""

    def fingerprint(self) -> str:
        """Returns the number of classes."""
        return f"random-{self.classes}"


def measure(folder: Path, loader: Loader, classes: int, k: int) -> int:
    """Writes a cache and returns the bytes of its files."""
    write_cache(folder, loader=loader, teacher=RandomTeacher(classes), codec={"name": "topk", "k": k})
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    samples = parser.parse_args().samples
    inputs = torch.arange(samples, dtype=torch.float32).view(-1, 1)
    loader = Loader(as_source((inputs, torch.zeros(samples, dtype=torch.int64))), batch_size=1000, shuffle=False)
    print(f"{samples} samples, one view, everything counted\n")
    print(f"{'classes':>8} {'k':>4} {'bytes a sample':>15} {'TinyViT':>8} {'ratio':>6}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for classes, k in CASES:
            folder = Path(scratch) / f"{classes}-{k}"
            each = measure(folder, loader, classes, k) / samples
            worst = max(worst, each / (4 + 4 * k))
            print(f"{classes:>8} {k:>4} {each:>15.2f} {4 + 4 * k:>8} {each / (4 + 4 * k):>6.3f}")
        print(f"\nlargest ratio {worst:.3f} (bar: at most 1.000)\n\n{describe(folder)}")


if __name__ == "__main__":
    main()
