"""Relations between tokens: graphs, contrast, context, and how tokens are found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import limbeck.functional.token_graph
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.token_graph import (
    context_difference,
    graph_divergence,
    neighbourhood_divergence,
    token_contrast,
    token_graph,
)
from limbeck.functional.tokens import aligned_tokens, split_tokens, token_map
from limbeck.methods.base import Setup, build_method
from limbeck.schedules import Progress
from limbeck.signals import Signals
from methods.workbench import bench


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _moved(tokens: Tensor) -> Tensor:
    """The same tokens turned, shifted, and in a wider space."""
    width = tokens.shape[-1]
    turn, _ = torch.linalg.qr(_tokens(width + 2, width + 2))
    return tokens @ turn[:width] + _tokens(width + 2)


@pytest.mark.parametrize("bandwidth", [None, 1.5])
def test_every_token_has_its_neighbours_and_not_itself(bandwidth: float | None) -> None:
    tokens = _tokens(12, 4)
    adjacency = token_graph(tokens, neighbours=3, bandwidth=bandwidth).adjacency()
    assert ((adjacency > 0).sum(1) == 3).all()
    assert adjacency.diagonal().tolist() == [0.0] * 12
    assert (adjacency <= 1).all()
    distances = torch.cdist(tokens, tokens).fill_diagonal_(torch.inf)
    for row, near in zip(adjacency, distances.argsort(1)[:, :3]):
        assert set(row.nonzero().flatten().tolist()) == set(near.tolist())
    torch.testing.assert_close(token_graph(_moved(tokens), neighbours=3, bandwidth=bandwidth).adjacency(), adjacency)


def test_the_default_bandwidth_ignores_scale() -> None:
    tokens = _tokens(9, 3)
    graphs = [token_graph(scale * tokens, neighbours=2) for scale in (1.0, 50.0)]
    torch.testing.assert_close(graphs[0].adjacency(), graphs[1].adjacency())


@pytest.mark.parametrize("rows", ["adjacency", "neighbours"])
def test_the_default_bandwidth_neither_shrinks_nor_stretches_the_tokens(rows: str) -> None:
    tokens = _tokens(9, 3).requires_grad_()
    loss = neighbourhood_divergence(tokens, _tokens(9, 3), neighbours=2, rows=rows)
    (gradient,) = torch.autograd.grad(loss, tokens)
    assert gradient.norm() > 1e-3
    assert abs((gradient * tokens).sum().item()) < 1e-12


@pytest.mark.parametrize("bandwidth", [None, 1.5])
@pytest.mark.parametrize("rows", ["adjacency", "neighbours"])
def test_blocks_of_rows_give_the_whole(bandwidth: float | None, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = _tokens(11, 3).requires_grad_(), _tokens(11, 3)

    def losses() -> tuple[Tensor, Tensor]:
        near = neighbourhood_divergence(ours, theirs, neighbours=3, bandwidth=bandwidth, rows=rows, reduction="none")
        both = torch.stack([near, token_contrast(ours, theirs, temperature=0.2, reduction="none")])
        return both, torch.autograd.grad((both * torch.arange(22).view(2, 11)).sum(), ours)[0]

    graphs = [token_graph(tokens, neighbours=3, bandwidth=bandwidth) for tokens in (ours, theirs)]
    whole = losses()
    torch.testing.assert_close(whole[0][0], graph_divergence(*graphs, rows=rows, reduction="none"))
    monkeypatch.setattr(limbeck.functional.token_graph, "_BLOCK_ELEMENTS", 4 * 11)
    torch.testing.assert_close(losses(), whole)


@pytest.mark.parametrize("rows", ["adjacency", "neighbours"])
@pytest.mark.parametrize("student_first", [False, True])
def test_an_isometric_copy_has_the_same_graph(rows: str, student_first: bool) -> None:
    tokens = _tokens(10, 3)
    graphs = [token_graph(t, neighbours=4) for t in (_moved(tokens), tokens)]
    loss = graph_divergence(*graphs, rows=rows, student_first=student_first)
    assert abs(loss.item()) < 1e-12
    other = graph_divergence(token_graph(_tokens(10, 3), neighbours=4), graphs[1], rows=rows, reduction="none")
    assert (other > 0).all()


def test_both_rows_give_the_divergence_they_say() -> None:
    ours, theirs = (token_graph(_tokens(6, 3), neighbours=2, bandwidth=1.0) for _ in range(2))
    p, q = (torch.softmax(g.adjacency(), 1) for g in (theirs, ours))
    torch.testing.assert_close(graph_divergence(ours, theirs, reduction="none"), (p * (p / q).log()).sum(1))
    for row in range(6):
        kept = ours.edges[row] | theirs.edges[row]
        p, q = (torch.softmax(g.log_affinity[row, kept], 0) for g in (theirs, ours))
        loss = graph_divergence(ours, theirs, rows="neighbours", reduction="none")[row]
        torch.testing.assert_close(loss, (p * (p / q).log()).sum())


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens have no 3 neighbours"):
        token_graph(_tokens(3, 2), neighbours=3)


def test_contrast_falls_as_tokens_approach_their_own_place() -> None:
    theirs = _tokens(8, 4)
    assert token_contrast(torch.ones(8, 4), torch.ones(8, 4), temperature=0.3).item() == pytest.approx(math.log(8))
    start = _tokens(8, 4)
    losses = [token_contrast((1 - a) * start + a * theirs, theirs, temperature=0.2).item() for a in (0.0, 0.5, 1.0)]
    assert losses[0] > losses[1] > losses[2]


def test_context_ignores_a_common_order_of_tokens() -> None:
    ours, theirs, order = _tokens(3, 6, 4), _tokens(3, 6, 5), torch.randperm(6)
    loss = context_difference(ours, theirs)
    torch.testing.assert_close(context_difference(ours[:, order], theirs[:, order]), loss)
    turn, _ = torch.linalg.qr(_tokens(4, 4))
    assert context_difference(ours @ turn, ours).item() < 1e-20
    assert loss > 0


def test_tokens_are_found_in_maps_and_sequences() -> None:
    tokens = _tokens(2, 17, 3)
    places, classes = split_tokens(tokens)
    assert torch.equal(torch.cat([classes, places], 1), tokens)
    assert torch.equal(split_tokens(token_map(tokens))[0], places)
    one, other = aligned_tokens(_tokens(2, 5, 8, 8), tokens)
    assert torch.equal(other, places)
    assert one.shape == (2, 16, 5)
    with pytest.raises(ValueError, match="7 tokens are no square grid"):
        split_tokens(_tokens(2, 7, 3))
    with pytest.raises(ValueError, match="batch, tokens, width"):
        split_tokens(_tokens(2, 7))


def _sides(*features: Tensor) -> dict[str, Signals]:
    return {
        role: Signals(logits=torch.zeros(4, 3), features={"stages": (tensor,)})
        for role, tensor in zip(("student", "teacher"), features)
    }


def test_a_convolution_can_learn_from_a_transformer_and_back() -> None:
    batch = {"index": torch.arange(4), "labels": torch.arange(4) % 3}
    maps, tokens = torch.randn(4, 6, 8, 8), torch.randn(4, 17, 10)
    for ours, theirs in ((maps, tokens), (tokens, maps)):
        method = build_method("trg")
        sides = _sides(ours.requires_grad_(), theirs)
        method.build(Setup(signals={role: s.detach() for role, s in sides.items()}, models={}))
        terms = method(batch, **sides)
        for name in ("inner", "local", "global"):
            loss = terms[name].mean()
            (gradient,) = torch.autograd.grad(loss, ours, retain_graph=True)
            assert gradient.abs().max() > 0


def test_what_has_no_grid_or_no_stage_is_refused() -> None:
    with pytest.raises(NeedsError, match="square grid"):
        build_method("trg").build(Setup(signals=_sides(torch.zeros(4, 7, 2), torch.zeros(4, 9, 2)), models={}))
    with pytest.raises(RecipeError, match="stage = 3, but the student has 1"):
        build_method("trg", stage=3).build(Setup(signals=_sides(torch.zeros(4, 9, 2), torch.zeros(4, 9, 2)), models={}))


def test_the_temperature_falls_and_survives_the_state_dict() -> None:
    method = build_method("trg", start_temperature=0.5, end_temperature=0.1)
    seen = []
    for step in range(5):
        method.after_step(Progress(step, 1, 4))
        seen.append(method.contrast_temperature().item())
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == pytest.approx(0.5)
    assert seen[-1] == pytest.approx(0.1)
    other = build_method("trg", start_temperature=0.5, end_temperature=0.1)
    other.load_state_dict(method.state_dict())
    assert other.contrast_temperature() == method.contrast_temperature()


def test_sampled_places_differ_by_epoch_and_stay_within_their_image() -> None:
    built = bench("trg", {"tokens": 3})
    batch = built.batch()
    nodes = built.method._sampled(batch, 16)
    assert nodes.shape == (18,)
    assert (nodes // 16).tolist() == [i for i in range(6) for _ in range(3)]
    assert len(nodes.unique()) == 18
    assert not torch.equal(nodes, built.method._sampled(type(batch)({**batch, "epoch": 1}), 16))
