"""The divergences that come with limbeck, as contributions of classes from log-probabilities of both sides.

Each takes ``log_p`` of the target (teacher) and ``log_q`` of the approximation (student), both ``[..., V]``, and
returns ``[..., V]``; see :mod:`limbeck.functional.divergence_registry` for what that gives. A ``_slope`` is the
derivative of the sum by ``log_q``, up to a multiple of ``q``, which a softmax does not feel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.functional.divergence_registry import register_divergence


def times(mass: Tensor, factor: Tensor) -> Tensor:
    """Returns ``mass * factor``, and 0 without gradient to ``factor`` where there is no mass, whatever it is there."""
    # Replaced before the product: where both logarithms are -inf, their difference would make the mass's gradient NaN.
    return mass * torch.where(mass > 0, factor, mass.new_zeros(()))


def _in_unit_interval(value: float, what: str, *, closed: bool = True) -> None:
    if not (0.0 <= value <= 1.0 if closed else 0.0 < value < 1.0):
        raise ValueError(f"{what} is {value}, but should be in {'[0, 1]' if closed else '(0, 1)'}")


def log_mixture(log_p: Tensor, log_q: Tensor, weight: float | Tensor) -> Tensor:
    """Returns ``log(weight * p + (1 - weight) * q)``; 0 without gradient where nothing is.

    Taken as a log-sum, so that it is exact where a probability is below the smallest number of its type.

    Args:
        log_p: ``[..., V]``.
        log_q: ``[..., V]``.
        weight: in [0, 1], or a tensor ``[..., 1]`` of weights in (0, 1).
    """
    if isinstance(weight, Tensor):
        first, second = log_p + weight.log(), log_q + torch.log1p(-weight)
    elif weight in (0.0, 1.0):
        return log_p if weight else log_q
    else:
        first, second = log_p + math.log(weight), log_q + math.log1p(-weight)
    empty = torch.isneginf(first) & torch.isneginf(second)
    return torch.logaddexp(first.masked_fill(empty, 0.0), second.masked_fill(empty, 0.0)).masked_fill(empty, 0.0)


def _forward_kl_slope(log_p: Tensor, log_q: Tensor) -> Tensor:
    return -log_p.exp()


@register_divergence("forward_kl", slope=_forward_kl_slope, convex=True, cross_entropy=True)
def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Contributions to :math:`\mathrm{KL}(p \| q) = \sum p \log(p/q)`, which covers the modes of the target."""
    return times(log_p.exp(), log_p - log_q)


@register_divergence("cross_entropy", slope=_forward_kl_slope, cross_entropy=True)
def cross_entropy_with_target(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Contributions to :math:`-\sum p \log q`: the gradient of forward KL, but the target's entropy at equality."""
    return times(log_p.exp(), -log_q)


def _reverse_kl_slope(log_p: Tensor, log_q: Tensor) -> Tensor:
    q = log_q.exp()
    return times(q, log_q - log_p) + q


@register_divergence("reverse_kl", slope=_reverse_kl_slope, convex=True)
def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Contributions to :math:`\mathrm{KL}(q \| p) = \sum q \log(q/p)`, which seeks modes of the target."""
    return times(log_q.exp(), log_q - log_p)


def _jeffreys_slope(log_p: Tensor, log_q: Tensor, *, forward: float = 0.5) -> Tensor:
    return forward * _forward_kl_slope(log_p, log_q) + (1 - forward) * _reverse_kl_slope(log_p, log_q)


@register_divergence("jeffreys", slope=_jeffreys_slope, convex=True)
def jeffreys(log_p: Tensor, log_q: Tensor, *, forward: float = 0.5) -> Tensor:
    r"""Contributions to :math:`\lambda\,\mathrm{KL}(p\|q) + (1-\lambda)\,\mathrm{KL}(q\|p)` with ``forward`` as weight.

    Twice its value at 1/2 is Jeffreys' divergence.
    """
    _in_unit_interval(forward, "forward")
    return forward * forward_kl(log_p, log_q) + (1 - forward) * reverse_kl(log_p, log_q)


_NEAR = 0.01
"""Mixture weights nearer than this to 0 or 1 are computed from ratios, which a division by the weight does not blur."""


def _jsd_slope(log_p: Tensor, log_q: Tensor, *, beta: float = 0.5, normalized: bool = False) -> Tensor:
    if beta == 0.0:
        return _forward_kl_slope(log_p, log_q)
    if beta == 1.0:
        return _reverse_kl_slope(log_p, log_q)
    scale = 1 / beta if normalized else 1 - beta  # (1 - beta) / (beta (1 - beta)) and (1 - beta)
    q = log_q.exp()
    if min(beta, 1 - beta) < _NEAR:
        return -scale * times(q, _log_ratio(log_p, log_q, beta))
    return scale * times(q, log_q - log_mixture(log_p, log_q, beta))


@register_divergence("jsd", slope=_jsd_slope, convex=True)
def jsd(log_p: Tensor, log_q: Tensor, *, beta: float = 0.5, normalized: bool = False) -> Tensor:
    r"""Contributions to the generalised Jensen-Shannon divergence with weight ``beta`` of the target.

    .. math:: \beta\,\mathrm{KL}(p \| m) + (1-\beta)\,\mathrm{KL}(q \| m), \qquad m = \beta p + (1-\beta) q

    At ``beta`` 0 and 1 it is forward and reverse KL by convention, although the formula vanishes there: it jumps.
    ``normalized`` divides by :math:`\beta (1-\beta)`, after which both are its limits and nothing jumps.
    """
    _in_unit_interval(beta, "beta")
    if beta == 0.0:
        return forward_kl(log_p, log_q)
    if beta == 1.0:
        return reverse_kl(log_p, log_q)
    scale = 1 / (beta * (1 - beta)) if normalized else 1.0
    p, q = log_p.exp(), log_q.exp()
    if min(beta, 1 - beta) < _NEAR:
        own, other = times(p, _log_ratio(log_q, log_p, 1 - beta)), times(q, _log_ratio(log_p, log_q, beta))
        return -scale * (beta * own + (1 - beta) * other)
    log_m = log_mixture(log_p, log_q, beta)
    return scale * (beta * times(p, log_p - log_m) + (1 - beta) * times(q, log_q - log_m))


def _filled(log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both with 0 in place of what neither has mass for: equal there, and without gradient."""
    empty = torch.isneginf(log_a) & torch.isneginf(log_b)
    return log_a.masked_fill(empty, 0.0), log_b.masked_fill(empty, 0.0)


def _gap(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Returns ``log(a / b)``; 0 without gradient where neither has mass."""
    first, second = _filled(log_a, log_b)
    return first - second


def _log_ratio(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """Returns ``log((weight * a + (1 - weight) * b) / b)``, precise where it is small; 0 where nothing is."""
    gap = _gap(log_a, log_b)
    near = torch.log1p(weight * torch.expm1(gap.clamp(max=10.0)))
    far = torch.logaddexp(gap.clamp(min=10.0) + math.log(weight), gap.new_full((), math.log1p(-weight)))
    return torch.where(gap > 10.0, far, near)


def _skew_kl_slope(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.1) -> Tensor:
    log_m = log_mixture(log_p, log_q, alpha)
    return -(1 - alpha) * times(log_p.exp(), (log_q - log_m).exp())


@register_divergence("skew_kl", slope=_skew_kl_slope, convex=True)
def skew_kl(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.1) -> Tensor:
    r"""Contributions to :math:`\mathrm{KL}(p \| \alpha p + (1-\alpha) q)`, at most :math:`-\log\alpha` (DistiLLM)."""
    _in_unit_interval(alpha, "alpha")
    return times(log_p.exp(), log_p - log_mixture(log_p, log_q, alpha))


def _skew_rkl_slope(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.1, detach_mixture: bool = False) -> Tensor:
    log_m = log_mixture(log_q, log_p, alpha)
    q = log_q.exp()
    slope = times(q, log_q - log_m) + q
    if detach_mixture or alpha == 0.0:
        return slope
    return slope - alpha * times(q, (log_q - log_m).exp())


@register_divergence("skew_rkl", slope=_skew_rkl_slope, convex=True)
def skew_rkl(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.1, detach_mixture: bool = False) -> Tensor:
    r"""Contributions to :math:`\mathrm{KL}(q \| (1-\alpha) p + \alpha q)`, at most :math:`-\log\alpha` (DistiLLM).

    ``detach_mixture`` treats the mixture as a constant, as DistiLLM-2 does.
    """
    _in_unit_interval(alpha, "alpha")
    log_m = log_mixture(log_q.detach() if detach_mixture else log_q, log_p, alpha)
    return times(log_q.exp(), log_q - log_m)


def _total_variation_slope(log_p: Tensor, log_q: Tensor) -> Tensor:
    q = log_q.exp()
    return 0.5 * torch.sign(q - log_p.exp()) * q


@register_divergence("total_variation", slope=_total_variation_slope, convex=True)
def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Contributions to :math:`\frac12 \sum |p - q|`, in [0, 1]; not smooth at equality, where the gradient is 0."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs()


def _alpha_beta_slope(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    log_p, log_q = _filled(log_p, log_q)
    if alpha == 0.0:
        return times(_power(log_q, beta), log_q - log_p)
    mixed = log_p * alpha if beta == 0.0 else alpha * log_p + beta * log_q
    return (_power(log_q, alpha + beta) - mixed.exp()) / alpha


@register_divergence("alpha_beta", slope=_alpha_beta_slope)
def alpha_beta(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    r"""Contributions to the alpha-beta divergence.

    .. math:: -\frac{1}{\alpha\beta} \sum \Big[ p^\alpha q^\beta - \frac{\alpha}{\alpha+\beta} p^{\alpha+\beta}
              - \frac{\beta}{\alpha+\beta} q^{\alpha+\beta} \Big]

    (1, 0) is forward and (0, 1) reverse KL. Where a coefficient or the sum of both is 0, the limit of the formula is
    taken, with :math:`1/\alpha^2` or :math:`1/\beta^2`; the released code of ABKD has :math:`1/\alpha` and
    :math:`1/\beta` there. Exponents below zero reward no mass beyond all bounds and may overflow.
    """
    a, b = alpha, beta
    log_p, log_q = _filled(log_p, log_q)
    if a == 0.0 and b == 0.0:
        return 0.5 * (log_p - log_q).square()
    if a == 0.0:
        return _power_kl(log_q, log_p, b)
    if b == 0.0:
        return _power_kl(log_p, log_q, a)
    if a + b == 0.0:
        gap = a * (log_q - log_p)
        return (gap + torch.expm1(-gap)) / a**2
    mixed = (a * log_p + b * log_q).exp()
    own_p, own_q = ((a + b) * log_p).exp(), ((a + b) * log_q).exp()
    return (a / (a + b) * own_p + b / (a + b) * own_q - mixed) / (a * b)


def _power(logs: Tensor, exponent: float) -> Tensor:
    """Returns powers from logarithms; 1 for the power 0, also of nothing."""
    return torch.ones_like(logs) if exponent == 0.0 else (exponent * logs).exp()


def _power_kl(log_a: Tensor, log_b: Tensor, exponent: float) -> Tensor:
    """Returns ``(a^e log(a^e / b^e) - a^e + b^e) / e^2`` per class, the limit in which the other coefficient is 0."""
    power_a, power_b = (exponent * log_a).exp(), (exponent * log_b).exp()
    return (times(power_a, exponent * (log_a - log_b)) - power_a + power_b) / exponent**2


def head_weight(log_p: Tensor, log_q: Tensor, *, mu: float = 0.5) -> Tensor:
    r"""Returns adaptive KL's weight of forward KL, :math:`g_h / (g_h + g_t)`, ``[..., 1]`` without gradient.

    The head are the classes, by decreasing probability of the target, whose cumulative mass is at most ``mu``, and
    always the first; :math:`g` is the sum of :math:`|p - q|` over head and tail. 1/2 where the two are equal.
    """
    with torch.no_grad():
        p = log_p.exp()
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        # Sums of all classes may be a little above one.
        head = ordered.cumsum(-1) <= (mu if mu < 1.0 else torch.inf)
        head[..., 0] = True
        gap = (p - log_q.exp()).abs()
        head_gap = torch.where(head, gap.gather(-1, order), gap.new_zeros(())).sum(-1, keepdim=True)
        total = gap.sum(-1, keepdim=True)
        return torch.where(total < 1e-9, gap.new_full((), 0.5), head_gap / total.clamp(min=1e-9))


def _adaptive_kl_slope(log_p: Tensor, log_q: Tensor, *, mu: float = 0.5) -> Tensor:
    weight = head_weight(log_p, log_q, mu=mu)
    return weight * _forward_kl_slope(log_p, log_q) + (1 - weight) * _reverse_kl_slope(log_p, log_q)


@register_divergence("adaptive_kl", slope=_adaptive_kl_slope)
def adaptive_kl(log_p: Tensor, log_q: Tensor, *, mu: float = 0.5) -> Tensor:
    r"""Contributions to :math:`w\,\mathrm{KL}(p\|q) + (1-w)\,\mathrm{KL}(q\|p)` with :func:`head_weight` for :math:`w`.

    Forward KL counts where the student errs among the likely classes, reverse KL where it errs among the others.
    """
    _in_unit_interval(mu, "mu")
    weight = head_weight(log_p, log_q, mu=mu)
    return weight * forward_kl(log_p, log_q) + (1 - weight) * reverse_kl(log_p, log_q)


def _pearson_slope(log_p: Tensor, log_q: Tensor) -> Tensor:
    return log_q.exp() - times(log_p.exp(), _gap(log_p, log_q).exp())


@register_divergence("pearson_chi2", slope=_pearson_slope, convex=True)
def pearson_chi2(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Contributions to :math:`\sum (p-q)^2 / q`, which grows exponentially with the gap of the logits."""
    p, q = log_p.exp(), log_q.exp()
    return times(p, _gap(log_p, log_q).exp()) - 2 * p + q


def _hellinger_slope(log_p: Tensor, log_q: Tensor) -> Tensor:
    return log_q.exp() - (0.5 * (log_p + log_q)).exp()


@register_divergence("hellinger2", slope=_hellinger_slope, convex=True)
def hellinger2(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Contributions to the squared Hellinger distance :math:`\sum (\sqrt p - \sqrt q)^2`, in [0, 2]."""
    return ((0.5 * log_p).exp() - (0.5 * log_q).exp()).square()


def _alpha_slope(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.5) -> Tensor:
    if alpha == 1.0:
        return _forward_kl_slope(log_p, log_q)
    if alpha == 0.0:
        return _reverse_kl_slope(log_p, log_q)
    log_p, log_q = _filled(log_p, log_q)
    return (log_q.exp() - (alpha * log_p + (1 - alpha) * log_q).exp()) / alpha


@register_divergence("alpha", slope=_alpha_slope, convex=True)
def alpha_divergence(log_p: Tensor, log_q: Tensor, *, alpha: float = 0.5) -> Tensor:
    r"""Contributions to Amari's :math:`\sum \frac{p^a q^{1-a} - a p - (1-a) q}{a (a-1)}`, :math:`a` = ``alpha``.

    Forward KL at 1, reverse KL at 0, twice the squared Hellinger distance at 1/2.
    """
    if alpha == 1.0:
        return forward_kl(log_p, log_q)
    if alpha == 0.0:
        return reverse_kl(log_p, log_q)
    log_p, log_q = _filled(log_p, log_q)
    mixed = (alpha * log_p + (1 - alpha) * log_q).exp()
    return (mixed - alpha * log_p.exp() - (1 - alpha) * log_q.exp()) / (alpha * (alpha - 1))
