"""Tokens of a whole batch as a graph: who is near whom, which token is which, and how an image's tokens relate.

Student and teacher tokens may differ in width wherever only their own similarities are compared. Memory would grow with
the square of the number of tokens; of many tokens, blocks of rows are recomputed for the backward pass and it stays
linear.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.functional.divergences import kl_of_log_probabilities
from limbeck.functional.feature_maps import unit_vectors
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce

_BLOCK_ELEMENTS = 1 << 22
"""Entries of a matrix of all pairs of tokens that are kept at once."""


class TokenGraph(NamedTuple):
    """Tokens with their nearest neighbours, all or a block of rows.

    Attributes:
        log_affinity: ``[m, M]`` minus the squared distance over twice the bandwidth.
        edges: ``[m, M]`` bool, true where the column's token is among the row's nearest.
    """

    log_affinity: Tensor
    edges: Tensor

    def adjacency(self) -> Tensor:
        """Gaussian affinities ``[m, M]`` in (0, 1] along the edges, 0 elsewhere."""
        return torch.where(self.edges, self.log_affinity.exp(), self.log_affinity.new_zeros(()))


@full_precision
def token_graph(
    tokens: Tensor, *, neighbours: int, bandwidth: float | Tensor | None = None, rows: slice | None = None
) -> TokenGraph:
    r"""Joins every token with its nearest ones by Gaussian affinities.

    .. math:: A_{ij} = \exp\!\big( -\|x_i - x_j\|^2 / (2 \sigma) \big) \quad \text{if } j \in \mathrm{kNN}(i)

    A token is not its own neighbour. Which tokens are neighbours carries no gradient.

    Args:
        tokens: ``[M, D]``.
        neighbours: number of neighbours of each token, less than ``M``.
        bandwidth: :math:`\sigma`; when None, the mean squared distance to a neighbour. Neither the affinities nor their
            gradient then depend on the scale of the tokens.
        rows: a block of tokens whose rows alone are returned; all when None.

    Raises:
        ValueError: there are too few tokens.

    References:
        Zhang et al., "Knowledge Distillation via Token-level Relationship Graph", arXiv 2306.12442.

    Example:
        >>> token_graph(torch.tensor([[0.0], [1.0], [9.0]]), neighbours=1, bandwidth=0.5).adjacency()
        tensor([[0.0000e+00, 3.6788e-01, 0.0000e+00],
                [3.6788e-01, 0.0000e+00, 0.0000e+00],
                [0.0000e+00, 1.6038e-28, 0.0000e+00]])
    """
    if neighbours >= tokens.shape[0]:
        raise ValueError(f"{tokens.shape[0]} tokens have no {neighbours} neighbours each")
    block = rows or slice(0, tokens.shape[0])
    squared, chosen = _nearest(tokens, block, neighbours)
    edges = torch.zeros_like(squared, dtype=torch.bool).scatter(1, chosen, True)
    if bandwidth is None:
        bandwidth = (
            squared.gather(1, chosen).mean() if rows is None else neighbour_distance(tokens, neighbours=neighbours)
        )
    sigma = torch.as_tensor(bandwidth, dtype=squared.dtype, device=squared.device)
    return TokenGraph(-squared / (2 * torch.where(sigma > 0, sigma, torch.ones_like(sigma))), edges)


@full_precision
def neighbour_distance(tokens: Tensor, *, neighbours: int) -> Tensor:
    """Returns the mean squared distance of tokens ``[M, D]`` to their nearest ones.

    Example:
        >>> neighbour_distance(torch.tensor([[0.0], [1.0], [3.0]]), neighbours=1)
        tensor(2.)
    """

    def values(tokens: Tensor, block: slice) -> Tensor:
        squared, chosen = _nearest(tokens, block, neighbours)
        return squared.gather(1, chosen).mean(1)

    return _by_blocks(values, tokens).mean()


def _nearest(tokens: Tensor, block: slice, neighbours: int) -> tuple[Tensor, Tensor]:
    """Squared distances ``[m, M]`` of a block of tokens to all, and the numbers ``[m, k]`` of its nearest ones."""
    # From differences, so that near tokens lose no digits; equal ones have a zero gradient.
    squared = torch.cdist(tokens[block], tokens, compute_mode="donot_use_mm_for_euclid_dist").square()
    own = torch.arange(block.start, block.stop, device=tokens.device).unsqueeze(1)
    chosen = squared.detach().scatter(1, own, torch.inf).topk(neighbours, dim=1, largest=False).indices
    return squared, chosen


def _blocks(count: int) -> list[slice]:
    """Blocks of rows of a square matrix, small enough to be kept."""
    size = max(_BLOCK_ELEMENTS // count, 1)
    return [slice(a, b) for a, b in pairwise([*range(0, count, size), count])]


def _by_blocks(values: Callable[[Tensor, slice], Tensor], tokens: Tensor) -> Tensor:
    """Returns ``values(tokens, rows)`` of all rows ``[M]``; where there are several blocks, each is recomputed."""
    blocks = _blocks(tokens.shape[0])
    if len(blocks) == 1:
        return values(tokens, blocks[0])
    found: list[Tensor] = [checkpoint(values, tokens, block, use_reentrant=False) for block in blocks]
    return torch.cat(found)


@full_precision
def neighbourhood_divergence(
    student_tokens: Tensor,
    teacher_tokens: Tensor,
    *,
    neighbours: int,
    bandwidth: float | None = None,
    rows: Literal["adjacency", "neighbours"] = "adjacency",
    student_first: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL divergence between the neighbourhoods of each token in the graphs of student and teacher.

    Args:
        student_tokens: ``[M, Ds]``.
        teacher_tokens: ``[M, Dt]`` of the same places, constants.
        neighbours: see :func:`token_graph`.
        bandwidth: see :func:`token_graph`; each side's own when None.
        rows: see :func:`graph_divergence`.
        student_first: see :func:`graph_divergence`.
        reduction: over the ``M`` tokens.

    Returns:
        The loss in nats, as :func:`graph_divergence` of both graphs.

    Raises:
        ValueError: the numbers of tokens differ, or there are too few.
    """
    check_same_shape(student_tokens[:, 0], teacher_tokens[:, 0], "tokens of student and teacher")
    theirs = teacher_tokens.detach()
    wide = [
        neighbour_distance(t, neighbours=neighbours) if bandwidth is None else bandwidth
        for t in (student_tokens, theirs)
    ]

    def values(tokens: Tensor, block: slice) -> Tensor:
        graphs = [
            token_graph(t, neighbours=neighbours, bandwidth=b, rows=block) for t, b in zip((tokens, theirs), wide)
        ]
        return graph_divergence(graphs[0], graphs[1], rows=rows, student_first=student_first, reduction="none")

    return reduce(_by_blocks(values, student_tokens), reduction)


def graph_divergence(
    student: TokenGraph,
    teacher: TokenGraph,
    *,
    rows: Literal["adjacency", "neighbours"] = "adjacency",
    student_first: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL divergence between the neighbourhoods of each token in two graphs.

    Args:
        student: graph of the student's tokens.
        teacher: graph of the teacher's, of the same places; a constant.
        rows: ``adjacency`` compares the softmax over each whole row of adjacencies, where a token that is no neighbour
            still gets the mass of an affinity of 0; ``neighbours`` compares the softmax of the log-affinities over the
            tokens that are neighbours in either graph, which stays sharp however many tokens there are.
        student_first: whether the student's distribution is the first argument of the divergence; the teacher's
            otherwise.
        reduction: over the ``M`` tokens.

    Returns:
        The loss in nats.

    Raises:
        ValueError: the graphs have different sizes.
    """
    check_same_shape(student.edges, teacher.edges, "the graphs of student and teacher")
    if rows == "adjacency":
        log_s, log_t = (torch.log_softmax(graph.adjacency(), dim=1) for graph in (student, teacher))
    else:
        either = student.edges | teacher.edges
        log_s, log_t = (
            torch.log_softmax(graph.log_affinity.masked_fill(~either, -torch.inf), dim=1).masked_fill(~either, -1e4)
            for graph in (student, teacher)
        )
    log_t = log_t.detach()
    values = kl_of_log_probabilities(log_s, log_t) if student_first else kl_of_log_probabilities(log_t, log_s)
    return reduce(values, reduction)


@full_precision
def token_contrast(
    student_tokens: Tensor, teacher_tokens: Tensor, *, temperature: float | Tensor, reduction: Reduction = "mean"
) -> Tensor:
    r"""InfoNCE over tokens: each projected student token should find the teacher's token of the same place.

    .. math:: L_i = -\log \frac{\exp(\cos(s_i, t_i)/\tau)}{\sum_j \exp(\cos(s_i, t_j)/\tau)}

    Args:
        student_tokens: ``[M, D]``, projected to the teacher's width.
        teacher_tokens: ``[M, D]``, constants.
        temperature: :math:`\tau > 0`.
        reduction: over the ``M`` tokens.

    Returns:
        The loss in nats; ``log M`` where all similarities are equal.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> token_contrast(torch.ones(4, 2), torch.ones(4, 2), temperature=0.1)
        tensor(1.3863)
    """
    check_same_shape(student_tokens, teacher_tokens, "projected student tokens and teacher tokens")
    theirs = unit_vectors(teacher_tokens.detach())

    def values(ours: Tensor, block: slice) -> Tensor:
        scores = torch.log_softmax(ours[block] @ theirs.T / temperature, dim=1)
        return -scores.diagonal(block.start)

    return reduce(_by_blocks(values, unit_vectors(student_tokens)), reduction)


@full_precision
def context_difference(student_tokens: Tensor, teacher_tokens: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Squared difference of how each image's tokens attend to each other.

    .. math:: L = \frac{1}{N^2} \big\| \mathrm{softmax}(S S^\top / \sqrt{D_s})
              - \mathrm{softmax}(T T^\top / \sqrt{D_t}) \big\|_F^2

    Args:
        student_tokens: ``[B, N, Ds]``.
        teacher_tokens: ``[B, N, Dt]``, constants.
        reduction: over the ``B`` images.

    Raises:
        ValueError: the numbers of images or tokens differ.

    Example:
        >>> tokens = torch.eye(3).unsqueeze(0)
        >>> context_difference(tokens, tokens)
        tensor(0.)
    """
    check_same_shape(student_tokens[..., 0], teacher_tokens[..., 0], "tokens of student and teacher")
    ours, theirs = (_context(tokens) for tokens in (student_tokens, teacher_tokens.detach()))
    return reduce((ours - theirs).square().mean((1, 2)), reduction)


def _context(tokens: Tensor) -> Tensor:
    return torch.softmax(tokens @ tokens.transpose(1, 2) / tokens.shape[2] ** 0.5, dim=2)
