"""A multi-layer perceptron, for digits, tables and any other input that is flat or may be flattened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count, Fraction
from limbeck.students.base import register
from limbeck.students.maps import VectorToMap


class HiddenLayer(nn.Module):
    """Linear, ReLU, dropout; ``preact_map`` and ``stage_map`` show both sides of the ReLU as ``[B, D, 1, 1]``."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.preact_map = VectorToMap()
        self.act = nn.ReLU()
        self.stage_map = VectorToMap()
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, out_features]``."""
        preact = self.linear(x)
        active = self.act(preact)
        self.preact_map(preact)  # both maps are for taps: views that nothing else reads
        self.stage_map(active)
        return self.dropout(active)


class MultiLayerPerceptron(nn.Module):
    """Hidden layers, each a stage, and a linear classifier; inputs are flattened.

    Args:
        in_features: number of values a sample.
        hidden: width of each hidden layer.
        num_classes: number of classes.
        dropout: dropout rate after each hidden layer.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        self.stages = nn.Sequential(*(HiddenLayer(a, b, dropout) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], num_classes)
        self.anatomy = Anatomy(
            stages=tuple(f"stages.{i}.stage_map" for i in range(len(hidden))),
            preacts=tuple(f"stages.{i}.preact_map" for i in range(len(hidden))),
            pooled=("head@in",),
            head="head",
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the logits ``[B, num_classes]`` of ``inputs`` ``[B, ...]`` with ``in_features`` values a sample."""
        return self.head(self.stages(inputs.flatten(1)))


@register("mlp", title="Learning representations by back-propagating errors", paper="", year=1986)
def mlp(
    *, num_classes: Count, in_features: Count, hidden: tuple[Count, ...] = (256, 256), dropout: Fraction = 0.0
) -> nn.Module:
    """Returns a multi-layer perceptron; keywords as in :class:`MultiLayerPerceptron`."""
    return MultiLayerPerceptron(in_features, hidden, num_classes, dropout)
