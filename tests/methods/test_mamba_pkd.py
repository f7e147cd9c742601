"""Mamba-PKD on real digits: members that learn what the earlier ones left over."""

from __future__ import annotations

from itertools import pairwise

import torch

from limbeck import distill
from limbeck.students.loading import build_model
from limbeck.students.progressive import ProgressiveEnsemble
from methods.handwriting import SHAPE, accuracy, digits, perceptron, trained


def ensemble() -> ProgressiveEnsemble:
    torch.manual_seed(0)
    spec = {"name": "mamba_ensemble", "dims": [4, 4, 4], "patch_size": 2}
    model = build_model(spec, num_classes=10, input_shape=SHAPE)
    assert isinstance(model, ProgressiveEnsemble)
    return model


def test_members_that_learn_one_after_the_other_beat_as_many_that_learn_alone() -> None:
    train, test = digits("train", 300), digits("test")
    teacher = trained(perceptron(0, 128), *digits("train"), steps=100)
    settings = {"batch_size": 50, "optimizer": "adam", "lr": 0.03, "weight_decay": 0.0, "schedule": "constant"}
    staged, alone = ensemble(), ensemble()
    distill(teacher, staged, train, method="mamba_pkd", epochs=30, **settings)
    for member in alone.members:
        distill(teacher, member, train, method="mamba_pkd", epochs=10, **settings)
    grown = [accuracy(staged.prefix(k), *test) for k in (1, 2, 3)]
    apart = [accuracy(ProgressiveEnsemble(list(alone.members)[:k], "mean"), *test) for k in (1, 2, 3)]
    assert all(later > sooner + 0.05 for sooner, later in pairwise(grown))
    assert grown[1] > apart[1]
    assert grown[2] > apart[2] + 0.05
