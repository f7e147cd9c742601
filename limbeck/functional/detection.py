"""How well a score tells two groups of samples apart: seen and unseen ones, known and foreign ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _checked(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    for scores in (positive, negative):
        if scores.dim() != 1 or len(scores) == 0:
            raise ValueError(f"scores should be [N] with at least one sample, not {tuple(scores.shape)}")
        if bool(scores.isnan().any()):
            raise ValueError("a score is NaN")
    kind = torch.promote_types(torch.promote_types(positive.dtype, negative.dtype), torch.float32)
    return positive.to(kind), negative.to(kind)


def auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """Probability that a positive sample scores higher than a negative one, ties counted half: in [0, 1].

    It is the area under the curve of the true against the false positive rate; 0.5 is chance.

    Args:
        positive: ``[P]`` scores of the group that should score high.
        negative: ``[N]`` scores of the other.

    Raises:
        ValueError: a group is empty or a score is NaN.

    Example:
        >>> auroc(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.1])).item()
        0.875
    """
    high, low = _checked(positive, negative)
    ordered = low.sort().values
    below = torch.searchsorted(ordered, high)
    not_above = torch.searchsorted(ordered, high, right=True)
    return ((below + not_above).to(torch.float64).mean() / (2 * len(low))).to(high.dtype)


def false_positive_rate(positive: Tensor, negative: Tensor, *, true_positive_rate: float = 0.95) -> Tensor:
    """Part of the negative samples that pass the threshold which the given part of the positive ones passes.

    A sample passes where it scores at least the threshold, the highest at which enough positive samples do.

    Args:
        positive: ``[P]`` scores of the group that should score high.
        negative: ``[N]`` scores of the other.
        true_positive_rate: part of the positive samples that has to pass, in (0, 1].

    Raises:
        ValueError: a group is empty, a score is NaN or the rate is out of range.
    """
    high, low = _checked(positive, negative)
    return (low >= threshold_at(high, true_positive_rate)).to(high.dtype).mean()


def true_positive_rate(positive: Tensor, negative: Tensor, *, false_positive_rate: float = 0.01) -> Tensor:
    """Part of the positive samples that pass where at most the given part of the negative ones does.

    Reference: Carlini et al., "Membership inference attacks from first principles", arXiv 2112.03570, who ask for it at
    a low rate because a mean over all samples hides a few that are exposed.

    Args:
        positive: ``[P]`` scores of the group that should score high.
        negative: ``[N]`` scores of the other.
        false_positive_rate: part of the negative samples that may pass, in [0, 1).

    Raises:
        ValueError: a group is empty, a score is NaN or the rate is out of range.
    """
    high, low = _checked(positive, negative)
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"a rate lies in [0, 1), not {false_positive_rate}")
    # The first negative sample that must not pass bounds the threshold from below.
    barred = low.sort(descending=True).values[math.floor(false_positive_rate * len(low))]
    return (high > barred).to(high.dtype).mean()


def threshold_at(scores: Tensor, rate: float) -> Tensor:
    """Returns the highest threshold that at least the part ``rate`` of the scores reaches.

    Raises:
        ValueError: the rate is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"a rate lies in (0, 1], not {rate}")
    # A rate such as 0.95 is not exact, and its product with the number of scores may be a little above a whole number.
    needed = max(1, math.ceil(rate * len(scores) - 1e-9))
    return scores.sort(descending=True).values[needed - 1]


def best_threshold(positive: Tensor, negative: Tensor) -> Tensor:
    """Returns the threshold with the largest :func:`advantage`: one of the scores, the highest where several do.

    Args:
        positive: ``[P]`` scores of the group that should score high.
        negative: ``[N]`` scores of the other.
    """
    high, low = _checked(positive, negative)
    candidates = torch.cat([high, low]).unique()
    passing = [1 - torch.searchsorted(s.sort().values, candidates).to(torch.float64) / len(s) for s in (high, low)]
    gain = (passing[0] - passing[1]).flip(0)
    return candidates.flip(0)[gain.argmax()]


def advantage(positive: Tensor, negative: Tensor, *, threshold: Tensor | float | None = None) -> Tensor:
    """True positive rate minus false positive rate: 0 for a guess, 1 where the threshold tells the groups apart.

    With the best threshold of these very samples it is never negative, and above 0 by chance (it is the
    Kolmogorov-Smirnov distance); with a threshold that other samples chose it is unbiased.
    Reference: Yeom et al., "Privacy risk in machine learning", arXiv 1709.01604.

    Args:
        positive: ``[P]`` scores of the group that should score high.
        negative: ``[N]`` scores of the other.
        threshold: what a score has to reach; the best for these samples when None.

    Raises:
        ValueError: a group is empty or a score is NaN.

    Example:
        >>> advantage(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.85]), threshold=0.5).item()
        0.5
    """
    high, low = _checked(positive, negative)
    bar = best_threshold(high, low) if threshold is None else threshold
    return (high >= bar).to(high.dtype).mean() - (low >= bar).to(high.dtype).mean()
