"""Tokens of a whole batch as a graph: who is near whom, which token is which, and how an image's tokens relate.

Student and teacher tokens may differ in width wherever only their own similarities are compared.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.functional.divergences import kl_of_log_probabilities
from limbeck.functional.feature_maps import unit_vectors
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce
from limbeck.functional.relations import pairwise_distances


class TokenGraph(NamedTuple):
    """Every token with its nearest neighbours.

    Attributes:
        log_affinity: ``[M, M]`` minus the squared distance over twice the bandwidth.
        edges: ``[M, M]`` bool, true where the column's token is among the row's nearest.
    """

    log_affinity: Tensor
    edges: Tensor

    def adjacency(self) -> Tensor:
        """Gaussian affinities ``[M, M]`` in (0, 1] along the edges, 0 elsewhere."""
        return torch.where(self.edges, self.log_affinity.exp(), self.log_affinity.new_zeros(()))


@full_precision
def token_graph(tokens: Tensor, *, neighbours: int, bandwidth: float | None = None) -> TokenGraph:
    r"""Joins every token with its nearest ones by Gaussian affinities.

    .. math:: A_{ij} = \exp\!\big( -\|x_i - x_j\|^2 / (2 \sigma) \big) \quad \text{if } j \in \mathrm{kNN}(i)

    A token is not its own neighbour. Which tokens are neighbours carries no gradient.

    Args:
        tokens: ``[M, D]``.
        neighbours: number of neighbours of each token, less than ``M``.
        bandwidth: :math:`\sigma`; when None, the mean squared distance to a neighbour, a constant, so that the
            affinities do not depend on the scale of the tokens.

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
    squared = pairwise_distances(tokens, squared=True)
    others = squared.detach().clone().fill_diagonal_(torch.inf)
    nearest, chosen = others.topk(neighbours, dim=1, largest=False)
    edges = torch.zeros_like(others, dtype=torch.bool).scatter(1, chosen, True)
    sigma = nearest.mean() if bandwidth is None else squared.new_tensor(bandwidth)
    return TokenGraph(-squared / (2 * torch.where(sigma > 0, sigma, torch.ones_like(sigma))), edges)


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
    cosines = unit_vectors(student_tokens) @ unit_vectors(teacher_tokens.detach()).T
    return reduce(-torch.log_softmax(cosines / temperature, dim=1).diagonal(), reduction)


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
