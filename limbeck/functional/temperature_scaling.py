"""The one temperature that makes a trained classifier's probabilities fit best."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.functional.metrics import checked_logits

_COLDEST, _HOTTEST = 1e-3, 1e3
_HALVINGS = 100


def optimal_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature at which the likelihood of the labels is highest, within [0.001, 1000].

    Dividing logits by it leaves every decision as it was. The negative log-likelihood is convex in the inverse
    temperature, whose best value is where the mean logit of the label equals the mean logit expected under the
    predicted distribution; it is found by halving an interval, so there is nothing to tune and no local minimum.
    Choose it on other samples than those on which the result is judged.
    Reference: Guo et al., "On calibration of modern neural networks", arXiv 1706.04599.

    Args:
        logits: ``[N, C]``; a class may be excluded by ``-inf``.
        labels: ``[N]`` class indices.

    Raises:
        ValueError: shapes do not fit, or a label is out of range.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> temperature = optimal_temperature(logits, torch.tensor([0, 0, 0, 1]))
        >>> round((logits / temperature).softmax(1)[0, 0].item(), 6)  # three of four are right
        0.75
    """
    scores = checked_logits(logits, labels).double()
    scores = scores - scores.max(1, keepdim=True).values
    target = scores.gather(1, labels.long().unsqueeze(1)).mean()
    finite = scores.masked_fill(scores == -torch.inf, 0.0)
    low, high = math.log(1 / _HOTTEST), math.log(1 / _COLDEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = ((scores * math.exp(middle)).softmax(1) * finite).sum(1).mean()
        low, high = (middle, high) if expected < target else (low, middle)
    return math.exp(-(low + high) / 2)
