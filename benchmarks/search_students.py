"""Time of a training-free search: DisWOT scores a thousand different students for ResNet-56 on 64 images.

python benchmarks/search_students.py [--quick] [--candidates 1000]
"""

from __future__ import annotations

import argparse
import time

import torch
from turns import machine

from limbeck.students.search.evolve import Evolution, Settings
from limbeck.students.search.score import Scorer
from limbeck.students.search.space import residual_space

BAR_SECONDS = 600.0


def main() -> None:
    """Prints seconds for the search and for a thousand candidates at this pace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four candidates on small images")
    parser.add_argument("--candidates", type=int, default=1000)
    arguments = parser.parse_args()
    count, side = (4, 8) if arguments.quick else (arguments.candidates, 32)
    images = torch.rand((64, 3, side, side), generator=torch.Generator().manual_seed(0))
    print(f"resnet56, batch 64, 3x{side}x{side}, {count} students\n{machine()}\n")
    start = time.perf_counter()
    scorer = Scorer("resnet56", images, torch.arange(64) % 10, num_classes=10)
    history = Evolution(residual_space(), scorer, scorer.cost, Settings(candidates=count)).run()
    seconds = time.perf_counter() - start
    thousand = seconds / len(history) * 1000
    verdict = "met" if thousand <= BAR_SECONDS else "missed"
    print(f"scored {len(history)} in {seconds:.1f} s")
    if arguments.quick:
        return  # four students are mostly the library's first calls
    print(f"a thousand take {thousand:.1f} s (at most {BAR_SECONDS:.1f}: {verdict})")


if __name__ == "__main__":
    main()
