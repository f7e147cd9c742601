"""What HARD's learnt warps bring a student that knows nothing of shifts: the toy of its paper, on real digits.

Digits of 8 x 8 stand in the middle of 16 x 16. The teacher, a convolutional network with a maximum over all places,
does not care where they stand; the student, a perceptron that has seen them in the middle alone, does. Both are judged
on test digits as they are and moved by up to four pixels each way. Arms: KD, KD on digits moved by a pixel, HARD, and
KD on digits moved as far as those of the test, which nobody would know beforehand. Three seeds, last epoch.

    python benchmarks/shifted_digits.py [--quick] [--epochs 60] [--seeds 3]
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from turns import machine, settle

from limbeck import distill
from limbeck.data.load import load_data

REACH = 4
ADAM: dict[str, Any] = {"batch_size": 50, "optimizer": "adam", "lr": 0.002}
KD = {"name": "kd", "temperature": 2.0, "weights": {"ce": 0.0, "kd": 1.0}}
HARD = {"name": "hard", "temperature": 2.0}
ARMS: dict[str, dict[str, Any]] = {
    "KD": {"method": KD},
    "KD, moved by a pixel": {"method": KD, "augment": [{"name": "crop", "padding": 1}]},
    "HARD": {"method": HARD, "transforms": [HARD]},
    "KD, moved as in the test": {"method": KD, "augment": [{"name": "crop", "padding": REACH}]},
}


class Pooled(nn.Module):
    """Three convolutions and a maximum over all places."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        widths = (1, 32, 64, 64)
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits ``[B, 10]``."""
        return self.head(self.layers(inputs).amax((2, 3)))


def perceptron(seed: int) -> nn.Module:
    """Returns the student."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Returns pixels in [0, 1], ``[N, 1, 16, 16]``, and labels."""
    source = load_data("digits", split=split)  # type: ignore[arg-type]
    labels = source.labels()
    assert labels is not None
    pixels = source.fetch(np.arange(len(source)), 0)["inputs"].float() / 255
    return nn.functional.pad(pixels, (REACH,) * 4), labels


def moved(inputs: Tensor) -> Tensor:
    """Returns every digit somewhere else, by the same draws in every call."""
    generator = torch.Generator().manual_seed(5)
    steps = torch.randint(-REACH, REACH + 1, (len(inputs), 2), generator=generator).tolist()
    return torch.stack([image.roll(step, (1, 2)) for image, step in zip(inputs, steps)])


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Returns the share of right answers."""
    return (model.eval()(inputs).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch and one seed: shows that it runs")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    epochs, seeds = (1, 1) if arguments.quick else (arguments.epochs, arguments.seeds)
    settle()
    train, (inputs, labels) = digits("train"), digits("test")
    elsewhere = moved(inputs)
    teacher = Pooled(0)
    distill(None, teacher, train, method="none", epochs=min(epochs, 8), **ADAM)
    print(f"digits moved by up to {REACH} pixels, {epochs} epochs, {seeds} seeds\n{machine()}\n")
    print(f"{'':<26} {'as they are':>16} {'moved':>16}")
    both = [accuracy(teacher, x, labels) for x in (inputs, elsewhere)]
    print(f"{'teacher':<26} {both[0]:>16.3f} {both[1]:>16.3f}")
    for name, how in ARMS.items():
        found = []
        for seed in range(seeds):
            student = perceptron(seed)
            distill(teacher, student, train, seed=seed, epochs=epochs, **how, **ADAM)
            found.append([accuracy(student, x, labels) for x in (inputs, elsewhere)])
        cells = [f"{mean(column):.3f} ± {stdev(column) if seeds > 1 else 0:.3f}" for column in zip(*found)]
        print(f"{name:<26} {cells[0]:>16} {cells[1]:>16}", flush=True)


if __name__ == "__main__":
    main()
