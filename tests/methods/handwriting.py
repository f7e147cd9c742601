"""Scikit-learn's digits as tensors, and what is trained on them: real samples that take no time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from limbeck.data.load import load_data
from limbeck.students.loading import build_model

SHAPE = (1, 8, 8)


def digits(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns images ``[N, 1, 8, 8]`` and labels of a split: all of them, or ``count`` drawn with a fixed seed."""
    source = load_data("digits", split=split)
    labels = source.labels()
    assert labels is not None
    drawn = np.random.default_rng(0).permutation(len(source))[:count]
    pixels = source.fetch(drawn, 0)["inputs"] / 255
    return (pixels - source.info.mean[0]) / source.info.std[0], labels[torch.from_numpy(drawn)]


def perceptron(seed: int, *hidden: int) -> nn.Module:
    """Returns a multi-layer perceptron of digits with the first weights of a seed."""
    torch.manual_seed(seed)
    return build_model({"name": "mlp", "hidden": list(hidden)}, num_classes=10, input_shape=SHAPE)


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int, lr: float = 0.01) -> nn.Module:
    """Returns the model after full-batch steps on labels, in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Returns the share of samples whose largest logit is that of the label."""
    return (model.eval()(inputs).argmax(1) == labels).float().mean().item()
