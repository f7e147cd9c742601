"""Chains of students that learn from students, on real digits: an anchor keeps them near the first teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck import distill
from limbeck.engine.roles import Role
from limbeck.functional import kl
from methods.handwriting import digits, perceptron, trained

GENERATIONS = 5


def distances(teacher: nn.Module, anchor: float, train: tuple[Tensor, Tensor], held: Tensor) -> list[float]:
    """Mean divergence of each generation's answers from the teacher's, in nats, on held-out images."""
    found, parent = [], teacher
    for generation in range(GENERATIONS):
        student = perceptron(generation + 1, 16)
        method = {"name": "recursive_meta_distillation", "anchor": anchor}
        distill(
            teacher, student, train, method=method, roles={"parent": Role(model=parent)}, epochs=25, batch_size=50,
            optimizer="adam", lr=0.01, seed=generation,
        )  # fmt: skip
        with torch.no_grad():
            found.append(kl(student(held), teacher(held)).item())
        parent = student
    return found


def test_generations_without_an_anchor_drift_away_and_an_anchor_holds_them() -> None:
    train, held = digits("train", 300), digits("test")[0]
    teacher = trained(perceptron(0, 64), *digits("train"), steps=30)
    drifting, held_fast = (distances(teacher, anchor, train, held) for anchor in (0.0, 0.5))
    assert drifting[-1] > 1.3 * drifting[0]
    assert held_fast[-1] < 1.15 * held_fast[0]
    assert held_fast[-1] < 0.9 * drifting[-1]
