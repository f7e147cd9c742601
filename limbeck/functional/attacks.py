"""Adversarial examples within a box around each input: losses that attacks maximise, FGSM and PGD.

A box is ``inputs ± eps`` cut to ``bounds``. ``eps``, steps and bounds are numbers, or tensors that broadcast against
the inputs (one value a channel where channels are normalised differently). Attacks take any function from inputs to
logits. They ask for gradients with respect to the inputs alone: no parameter collects one. Put the model in eval mode
first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, reduce

Classifier = Callable[[Tensor], Tensor]
"""Inputs ``[B, ...]`` to logits ``[B, C]``."""

Objective = Callable[[Tensor], Tensor]
"""Logits ``[B, C]`` to what an attack maximises for each sample, ``[B]``."""

Amount = float | Tensor
"""A number, or a tensor that broadcasts against the inputs."""

UNIT_RANGE: tuple[Amount, Amount] = (0.0, 1.0)
"""Bounds of pixel values."""


@full_precision
def margin(logits: Tensor, labels: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    r"""How far the best other class is above the label's: the loss of Carlini and Wagner without its cut-off.

    .. math:: L = \max_{j \ne y} z_j - z_y

    Positive if and only if the sample is misclassified.

    Args:
        logits: ``[B, C]`` with at least two classes.
        labels: ``[B]`` class indices.
        mask: ``[B]`` true where a sample counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        ``[B]`` or a scalar.

    Raises:
        ValueError: there is one class only.

    References:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", arXiv 1608.04644, loss f6.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), reduction="none")
        tensor([-1.])
    """
    _check_classes(logits, 2, "a margin")
    chosen = labels.unsqueeze(1)
    others = logits.scatter(1, chosen, -torch.inf).amax(1)
    return reduce(others - logits.gather(1, chosen).squeeze(1), reduction, mask=mask)


@full_precision
def dlr(logits: Tensor, labels: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    r"""Difference of logits ratio: a margin that neither a shift nor a scaling of the logits changes.

    .. math:: L = -\frac{z_y - \max_{j \ne y} z_j}{z_{(1)} - z_{(3)}}

    Args:
        logits: ``[B, C]`` with at least three classes.
        labels: ``[B]`` class indices.
        mask: ``[B]`` true where a sample counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        ``[B]`` or a scalar; in [-1, 1] where the label is among the two largest.

    Raises:
        ValueError: there are fewer than three classes.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", arXiv 2003.01690, section 4.2.

    Example:
        >>> dlr(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), reduction="none")
        tensor([-0.5000])
    """
    _check_classes(logits, 3, "the DLR loss")
    ordered = logits.sort(1, descending=True).values
    spread = _untied(ordered[:, 0] - ordered[:, 2])
    return reduce(margin(logits, labels, reduction="none") / spread, reduction, mask=mask)


@full_precision
def targeted_dlr(
    logits: Tensor, labels: Tensor, targets: Tensor, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Difference of logits ratio towards one wrong class.

    .. math:: L = -\frac{z_y - z_t}{z_{(1)} - (z_{(3)} + z_{(4)})/2}

    Args:
        logits: ``[B, C]`` with at least four classes.
        labels: ``[B]`` class indices.
        targets: ``[B]`` classes to be mistaken for.
        mask: ``[B]`` true where a sample counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        ``[B]`` or a scalar.

    Raises:
        ValueError: there are fewer than four classes.

    References:
        Croce and Hein, arXiv 2003.01690, equation 7.

    Example:
        >>> targeted_dlr(torch.tensor([[4.0, 2.0, 1.0, 1.0]]), torch.tensor([0]), torch.tensor([1]))
        tensor(-0.6667)
    """
    _check_classes(logits, 4, "the targeted DLR loss")
    ordered = logits.sort(1, descending=True).values
    spread = _untied(ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2)
    own, wanted = (logits.gather(1, classes.unsqueeze(1)).squeeze(1) for classes in (labels, targets))
    return reduce((wanted - own) / spread, reduction, mask=mask)


def _untied(spread: Tensor) -> Tensor:
    """Returns what to divide by: 1 where the largest scores are equal and say nothing of a scale."""
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def _check_classes(logits: Tensor, least: int, what: str) -> None:
    if logits.dim() != 2 or logits.shape[1] < least:
        raise ValueError(f"{what} needs logits [B, C] of at least {least} classes, not {tuple(logits.shape)}")


def into_box(points: Tensor, inputs: Tensor, eps: Amount, bounds: tuple[Amount, Amount] = UNIT_RANGE) -> Tensor:
    """Returns ``points`` moved by as little as possible into ``inputs ± eps`` and into ``bounds``.

    Example:
        >>> into_box(torch.tensor([0.9, -0.2]), torch.tensor([0.5, 0.0]), 0.1)
        tensor([0.6000, 0.0000])
    """
    near = torch.minimum(torch.maximum(points, inputs - eps), inputs + eps)
    return _between(near, *bounds)


def _between(points: Tensor, low: Amount, high: Amount) -> Tensor:
    floor, ceiling = (torch.as_tensor(b, dtype=points.dtype, device=points.device) for b in (low, high))
    return torch.minimum(torch.maximum(points, floor), ceiling)


def ascent(classify: Classifier, objective: Objective, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradient of the summed objective with respect to ``points``, the objective ``[B]`` and the logits.

    Works under ``torch.no_grad`` too, and leaves every parameter's ``grad`` as it is.
    """
    with torch.enable_grad():
        moved = points.detach().requires_grad_()
        logits = classify(moved)
        values = objective(logits)
        (gradient,) = torch.autograd.grad(values.sum(), moved)
    return gradient, values.detach(), logits.detach()


def fgsm(
    classify: Classifier,
    objective: Objective,
    inputs: Tensor,
    *,
    eps: Amount,
    bounds: tuple[Amount, Amount] = UNIT_RANGE,
) -> Tensor:
    r"""Fast gradient sign method: one step to a corner of the box.

    .. math:: \tilde x = \mathrm{clip}\big(x + \varepsilon \, \mathrm{sign}(\nabla_x L)\big)

    Args:
        classify: inputs to logits.
        objective: what to maximise, for example the cross-entropy with the labels.
        inputs: ``[B, ...]``.
        eps: half the side of the box.
        bounds: smallest and largest value of an input.

    Returns:
        Adversarial inputs, shaped like ``inputs``, without graph.

    References:
        Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", arXiv 1412.6572.

    Example:
        >>> fgsm(lambda x: x, lambda logits: -logits[:, 0], torch.full((1, 2), 0.5), eps=0.1)
        tensor([[0.4000, 0.5000]])
    """
    gradient, _, _ = ascent(classify, objective, inputs)
    return into_box(inputs.detach() + eps * gradient.sign(), inputs.detach(), eps, bounds)


def pgd(
    classify: Classifier,
    objective: Objective,
    inputs: Tensor,
    *,
    eps: Amount,
    step_size: Amount,
    steps: int,
    start: Tensor | None = None,
    bounds: tuple[Amount, Amount] = UNIT_RANGE,
) -> Tensor:
    r"""Projected gradient descent on the negative objective: steps of the gradient's sign, each put back into the box.

    .. math:: x_{k+1} = \Pi\big(x_k + s \, \mathrm{sign}(\nabla_x L(x_k))\big)

    With ``objective`` the cross-entropy it is the attack of Madry et al., with the margin the CW attack of the robust
    distillation literature, with a KL divergence from the clean prediction the inner maximisation of TRADES.

    Args:
        classify: inputs to logits.
        objective: what to maximise.
        inputs: ``[B, ...]``.
        eps: half the side of the box.
        step_size: length of a step in every coordinate.
        steps: number of steps.
        start: where to begin, as it is; ``inputs`` when None. Only later points are put into the box.
        bounds: smallest and largest value of an input.

    Returns:
        Adversarial inputs, shaped like ``inputs``, without graph.

    Raises:
        ValueError: ``steps`` is negative, or ``start`` has another shape.

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083.

    Example:
        >>> pgd(lambda x: x, lambda z: -z[:, 0], torch.full((1, 2), 0.5), eps=0.1, step_size=0.04, steps=2)
        tensor([[0.4200, 0.5000]])
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}, but should not be negative")
    centre = inputs.detach()
    points = centre if start is None else start.detach()
    if points.shape != centre.shape:
        raise ValueError(f"start is {tuple(points.shape)} but the inputs are {tuple(centre.shape)}")
    for _ in range(steps):
        gradient, _, _ = ascent(classify, objective, points)
        points = into_box(points + step_size * gradient.sign(), centre, eps, bounds)
    return points
