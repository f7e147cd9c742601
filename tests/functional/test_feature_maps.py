"""Losses between feature maps against float64 loops in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.functional.activation_boundaries import negative_part_mean, partial_distance
from limbeck.functional.feature_likelihood import gaussian_feature_nll
from limbeck.functional.feature_maps import (
    attention_map,
    attention_transfer,
    flow_matrix,
    hierarchical_context,
    mean_squared_features,
    pool_to_smaller,
    unit_vectors,
)
from limbeck.functional.neuron_selectivity import neuron_selectivity

SIZES = [((6, 6), (6, 6)), ((6, 6), (3, 3)), ((3, 2), (6, 4)), ((5, 4), (2, 6))]


def maps(channels: int, size: tuple[int, int] = (6, 6), *, seed: int = 0, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, *size, generator=generator, dtype=torch.float64)


def pooled(features: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average pooling whose windows cover the map: from floor(i H / h) up to ceil((i + 1) H / h)."""
    height, width = features.shape[2:]
    result = np.empty((*features.shape[:2], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * height // size[0], -(-(i + 1) * height // size[0]))
            columns = slice(j * width // size[1], -(-(j + 1) * width // size[1]))
            result[:, :, i, j] = features[:, :, rows, columns].mean((2, 3))
    return result


def aligned(first: Tensor, second: Tensor) -> tuple[np.ndarray, np.ndarray]:
    size = tuple(min(a, b) for a, b in zip(first.shape[2:], second.shape[2:]))
    return pooled(first.numpy(), size), pooled(second.numpy(), size)


def close(ours: Tensor, reference: object) -> None:
    np.testing.assert_allclose(ours.numpy(), np.asarray(reference), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("first", "second"), SIZES)
def test_pooling_goes_to_the_smaller_of_each_side(first: tuple[int, int], second: tuple[int, int]) -> None:
    ours, theirs = maps(2, first), maps(3, second, seed=1)
    for given, expected in zip(pool_to_smaller(ours, theirs), aligned(ours, theirs)):
        close(given, expected)


def test_a_map_that_has_the_size_already_is_not_copied() -> None:
    ours, theirs = maps(2), maps(2, (3, 3))
    assert pool_to_smaller(ours, theirs)[1] is theirs


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 5)])
def test_what_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[batch, channels, height, width\]"):
        pool_to_smaller(torch.zeros(shape), maps(2))


def test_unit_vectors_have_length_one_at_any_scale() -> None:
    rows = torch.tensor([[3.0, 4.0], [3e30, 4e30], [3e-30, 4e-30]])
    torch.testing.assert_close(unit_vectors(rows), torch.tensor([[0.6, 0.8]] * 3))


def test_a_zero_vector_stays_zero_with_a_finite_gradient() -> None:
    rows = torch.zeros(2, 3, requires_grad=True)
    unit = unit_vectors(rows)
    unit.sum().backward()
    assert not unit.any()
    assert torch.isfinite(rows.grad).all()


def test_the_gradient_of_unit_vectors_is_tangential() -> None:
    torch.autograd.gradcheck(unit_vectors, maps(2, (2, 2)).flatten(2).requires_grad_())


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 2.5])
@pytest.mark.parametrize(("first", "second"), SIZES)
@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_attention_transfer(distance: str, first: tuple[int, int], second: tuple[int, int], p: float) -> None:
    ours, theirs = maps(3, first), maps(5, second, seed=1)
    expected = []
    for s, t in zip(*aligned(ours, theirs)):
        units = []
        for side in (s, t):
            strength = (np.abs(side) ** p).sum(0).ravel() / len(side)
            units.append(strength / math.sqrt(sum(v * v for v in strength)))
        squares = (units[0] - units[1]) ** 2
        expected.append(squares.mean() if distance == "squared" else math.sqrt(squares.sum()))
    close(attention_transfer(ours, theirs, p=p, distance=distance, reduction="none"), expected)
    close(attention_transfer(ours, theirs, p=p, distance=distance), np.mean(expected))


def test_attention_does_not_depend_on_scale_sign_or_order_of_channels() -> None:
    ours, theirs = maps(4), maps(4, seed=1)
    expected = attention_transfer(ours, theirs, p=3.0)
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64).view(3, 1, 1, 1)
    torch.testing.assert_close(attention_transfer(-scale * ours.flip(1), theirs, p=3.0), expected)


def test_attention_of_huge_activations_is_finite() -> None:
    features = (1e30 * maps(3).float()).requires_grad_()
    unit = attention_map(features, p=4.0)
    unit.square().sum().backward()
    torch.testing.assert_close(unit.detach().square().sum(1), torch.ones(3))
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_attention_is_the_same_at_every_scale(p: float, scale: float) -> None:
    plain = maps(3).float().requires_grad_()
    scaled = (scale * plain.detach()).requires_grad_()
    direction = maps(3, seed=1).float().flatten(2).mean(1)
    for features in (plain, scaled):
        (attention_map(features, p=p) * direction).sum().backward()
    torch.testing.assert_close(attention_map(scaled, p=p), attention_map(plain, p=p))
    torch.testing.assert_close(scale * scaled.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_attention_is_exact() -> None:
    torch.autograd.gradcheck(lambda x: attention_map(x, p=3.0), maps(2, (2, 3)).requires_grad_())


@pytest.mark.parametrize(("call", "words"), [
    (lambda: attention_map(maps(2), p=0.5), "p should be at least 1"),
    (lambda: attention_transfer(maps(2), maps(2), distance="l3"), "'l3'"),
    (lambda: neuron_selectivity(maps(2), maps(2), kernel="cubic"), "'cubic'"),
    (lambda: mean_squared_features(maps(2), maps(3)), "same shape"),
    (lambda: partial_distance(maps(2), maps(3), torch.zeros(3)), "same shape"),
    (lambda: gaussian_feature_nll(maps(2), maps(3), torch.ones(3)), "same shape"),
])  # fmt: skip
def test_bad_arguments_are_refused(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_mean_squared_features() -> None:
    ours, theirs = maps(3), maps(3, seed=1)
    expected = [((s - t) ** 2).sum() / s.size for s, t in zip(ours.numpy(), theirs.numpy())]
    close(mean_squared_features(ours, theirs, reduction="none"), expected)


@pytest.mark.parametrize(("first", "second"), SIZES)
def test_flow_matrix(first: tuple[int, int], second: tuple[int, int]) -> None:
    lower, upper = maps(3, first), maps(5, second, seed=1)
    low, high = aligned(lower, upper)
    expected = [
        [[(h[i] * l[j]).sum() / l[j].size for j in range(3)] for i in range(5)]
        for l, h in zip(low, high)  # noqa: E741
    ]
    close(flow_matrix(lower, upper), expected)


@pytest.mark.parametrize("pools", [(4, 2, 1), (2,), ()])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (3, 5), (1, 1)])
def test_hierarchical_context(size: tuple[int, int], pools: tuple[int, ...]) -> None:
    ours, theirs = maps(3, size), maps(3, size, seed=1)
    expected = []
    for s, t in zip(ours.numpy(), theirs.numpy()):
        losses, weights = [((s - t) ** 2).mean()], [1.0]
        for pool in pools:
            if pool < min(size):
                small = pooled(s[None], (pool, pool)) - pooled(t[None], (pool, pool))
                losses.append((small**2).mean())
                weights.append(weights[-1] / 2)
        expected.append(np.dot(losses, weights) / sum(weights))
    close(hierarchical_context(ours, theirs, pools=pools, reduction="none"), expected)


def _discrepancy(s: np.ndarray, t: np.ndarray, kernel: object) -> float:
    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[kernel(x, y) for y in b] for x in a]))

    return mean(t, t) + mean(s, s) - 2 * mean(t, s)


@pytest.mark.parametrize(("first", "second"), SIZES)
@pytest.mark.parametrize(("config", "kernel"), [
    ({}, lambda x, y: (x @ y) ** 2),
    ({"degree": 3, "offset": 0.5}, lambda x, y: (x @ y + 0.5) ** 3),
    ({"kernel": "linear", "degree": 5}, lambda x, y: x @ y),
])  # fmt: skip
def test_neuron_selectivity(
    first: tuple[int, int], second: tuple[int, int], config: dict[str, object], kernel: object
) -> None:
    ours, theirs = maps(3, first), maps(5, second, seed=1)
    expected = []
    for s, t in zip(*aligned(ours, theirs)):
        s, t = (side.reshape(len(side), -1) for side in (s, t))
        s, t = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (s, t))
        expected.append(_discrepancy(s, t, kernel))
    close(neuron_selectivity(ours, theirs, reduction="none", **config), expected)


def test_neuron_selectivity_with_a_gaussian_kernel() -> None:
    ours, theirs = maps(3), maps(5, seed=1)
    expected = []
    for s, t in zip(ours.flatten(2).numpy(), theirs.flatten(2).numpy()):
        s, t = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (s, t))
        variance = np.mean([[((x - y) ** 2).sum() for y in t] for x in s])
        expected.append(_discrepancy(s, t, lambda x, y, v=variance: math.exp(-((x - y) ** 2).sum() / (2 * v))))
    close(neuron_selectivity(ours, theirs, kernel="gaussian", reduction="none"), expected)


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_equal_sets_of_channels_have_no_discrepancy(kernel: str) -> None:
    features = maps(4).requires_grad_()
    loss = neuron_selectivity(features, features.detach().flip(1), kernel=kernel)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert torch.isfinite(features.grad).all()


def test_neuron_selectivity_needs_no_product_of_channels_and_positions() -> None:
    """256 x 256 channels of 64x64 positions would be 2 GB a sample."""
    features = torch.randn(1, 256, 64, 64)
    assert torch.isfinite(neuron_selectivity(features, features.flip(2)))


def test_gaussian_feature_nll() -> None:
    mean, target, variance = maps(4), maps(4, seed=1), torch.tensor([0.1, 1.0, 2.0, 50.0], dtype=torch.float64)
    expected = []
    for s, t in zip(mean.numpy(), target.numpy()):
        total = 0.0
        for c, v in enumerate(variance.tolist()):
            total += sum(0.5 * ((a - b) ** 2 / v + math.log(v)) for a, b in zip(s[c].ravel(), t[c].ravel()))
        expected.append(total / s.size)
    close(gaussian_feature_nll(mean, target, variance, reduction="none"), expected)


def test_negative_part_mean_is_the_conditional_expectation() -> None:
    """Against a numerical integral over the density, but for channels that are hardly ever negative."""
    mean = torch.tensor([0.0, 1.5, -2.0, -40.0, 3.0])
    deviation = torch.tensor([1.0, -0.6, 0.5, 1.0, 1.2])
    for margin, mu, sigma in zip(negative_part_mean(mean.double(), deviation.double()), mean, deviation.abs()):
        low = min(float(mu - 12 * sigma), -12 * float(sigma))
        x = np.linspace(low, 0, 400_001)
        density = np.exp(-(((x - float(mu)) / float(sigma)) ** 2) / 2)
        np.testing.assert_allclose(float(margin), (x * density).sum() / density.sum(), rtol=1e-4, atol=1e-5)


def test_channels_that_are_hardly_ever_negative_take_three_deviations() -> None:
    close(negative_part_mean(torch.tensor([4.0]).double(), torch.tensor([-0.5]).double()), [-1.5])


def test_channels_without_spread_have_a_margin() -> None:
    close(negative_part_mean(torch.tensor([2.0, -1.0]).double(), torch.zeros(2).double()), [0.0, -1.0])


@pytest.mark.parametrize("size", [(6, 6), (3, 3), (12, 12), (4, 5)])
def test_partial_distance(size: tuple[int, int]) -> None:
    ours, theirs = maps(3), maps(3, size, seed=1)
    margin = torch.tensor([-0.1, -0.7, -3.0], dtype=torch.float64)
    expected = []
    for s, t in zip(ours.numpy(), pooled(theirs.numpy(), (6, 6))):
        total = 0.0
        for c, low in enumerate(margin.tolist()):
            for a, b in zip(s[c].ravel(), t[c].ravel()):
                if b > 0:
                    total += (a - b) ** 2
                elif b > low:
                    total += (a - b) ** 2 if a > b else 0.0
                else:
                    total += (a - low) ** 2 if a > low else 0.0
        expected.append(total)
    close(partial_distance(ours, theirs, margin, reduction="none"), expected)


def test_silent_neurons_give_no_gradient() -> None:
    student = torch.tensor([[[[-5.0, 2.0]]]], requires_grad=True)
    partial_distance(student, torch.full((1, 1, 1, 2), -2.0), torch.tensor([-1.0])).backward()
    assert student.grad.flatten().tolist() == [0.0, 6.0]
