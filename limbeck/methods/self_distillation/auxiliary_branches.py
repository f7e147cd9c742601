"""Branches behind the stages of a network, which end in features of one width and in logits of their own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from limbeck.methods.exit_heads import as_map


def _unit(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class AuxiliaryBranch(nn.Module):
    """Convolutions from one stage's shape to the next up to the last, average pooling, a linear classifier.

    Args:
        features: features of this stage and of all deeper ones from a dry run; only shapes are used.
        width: width of the pooled features.
        num_labels: labels of the classifier.
    """

    def __init__(self, features: Sequence[Tensor], width: int, num_labels: int) -> None:
        super().__init__()
        maps = [as_map(tensor) for tensor in features]
        units = [
            _unit(shallow.shape[1], deep.shape[1], max(round(shallow.shape[2] / deep.shape[2]), 1))
            for shallow, deep in pairwise(maps)
        ]
        # The last unit gives the common width; the deepest stage has only that one.
        self.layers = nn.Sequential(*units, _unit(maps[-1].shape[1], width, 1))
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pooled features ``[B, width]`` and the logits ``[B, num_labels]``."""
        pooled = self.layers(as_map(features).to(self.classifier.weight.dtype)).mean((2, 3))
        return pooled, self.classifier(pooled)
