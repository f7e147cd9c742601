"""How much the loss on held-out samples would change if a training sample counted more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

WeightForm = Literal["exp_minmax", "sigmoid", "drop"]


def hessian_vector_product(
    loss: Callable[..., Tensor], parameters: Sequence[Tensor], vector: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    r"""Returns :math:`\nabla^2 L(\theta)\, v`, exactly, without the Hessian.

    The gradient's product with the vector is differentiated once more; two passes backwards.

    Args:
        loss: a scalar function of the parameters, twice differentiable.
        parameters: :math:`\theta`, tensors of any shapes.
        vector: :math:`v`, shaped like the parameters.

    Returns:
        Tensors shaped like the parameters.

    References:
        Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6, 1994.

    Example:
        >>> at, direction = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
        >>> hessian_vector_product(lambda x: (x[0] * x[1] ** 2).sum(), [at], [direction])
        (tensor([0., 4.]),)
    """
    with torch.enable_grad():
        points = [p.detach().requires_grad_() for p in parameters]
        slopes = torch.autograd.grad(loss(*points), points, create_graph=True)
        along = torch.stack([(slope * v).sum() for slope, v in zip(slopes, vector)]).sum()
        if not along.requires_grad:
            return tuple(torch.zeros_like(p) for p in parameters)
        found = torch.autograd.grad(along, points, allow_unused=True)
    return tuple(torch.zeros_like(p) if f is None else f for p, f in zip(parameters, found))


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int = 1000, tolerance: float = 1e-12
) -> Tensor:
    r"""Solves :math:`A x = b` for a positive definite matrix that is known by its products with vectors.

    Args:
        product: returns :math:`A v` for a vector shaped like ``target``.
        target: :math:`b`, of any shape.
        iterations: the most products to take; without rounding, as many as ``b`` has entries are enough.
        tolerance: length of the remainder, relative to that of ``b``, at which to stop.

    Returns:
        :math:`x`, shaped like ``target``.

    Raises:
        ValueError: the matrix is not positive definite along a direction that the solution needs.

    References:
        Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.

    Example:
        >>> matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> conjugate_gradient(lambda v: matrix @ v, torch.tensor([1.0, 2.0]))
        tensor([0.0909, 0.6364])
    """
    solution = torch.zeros_like(target)
    remainder, direction = target.clone(), target.clone()
    length = remainder.square().sum()
    enough = (tolerance**2) * length
    for _ in range(iterations):
        if length <= enough:
            break
        image = product(direction)
        curvature = (direction * image).sum()
        if not curvature > 0:
            raise ValueError("the matrix is not positive definite; use a larger damping")
        step = length / curvature
        solution = solution + step * direction
        remainder = remainder - step * image
        before, length = length, remainder.square().sum()
        direction = remainder + (length / before) * direction
    return solution


def minimal_residual(
    product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int = 1000, tolerance: float = 1e-12
) -> Tensor:
    r"""Solves :math:`A x = b` for a symmetric matrix that is known by its products with vectors.

    Unlike conjugate gradients it does not ask that the matrix be positive definite, which the Hessian of a network is
    not: of all combinations of :math:`b, A b, A^2 b, ...` it takes the one that leaves the shortest remainder.

    Args:
        product: returns :math:`A v` for a vector shaped like ``target``.
        target: :math:`b`, of any shape.
        iterations: the most products to take.
        tolerance: length of the remainder, relative to that of ``b``, at which to stop.

    Returns:
        :math:`x`, shaped like ``target``.

    References:
        Paige and Saunders, "Solution of Sparse Indefinite Systems of Linear Equations", SIAM J. Numer. Anal. 12, 1975.

    Example:
        >>> minimal_residual(lambda v: torch.tensor([2.0, -4.0]) * v, torch.tensor([1.0, 1.0]))
        tensor([ 0.5000, -0.2500])
    """
    solution = torch.zeros_like(target)
    length = torch.linalg.vector_norm(target)
    if length == 0:
        return solution
    current, before, coupling = target / length, torch.zeros_like(target), torch.zeros_like(length)
    steps = [torch.zeros_like(target), torch.zeros_like(target)]
    cosines, sines = [torch.ones_like(length)] * 2, [torch.zeros_like(length)] * 2
    left = length
    for _ in range(iterations):
        image = product(current)
        middle = (current * image).sum()
        image = image - middle * current - coupling * before
        following = torch.linalg.vector_norm(image)
        # The rotations of the two steps before, then one that clears what is below the diagonal.
        diagonal = cosines[1] * middle - cosines[0] * sines[1] * coupling
        above = sines[1] * middle + cosines[0] * cosines[1] * coupling
        pivot = torch.hypot(diagonal, following)
        if pivot == 0:
            break
        steps = [steps[1], (current - sines[0] * coupling * steps[0] - above * steps[1]) / pivot]
        cosines, sines = [cosines[1], diagonal / pivot], [sines[1], following / pivot]
        solution = solution + cosines[1] * left * steps[1]
        left = -sines[1] * left
        if left.abs() <= tolerance * length or following == 0:
            break
        before, current, coupling = current, image / following, following
    return solution


def directional_derivative(
    outputs: Callable[..., Tensor], parameters: Sequence[Tensor], vector: Sequence[Tensor]
) -> Tensor:
    r"""Returns :math:`J v`: how outputs change as parameters move along a vector, exactly.

    Args:
        outputs: a function of the parameters, twice differentiable.
        parameters: tensors of any shapes.
        vector: :math:`v`, shaped like the parameters.

    Returns:
        Shaped like the outputs.

    Example:
        >>> directional_derivative(lambda x: x**2, [torch.tensor([1.0, 3.0])], [torch.tensor([1.0, 0.5])])
        tensor([2., 3.])
    """
    with torch.enable_grad():
        points = [p.detach().requires_grad_() for p in parameters]
        found = outputs(*points)
        # The product with the transposed Jacobian is linear in what it is taken with; its derivative is that with J.
        probe = torch.zeros_like(found, requires_grad=True)
        back = torch.autograd.grad(found, points, probe, create_graph=True, allow_unused=True)
        along = torch.stack([(b * v).sum() for b, v in zip(back, vector) if b is not None]).sum()
        return torch.autograd.grad(along, probe)[0]


def head_hessian_product(probabilities: Tensor, features: Tensor, vector: Tensor) -> Tensor:
    r"""Hessian of a linear classifier's mean soft cross-entropy, times a vector of the classifier's shape.

    .. math:: (H V) = \tfrac1N \sum_i \big( \mathrm{diag}(p_i) - p_i p_i^\top \big) V f_i f_i^\top

    It is that of the KL divergence from any target; a temperature :math:`T` in the softmax gives the same for
    :math:`T^2` times the divergence.

    Args:
        probabilities: ``[N, C]`` of the classifier, tempered as its loss is.
        features: ``[N, D]`` that the classifier reads, with a column of ones where it has a bias.
        vector: ``[C, D]``.

    Returns:
        ``[C, D]``.

    Example:
        >>> head_hessian_product(torch.tensor([[0.5, 0.5]]), torch.ones(1, 1), torch.tensor([[1.0], [0.0]]))
        tensor([[ 0.2500],
                [-0.2500]])
    """
    moved = features @ vector.T
    changed = probabilities * (moved - (probabilities * moved).sum(1, keepdim=True))
    return changed.T @ features / len(features)


def helpfulness(
    residuals: Tensor,
    features: Tensor,
    probabilities: Tensor,
    held_out_gradient: Tensor,
    *,
    damping: float = 0.01,
    iterations: int = 1000,
    tolerance: float = 1e-12,
) -> Tensor:
    r"""How much the held-out loss would fall if a training sample counted more, through a linear classifier.

    .. math:: h_i = g_i^\top (H + \lambda I)^{-1} g_{val}

    with the sample's gradient :math:`g_i`, the Hessian :math:`H` of the mean training loss and the held-out gradient.
    It is minus the influence of up-weighting the sample on the held-out loss: positive helps. The system is solved by
    conjugate gradients with exact products.

    Args:
        residuals: ``[N, C]`` gradient of each sample's training loss in its logits.
        features: ``[N, D]`` that the classifier reads.
        probabilities: ``[N, C]``, see :func:`head_hessian_product`.
        held_out_gradient: ``[C, D]`` gradient of the mean held-out loss in the classifier's weights.
        damping: :math:`\lambda > 0`, added to the Hessian's diagonal.
        iterations: see :func:`conjugate_gradient`.
        tolerance: see :func:`conjugate_gradient`.

    Returns:
        ``[N]``.

    Raises:
        ValueError: the damping is not positive.

    References:
        Koh and Liang, "Understanding Black-box Predictions via Influence Functions", arXiv 1703.04730.
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}, but should be positive")
    direction = conjugate_gradient(
        lambda v: head_hessian_product(probabilities, features, v) + damping * v,
        held_out_gradient,
        iterations=iterations,
        tolerance=tolerance,
    )
    return (residuals * (features @ direction.T)).sum(1)


def influence_weights(scores: Tensor, *, form: WeightForm = "exp_minmax", sharpness: float = 1.0) -> Tensor:
    r"""Turns helpfulness into weights of samples, the more helpful the larger.

    Args:
        scores: ``[N]`` helpfulness. Minus that would favour harmful samples.
        form: ``exp_minmax``: :math:`e^{k u}` with the scores scaled to :math:`u \in [-1, 1]`; ``sigmoid``:
            :math:`\sigma(k z)` of scores standardised to mean 0 and deviation 1; ``drop``: 1 where the score is
            positive, else 0.
        sharpness: :math:`k`; without effect on ``drop``.

    Returns:
        ``[N]``; equal scores have equal weights.

    Raises:
        ValueError: the form is unknown.

    References:
        Wu et al., "Knowledge Distillation with Adapted Weight", arXiv 2501.02705.

    Example:
        >>> influence_weights(torch.tensor([-1.0, 1.0]))
        tensor([0.3679, 2.7183])
    """
    one = torch.ones((), dtype=scores.dtype, device=scores.device)
    if form == "exp_minmax":
        spread = scores.max() - scores.min()
        scaled = 2 * (scores - scores.min()) / torch.where(spread > 0, spread, one) - 1
        return torch.where(spread > 0, sharpness * scaled, torch.zeros_like(scores)).exp()
    if form == "sigmoid":
        deviation = scores.std() if len(scores) > 1 else one
        return torch.sigmoid(sharpness * (scores - scores.mean()) / torch.where(deviation > 0, deviation, one))
    if form == "drop":
        return (scores > 0).to(scores.dtype)
    raise ValueError(f"form should be exp_minmax, sigmoid or drop, not '{form}'")
