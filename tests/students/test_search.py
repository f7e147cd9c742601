"""Search for students: spaces, training-free scores, evolution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from limbeck.errors import RecipeError, UnknownNameError
from limbeck.functional.rank_correlation import kendall_tau, spearman_rho
from limbeck.functional.training_free import (
    activation_pattern_score,
    class_correlation_distance,
    classifier_gradient,
    relation_score,
    semantic_score,
)
from limbeck.students.loading import build_model
from limbeck.students.search.evolve import Budget, Evolution, Settings
from limbeck.students.search.score import Scorer, View, compare
from limbeck.students.search.space import Space, build_space, cell_space, residual_space


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_classifier_gradient_is_that_of_autograd() -> None:
    weight, bias, pooled = _randn(4, 6).requires_grad_(), _randn(4, seed=1), _randn(9, 6, seed=2)
    labels = torch.arange(9) % 4
    nn.functional.cross_entropy(pooled @ weight.T + bias, labels).backward()
    torch.testing.assert_close(classifier_gradient(pooled, labels, weight.detach(), bias), weight.grad)


def _outer_rows(gradient: Tensor) -> Tensor:
    return nn.functional.normalize(gradient.unsqueeze(2) * gradient.unsqueeze(1), dim=2)


@pytest.mark.parametrize("zeros", [False, True])
def test_class_correlations_equal_the_explicit_outer_products(zeros: bool) -> None:
    ours, theirs = _randn(5, 7), _randn(5, 7, seed=1)
    if zeros:
        ours[0, 1] = ours[2] = theirs[0, 3] = theirs[0, 1] = theirs[4] = 0.0
    explicit = (_outer_rows(ours) - _outer_rows(theirs)).square()
    torch.testing.assert_close(class_correlation_distance(ours, theirs, reduction="none"), explicit.sum(2))
    torch.testing.assert_close(class_correlation_distance(ours, theirs), explicit.sum() / 35)


@pytest.mark.parametrize("size", [1e-9, 1e-5, 1.0])
def test_tiny_gradients_are_divided_by_no_less_than_eps(size: float) -> None:
    ours, theirs = size * _randn(5, 7), _randn(5, 7, seed=1)
    ours[0, 1] = theirs[2, 3] = 0.0
    rows = [nn.functional.normalize(g[:, :, None] * g[:, None], dim=-1, eps=1e-12) for g in (ours, theirs)]
    explicit = (rows[0] - rows[1]).square().sum() / 35
    torch.testing.assert_close(class_correlation_distance(ours, theirs, eps=1e-12), explicit)
    gradients = [View(torch.eye(5), gradient) for gradient in (ours, theirs)]
    assert compare(*gradients, eps=1e-12).semantic == pytest.approx(-explicit.item())
    with pytest.raises(ValueError, match="0 or more"):
        class_correlation_distance(ours, theirs, eps=-1.0)


def test_scores_are_at_most_zero_and_zero_for_the_teacher_itself() -> None:
    features, gradient = _randn(6, 3, 4, 4), _randn(5, 7)
    assert relation_score(features, features) == 0
    assert semantic_score(gradient, gradient) == 0
    assert relation_score(_randn(6, 2, 2, 2, seed=1), features) < 0
    assert semantic_score(_randn(5, 7, seed=1), gradient) < 0


def test_relation_score_ignores_rotations_and_scale() -> None:
    student, teacher = _randn(6, 8), _randn(6, 3, 2, 2, seed=1)
    rotation = torch.linalg.qr(_randn(8, 8, seed=2)).Q
    torch.testing.assert_close(relation_score(3.0 * student @ rotation, teacher), relation_score(student, teacher))


def test_semantic_score_ignores_scale_and_sees_a_changed_sign() -> None:
    ours, theirs = _randn(5, 7), _randn(5, 7, seed=1)
    torch.testing.assert_close(semantic_score(0.01 * ours, theirs), semantic_score(ours, theirs))
    flipped = ours.clone()
    flipped[2, 3] *= -1
    assert not torch.isclose(semantic_score(flipped, theirs), semantic_score(ours, theirs), rtol=1e-3)


def test_classifiers_of_other_shapes_are_refused_with_the_fix() -> None:
    narrow, wide = (View(_randn(4, 3), _randn(5, width)) for width in (6, 8))
    with pytest.raises(RecipeError, match=r"\(5, 6\).*\(5, 8\).*last width"):
        compare(narrow, wide)


def test_activation_patterns_tell_samples_apart() -> None:
    codes = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 1]])
    kernel = codes @ codes.T + (1 - codes) @ (1 - codes).T
    assert activation_pattern_score(kernel).item() == pytest.approx(math.log(abs(np.linalg.det(kernel.numpy()))))
    assert activation_pattern_score(torch.full((2, 2), 4.0)) == -math.inf


@pytest.mark.parametrize("levels", [4, 1000])
def test_rank_correlations_are_scipys(levels: int) -> None:
    generator = np.random.default_rng(1)
    first, second = generator.integers(0, levels, (2, 40)).astype(float)
    args = torch.from_numpy(first), torch.from_numpy(second)
    assert kendall_tau(*args).item() == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)
    assert spearman_rho(*args).item() == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert kendall_tau(args[0], torch.zeros(40)) == 0


def _scorer(**options: Any) -> Scorer:
    images = torch.rand((16, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    return Scorer("resnet8", images, torch.arange(16) % 4, num_classes=4, **options)


def test_scores_are_reproducible_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (_scorer()({"name": "resnet_cifar", "depths": [1, 2, 1]}) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert first != _scorer(seed=1)({"name": "resnet_cifar", "depths": [1, 2, 1]})
    assert first["relation"] < 0
    assert first["semantic"] < 0


def test_repeats_average_over_initialisations() -> None:
    def spread(repeats: int) -> float:
        return float(
            np.std([_scorer(repeats=repeats, seed=s, terms=["semantic"])("resnet8")["semantic"] for s in range(12)])
        )

    assert spread(8) < 0.75 * spread(1)


def test_relation_alone_needs_no_common_width() -> None:
    spec = {"name": "resnet_cifar", "widths": [4, 4, 8]}
    with pytest.raises(RecipeError, match="last width"):
        _scorer()(spec)
    assert set(_scorer(terms=["relation"])(spec)) == {"relation", "parameters", "macs"}


def test_spaces_are_enumerable_and_write_recipes() -> None:
    assert residual_space().size == 125 * 5 * 7
    assert cell_space().size == 15_625
    space = build_space(
        {
            "model": "resnet_cifar",
            "choices": {"depths.1": [1, 2], "widths.0": [4, 8]},
            "fixed": {"depths.0": 1, "depths.2": 1, "widths.1": 8, "widths.2": 8},
        }
    )
    specs = [space.spec(genes) for genes in space]
    assert specs[1] == {"name": "resnet_cifar", "depths": [1, 1, 1], "widths": [8, 8, 8]}
    assert len({space.text(genes) for genes in space}) == space.size == 4
    for spec in specs:
        build_model(spec, num_classes=3, input_shape=(1, 8, 8))


@pytest.mark.parametrize("space", [residual_space(), cell_space()], ids=["residual", "cells"])
def test_a_mutation_changes_one_decision(space: Space) -> None:
    genes = space.draw(0, 1)
    children = {space.mutate(genes, 0, number) for number in range(300)}
    assert all(sum(a != b for a, b in zip(genes, child)) == 1 for child in children)
    assert len(children) == sum(len(options) - 1 for options in space.choices.values())
    model = build_model(space.spec(genes), num_classes=3, input_shape=(1, 8, 8))
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("resnets", "resnets"),
        ({"model": "mlp", "choice": {}}, "choice"),
        ({"model": "mlp", "choices": {"dropout": [0.1]}}, "dropout"),
        ({"model": "mlp"}, "choices"),
    ],
)
def test_malformed_spaces_are_named(spec: Any, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        build_space(spec)


def test_unknown_model_of_a_space_is_named() -> None:
    with pytest.raises(UnknownNameError, match="mlpp"):
        build_space({"model": "mlpp", "choices": {"hidden.0": [2, 3]}})


_SMALL = Space("mlp", {"hidden.0": range(1, 9), "hidden.1": range(1, 9)})  # type: ignore[dict-item]


def _toy(spec: dict[str, Any]) -> dict[str, float]:
    """A smooth landscape with its summit at 6, 3; the cost is the sum of both."""
    a, b = spec["hidden"]
    return {"fit": -((a - 6) ** 2) - (b - 3) ** 2, "parameters": float(a + b), "macs": float(a * b)}


def test_evolution_finds_the_best_of_an_enumerable_space_within_a_third_of_its_scores() -> None:
    space = Space("mlp", {f"hidden.{layer}": (1, 2, 3) for layer in range(4)})
    summit = (3, 1, 2, 3)

    def score(spec: dict[str, Any]) -> dict[str, float]:
        return {"fit": -sum(abs(a - b) for a, b in zip(spec["hidden"], summit)), "parameters": 0.0, "macs": 0.0}

    hits = 0
    for seed in range(20):
        settings = Settings(candidates=space.size // 3, population=8, sample=6, elite=1, terms=("fit",), seed=seed)
        history = Evolution(space, score, score, settings).run()
        assert len(history) <= space.size // 3
        hits += max(c.value for c in history) == 0
    assert hits >= 15  # a random search is right 6.7 times on average


def test_the_authors_order_breeds_from_the_worst() -> None:
    def mean(order: Any) -> float:
        settings = Settings(candidates=40, population=8, sample=8, elite=2, order=order, terms=("fit",))
        return float(np.mean([c.value for c in Evolution(_SMALL, _toy, _toy, settings).run()]))

    assert mean("best") > mean("released") + 2


def test_no_student_is_over_budget() -> None:
    settings = Settings(candidates=30, population=5, terms=("fit",), budget=Budget(parameters=7, macs=9))
    asked: list[float] = []

    def score(spec: dict[str, Any]) -> dict[str, float]:
        asked.append(_toy(spec)["parameters"])
        return _toy(spec)

    history = Evolution(_SMALL, score, _toy, settings).run()
    assert all(c.scores["parameters"] <= 7 and c.scores["macs"] <= 9 for c in history)
    assert len(asked) == len(history)
    with pytest.raises(RecipeError, match="budget of 1"):
        Evolution(_SMALL, _toy, _toy, Settings(terms=("fit",), budget=Budget(parameters=1))).run()


def test_a_search_goes_on_from_the_scores_it_has() -> None:
    settings = Settings(candidates=20, population=5, terms=("fit",), seed=4)
    seen: dict[str, Any] = {}
    whole = Evolution(_SMALL, _toy, _toy, settings, scored=seen.__setitem__).run()
    half = dict(list(seen.items())[:10])
    later: dict[str, Any] = {}
    again = Evolution(_SMALL, _toy, _toy, settings, known=half, scored=later.__setitem__).run()
    assert again == whole
    assert set(later) == set(seen) - set(half)


def test_standardised_terms_count_alike() -> None:
    def two(spec: dict[str, Any]) -> dict[str, float]:
        return {**_toy(spec), "tiny": 1e-6 * spec["hidden"][1]}

    def best(**options: Any) -> list[int]:
        settings = Settings(candidates=64, population=20, terms=("fit", "tiny"), **options)
        return list(max(Evolution(_SMALL, two, two, settings).run(), key=lambda c: c.value).spec["hidden"])

    assert best() == [6, 3]
    assert best(standardize=True)[1] > 3


def test_unknown_terms_and_settings_are_named() -> None:
    with pytest.raises(RecipeError, match=r"'fitt'.*'fit'"):
        Evolution(_SMALL, _toy, _toy, Settings(terms=("fitt",))).run()
    with pytest.raises(RecipeError, match="elite = 0"):
        Settings(elite=0)
