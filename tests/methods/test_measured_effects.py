"""What methods promise and small data can show, on real samples: lengths and directions of features and gradients."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from limbeck import distill
from limbeck.data.load import load_data
from limbeck.functional.binary_divergences import binary_kl_norm
from limbeck.students.loading import build_model
from limbeck.students.mlp import MultiLayerPerceptron

WIDTH = 16


def read(split: str) -> tuple[Tensor, Tensor]:
    source = load_data("vowel", split=split)
    labels = source.labels()
    assert labels is not None
    return source.fetch(np.arange(len(source)), 0)["inputs"], labels


@pytest.fixture(scope="module")
def spoken() -> tuple[Tensor, Tensor]:
    """Utterances of the training speakers."""
    return read("train")


def perceptron(seed: int, *hidden: int) -> MultiLayerPerceptron:
    torch.manual_seed(seed)
    model = build_model({"name": "mlp", "hidden": list(hidden)}, num_classes=11, input_shape=(9,))
    assert isinstance(model, MultiLayerPerceptron)
    return model


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def teacher(spoken: tuple[Tensor, Tensor]) -> nn.Module:
    model = trained(perceptron(0, 64, WIDTH), *spoken, steps=300)
    assert (model(spoken[0]).argmax(1) == spoken[1]).float().mean() > 0.9
    return model.eval()


def features(model: nn.Module, inputs: Tensor) -> Tensor:
    assert isinstance(model, MultiLayerPerceptron)
    return model.stages(inputs).detach()


def test_nd_loss_makes_features_longer_and_turns_them_to_their_class(
    teacher: nn.Module, spoken: tuple[Tensor, Tensor]
) -> None:
    inputs, labels = spoken
    theirs = features(teacher, inputs)
    means = torch.stack([theirs[labels == c].mean(0) for c in range(11)])
    lengths, towards = [], []
    for method in ("kd", ["kd", {"name": "nd_loss", "weight": 4.0}]):
        student = perceptron(1, 24, WIDTH)
        distill(teacher, student, spoken, method=method, epochs=12, batch_size=64, lr=0.05)
        ours = features(student, inputs)
        lengths.append(ours.norm(dim=1).mean().item())
        towards.append(cosine_similarity(ours, means[labels]).mean().item())
    assert lengths[1] > 1.2 * lengths[0]
    assert towards[1] > towards[0] + 0.05


def test_labels_and_raw_logits_come_to_disagree_in_a_shared_classifier(
    teacher: nn.Module, spoken: tuple[Tensor, Tensor]
) -> None:
    """Why DHKD takes a second classifier: as the labels are fitted, both gradients turn against each other in it."""
    inputs, labels = spoken
    cosines = []
    for steps in (30, 120, 300):
        student = trained(perceptron(2, 24, WIDTH), inputs, labels, steps=steps)
        assert isinstance(student, MultiLayerPerceptron)
        logits, says = student(inputs), teacher(inputs).detach()
        losses = cross_entropy(logits, labels), binary_kl_norm(logits, says, temperature=2.0)
        shared = list(student.head.parameters())
        slopes = [torch.cat([g.flatten() for g in torch.autograd.grad(x, shared, retain_graph=True)]) for x in losses]
        cosines.append(cosine_similarity(*slopes, dim=0).item())
    assert all(later < sooner for sooner, later in pairwise(cosines))
    assert cosines[0] > 0 > cosines[-1]
