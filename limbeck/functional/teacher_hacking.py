"""Whether a student that comes ever closer to its teacher moves away from the truth meanwhile.

The teacher is a *proxy* of what is wanted; an *oracle*, or held-out text, is the *golden* standard. Distances of
sequence models are those of whole sequences, in nats a sequence.
Reference: "On teacher hacking in language model distillation", arXiv 2502.02671.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.log_divergences import forward_kl
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import check_same_shape


@full_precision
def sequence_divergence(reference_logits: Tensor, logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Forward KL of sequences, given what was drawn from the reference: :math:`\sum_t \mathrm{KL}(p_t \| q_t)`.

    By the chain rule the mean over sequences :math:`y \sim p` is :math:`\mathrm{KL}(p(y) \| q(y))`. Each next token is
    summed over and not drawn, so the estimate varies less than that of :func:`sequence_log_ratio`. For the reverse
    divergence change the places of both and draw from the other model.

    Args:
        reference_logits: ``[B, T, V]`` of the model that wrote the sequences.
        logits: ``[B, T, V]`` of the model that is compared with it, at the same places.
        mask: ``[B, T]`` bool, the places that were written, that of the end included; all when None.

    Returns:
        ``[B]`` nats a sequence.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> logits = torch.randn(2, 3, 5)
        >>> sequence_divergence(logits, logits + 1.0).abs().max().item() < 1e-6
        True
    """
    check_same_shape(reference_logits, logits, "the logits of both models")
    tokens = forward_kl(reference_logits.log_softmax(-1), logits.log_softmax(-1)).sum(-1)
    return _summed(tokens, mask)


@full_precision
def sequence_log_ratio(
    reference_logits: Tensor, logits: Tensor, tokens: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    r"""Log-probability ratio of drawn sequences, :math:`\log p(y) - \log q(y)`.

    Its mean over sequences :math:`y \sim p` estimates :math:`\mathrm{KL}(p \| q)` without bias; single ones may be
    negative.

    Args:
        reference_logits: ``[B, T, V]`` of the model that wrote the sequences.
        logits: ``[B, T, V]`` of the model that is compared with it.
        tokens: ``[B, T]`` the token written at each place; any number where ``mask`` is False.
        mask: ``[B, T]`` bool; all when None.

    Returns:
        ``[B]`` nats a sequence.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(reference_logits, logits, "the logits of both models")
    chosen = (tokens if mask is None else tokens.masked_fill(~mask, 0)).unsqueeze(-1)
    ours, theirs = (x.log_softmax(-1).gather(-1, chosen).squeeze(-1) for x in (reference_logits, logits))
    return _summed(ours - theirs, mask)


def _summed(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return (tokens if mask is None else tokens.masked_fill(~mask, 0.0)).sum(-1)


class PowerLaw(NamedTuple):
    """A power law ``value = exp(intercept) * epoch ** exponent`` fitted to the beginning of a curve.

    Attributes:
        exponent: slope of the line in a double-logarithmic drawing.
        intercept: its height at epoch 1, natural logarithm.
        deviations: ``[E]`` logarithm of the value minus that of the law; NaN where a value is not positive.
    """

    exponent: float
    intercept: float
    deviations: Tensor


def power_law(values: Tensor, *, fit_points: int | None = None) -> PowerLaw:
    """Fits a power law of the epoch to the first points of a curve, and says how far all points are from it.

    Without teacher hacking the distance to the teacher follows such a law; a departure needs no oracle to be seen.

    Args:
        values: ``[E]`` after epoch 1, 2, ..., E.
        fit_points: how many points are fitted, those that are not positive left out; the first half, and at least
            two, when None.

    Raises:
        ValueError: fewer than two of the points to fit are positive.

    Example:
        >>> round(power_law(torch.tensor([8.0, 2.0, 8 / 9, 0.5])).exponent, 9)
        -2.0
    """
    points = max(len(values) // 2, 2) if fit_points is None else fit_points
    positive = values > 0
    y = torch.where(positive, values.double(), torch.nan).log()
    x = torch.arange(1, len(values) + 1, dtype=torch.float64).log()
    fitted = positive & (torch.arange(len(values)) < points)
    if int(fitted.sum()) < 2:
        raise ValueError("a power law needs at least two positive values to be fitted to")
    centred = x[fitted] - x[fitted].mean()
    exponent = (centred * y[fitted]).sum() / centred.square().sum()
    intercept = y[fitted].mean() - exponent * x[fitted].mean()
    return PowerLaw(float(exponent), float(intercept), y - intercept - exponent * x)


class Turn(NamedTuple):
    """What a pair of curves shows.

    Attributes:
        hacking: the golden curve has turned for the worse while the proxy went on to improve.
        best: number of the point at which the golden curve is lowest, from 0.
        rise: how far it ends above that point, as a part of the value there.
    """

    hacking: bool
    best: int
    rise: float


def teacher_hacking(proxy: Tensor, golden: Tensor, *, tolerance: float = 0.01) -> Turn:
    """Says whether a student still improves on the proxy while it gets worse on the golden standard.

    That is: the golden curve was lowest before its end, ends more than ``tolerance`` above, and the proxy is lower at
    the end than it was there. Scaling either curve by a positive number changes nothing.

    Args:
        proxy: ``[E]`` distance to the teacher after each epoch, on held-out prompts.
        golden: ``[E]`` distance to the oracle, or loss on held-out text.
        tolerance: rise that counts, as a part of the lowest value.

    Raises:
        ValueError: the curves are empty, not of one length, or not finite.

    Example:
        >>> teacher_hacking(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 2.0, 2.5]))
        Turn(hacking=True, best=1, rise=0.25)
    """
    check_same_shape(proxy, golden, "proxy and golden curve")
    if proxy.dim() != 1 or not len(proxy) or not bool((proxy.isfinite() & golden.isfinite()).all()):
        raise ValueError("proxy and golden curve should be vectors of finite numbers with at least one point")
    best = int(golden.argmin())
    lowest, last = golden.double()[best], golden.double()[-1]
    gap = float(last - lowest)
    hacking = gap > tolerance * abs(float(lowest)) and bool(proxy[-1] < proxy[best])
    return Turn(hacking, best, gap / abs(float(lowest)) if lowest else (torch.inf if gap else 0.0))
