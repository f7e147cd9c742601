"""Changes of logits before a distillation loss compares them, the same for student and teacher."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision

LogitTransform = Callable[[Tensor], Tensor]


def identity(logits: Tensor) -> Tensor:
    """Returns the logits as they are."""
    return logits


@full_precision
def standardize(logits: Tensor, *, eps: float = 0.0) -> Tensor:
    r"""Returns each row's z-scores, so that a student need only match the relations of the teacher's logits.

    .. math:: z' = \frac{z - \bar z}{\sigma_z + \varepsilon}

    with the unbiased standard deviation over the classes. The gradient flows through mean and deviation: it has no
    component along a shift or a scaling of the row. A row that is constant up to rounding becomes zeros without
    gradient (for ``eps`` 0).

    Args:
        logits: ``[..., C]`` with at least two classes. Two classes leave only the sign: every z-score is then
            :math:`\pm 1/\sqrt 2`.
        eps: added to the deviation; the authors' code has 1e-7.

    Returns:
        ``[..., C]``, float32 or better, row mean 0 and (for ``eps`` 0) row deviation 1.

    Raises:
        ValueError: there is one class only, or ``eps`` is negative.

    References:
        Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427.

    Example:
        >>> standardize(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.,  0.,  1.]])
    """
    if logits.shape[-1] < 2:
        raise ValueError("logits of a single class cannot be standardised")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}, but should be 0 or more")
    centred = logits - logits.mean(-1, keepdim=True)
    if eps > 0:
        return centred / (centred.std(-1, keepdim=True) + eps)
    spread = centred.detach().abs().amax(-1, keepdim=True)
    varies = spread > 4 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(-1, keepdim=True)
    # Dividing by the largest deviation first keeps squares of huge and tiny logits inside the range of the type.
    one = torch.ones_like(spread)
    unit = torch.where(varies, centred, torch.zeros_like(centred)) / torch.where(varies, spread, one)
    return unit / torch.where(varies, unit.std(-1, keepdim=True), one)


LOGIT_TRANSFORMS: dict[str, LogitTransform] = {"identity": identity, "standardize": standardize}
"""Transforms by the name that recipes use."""


def logit_transform(name: str, **options: float) -> LogitTransform:
    """Returns the logit transform called ``name``.

    Args:
        name: one of :data:`LOGIT_TRANSFORMS`.
        options: its keyword arguments, as ``eps`` of :func:`standardize`.

    Raises:
        ValueError: none has that name, or an option is unknown or out of its range; the message proposes a near match.

    Example:
        >>> logit_transform("standardize") is standardize
        True
        >>> logit_transform("standardize", eps=1.0)(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-0.5000,  0.0000,  0.5000]])
    """
    if name not in LOGIT_TRANSFORMS:
        near = difflib.get_close_matches(name, LOGIT_TRANSFORMS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(LOGIT_TRANSFORMS)}"
        raise ValueError(f"unknown logit transform '{name}'; {hint}")
    transform = LOGIT_TRANSFORMS[name]
    if not options:
        return transform
    known = [p.name for p in inspect.signature(transform).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"logit transform '{name}' has no option '{option}'; known: {', '.join(known) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{option} of logit transform '{name}' should be a number, not {value!r}")
    chosen = partial(transform, **options)
    chosen(torch.zeros(1, 2))  # refuses a value out of range here, and not at the first step
    return chosen
