"""Selectors against their definitions, a linear program, and what a ledger must refuse."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from limbeck.errors import DataError, NeedsError, RecipeError, UnknownNameError
from limbeck.functional.selection import (
    k_center_greedy,
    robust_distribution,
    sample_without_replacement,
    uncertainty,
)
from limbeck.selection import Ledger, PoolSignals, build_selector, selectors

N, C = 20, 4


def pool(**changes) -> PoolSignals:
    generator = torch.Generator().manual_seed(0)
    facts = {
        "index": torch.arange(100, 100 + N),
        "logits": 2 * torch.randn(N, C, generator=generator).double(),
        "labelled": torch.randn(5, C, generator=generator).double(),
        "labels": torch.tensor([0, 0, 1, 2, 0]),
        "teacher_accuracy": 0.8,
    }
    return PoolSignals(**{**facts, **changes})


def picked(name, pool: PoolSignals, count: int) -> torch.Tensor:
    order = build_selector(name, counted=True)(pool, count).order
    assert order is not None
    return order


@pytest.mark.parametrize("name", [e.name for e in selectors.entries() if e.part.unit == "samples" and e.part.counted])
def test_every_selector_picks_distinct_samples_and_the_same_again(name: str) -> None:
    select = build_selector(name, counted=True)
    choice = select(pool(), 7)
    found = picked(name, pool(), 7)
    assert choice.chosen.nonzero().squeeze(1).tolist() == sorted(found.tolist())
    assert choice.scores.shape == (N,)
    assert len(set(found.tolist())) == 7
    assert found.min() >= 0
    assert found.max() < N
    assert torch.equal(found, picked(name, pool(), 7))
    assert sorted(picked(name, pool(), N).tolist()) == list(range(N))
    assert picked(name, pool(), 3).tolist() == found[:3].tolist() or name == "class_balanced"
    with pytest.raises(NeedsError, match="how many samples"):
        select(pool())


@pytest.mark.parametrize("name", ["random", "rad", "class_balanced"])
def test_chance_depends_on_seed_and_round(name: str) -> None:
    drawn = {tuple(picked(name, pool(round=r, seed=s), 6).tolist()) for r in (1, 2) for s in (0, 1)}
    assert len(drawn) == 4


def brute_force(points: np.ndarray, centers: np.ndarray, count: int) -> list[int]:
    picked: list[int] = []
    for _ in range(count):
        covered = np.concatenate([centers, points[picked]])
        gaps = np.linalg.norm(points[:, None] - covered[None], axis=2).min(1)
        gaps[picked] = -1
        picked.append(int(gaps.argmax()))
    return picked


def test_k_center_greedy_against_all_distances_and_its_invariances() -> None:
    signals = pool()
    points, centers = signals.given("logits").softmax(1), signals.given("labelled").softmax(1)
    cover = k_center_greedy(points, centers, 9)
    assert cover.picked.tolist() == brute_force(points.numpy(), centers.numpy(), 9)
    assert (cover.distance[1:] <= cover.distance[:-1] + 1e-12).all()
    classes = torch.tensor([2, 0, 3, 1])
    assert torch.equal(k_center_greedy(points[:, classes], centers[:, classes], 9).picked, cover.picked)
    with_center = torch.cat([centers[:1], points])
    assert int(k_center_greedy(with_center, centers, N + 1).picked[-1]) == 0
    twice = torch.cat([points, points])
    assert len({i % N for i in k_center_greedy(twice, centers, N).picked.tolist()}) == N
    assert k_center_greedy(points, centers, 4, metric="cosine").picked.shape == (4,)


@pytest.mark.parametrize(("incorrect", "cost"), [(0, 0.0), (2, 0.0), (3, 1.0), (5, 0.5)])
def test_the_game_against_a_linear_program(incorrect: int, cost: float) -> None:
    gains = torch.rand(9, generator=torch.Generator().manual_seed(incorrect)).double() + 0.05
    game = robust_distribution(gains, incorrect=incorrect, wrong_cost=cost)
    rows = []
    for wrong in itertools.combinations(range(9), incorrect):
        signs = np.ones(9)
        signs[list(wrong)] = -cost
        rows.append(np.append(-signs * gains.numpy(), 1.0))
    solved = linprog(
        np.append(np.zeros(9), -1.0), A_ub=np.array(rows), b_ub=np.zeros(len(rows)),
        A_eq=[np.append(np.ones(9), 0.0)], b_eq=[1.0], bounds=[(0, 1)] * 9 + [(None, None)],
    )  # fmt: skip
    assert float(game.value) == pytest.approx(-solved.fun, abs=1e-9)
    assert float(game.distribution.sum()) == pytest.approx(1)
    share = (game.distribution * gains)[game.distribution > 0]
    torch.testing.assert_close(share, share[:1].expand_as(share))
    assert int((game.distribution > 0).sum()) == game.support
    worst = (game.distribution * gains).sort(descending=True).values
    guaranteed = worst.sum() - (1 + cost) * worst[:incorrect].sum()
    assert float(guaranteed) == pytest.approx(float(game.value))
    scaled = robust_distribution(30 * gains, incorrect=incorrect, wrong_cost=cost)
    torch.testing.assert_close(scaled.distribution, game.distribution)


def test_limits_of_the_game() -> None:
    gains = torch.tensor([0.3, 0.9, 0.5]).double()
    assert robust_distribution(gains, incorrect=0).distribution.tolist() == [0, 1, 0]
    hopeless = robust_distribution(gains, incorrect=3)
    torch.testing.assert_close(hopeless.distribution, torch.full((3,), 1 / 3).double())
    assert float(hopeless.value) <= 0
    with pytest.warns(UserWarning, match="drawing evenly"):
        picked({"name": "rad", "teacher_accuracy": 0.0}, pool(), 3)
    with pytest.raises(NeedsError, match="teacher_accuracy"):
        picked("rad", pool(teacher_accuracy=None), 3)


def test_rad_with_a_perfect_teacher_starts_with_the_largest_gain() -> None:
    found = picked({"name": "rad", "teacher_accuracy": 1.0}, pool(), 5)
    expected = uncertainty(pool().given("logits"), gain="margin").argsort(descending=True)[:5]
    assert torch.equal(found, expected)


def test_draws_follow_the_distribution() -> None:
    weights = torch.tensor([0.0, 0.1, 0.3, 0.6]).double()
    generator = torch.Generator().manual_seed(0)
    first = [
        int(sample_without_replacement(weights, 1, torch.rand(4, generator=generator).double())) for _ in range(3000)
    ]
    shares = torch.bincount(torch.tensor(first), minlength=4) / 3000
    torch.testing.assert_close(shares.double(), weights, atol=0.04, rtol=0)
    filled = sample_without_replacement(
        weights.masked_fill(weights < 0.5, 0), 3, torch.full((4,), 0.5).double(), fallback=torch.arange(4).double()
    )
    assert filled.tolist() == [3, 2, 1]


def test_gains_against_their_definitions() -> None:
    logits = pool().given("logits")
    p = logits.softmax(1)
    top = p.topk(2, 1).values
    torch.testing.assert_close(uncertainty(logits, gain="margin"), 1 - top[:, 0] + top[:, 1])
    torch.testing.assert_close(uncertainty(logits, gain="entropy"), -(p * p.log()).sum(1))
    torch.testing.assert_close(uncertainty(logits, gain="confidence"), 1 - top[:, 0])
    for dtype in (torch.float16, torch.bfloat16):
        assert uncertainty(torch.tensor([[6e4, 0.0], [0.0, 0.0]], dtype=dtype)).isfinite().all()


def test_class_balance_gives_to_the_poorest_class() -> None:
    signals = pool()
    found = picked("class_balanced", signals, 2)
    predicted = signals.given("logits").argmax(1)[found].tolist()
    assert predicted[0] == 3


def test_a_ledger_never_asks_twice_and_survives_a_file() -> None:
    book = Ledger()
    book.enter([3, 1])
    book.enter([2])
    assert book.up_to(0) == (3, 1)
    for wrong in ([3], [5, 5]):
        with pytest.raises(DataError, match="twice"):
            book.enter(wrong)
    assert Ledger.from_plain(book.plain()) == book


def test_errors_name_cause_and_fix() -> None:
    with pytest.raises(UnknownNameError, match="pcoreset"):
        build_selector("pcorset")
    with pytest.raises(RecipeError, match="gian"):
        build_selector({"name": "rad", "gian": "margin"})


def test_who_decides_what_is_confident_follows_the_schedule() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0], [0.0, 0.1]]), torch.zeros(2, 2)
    pool = PoolSignals(logits=unsure, teacher_logits=sure, fraction=0.25)

    def confidence(**options: float) -> float:
        return float(build_selector({"name": "confident", **options}, counted=False).scores(pool)[0])

    # The published run is at epoch 60 of 240.
    expected = [torch.tensor([share * 9.0, 0.0]).softmax(0)[0] for share in map(_share, (61 / 160, 61 / 80))]
    assert [confidence(), confidence(period=80)] == pytest.approx([float(p) for p in expected])
    assert confidence(last=60) == pytest.approx(0.5)


def _share(progress: float) -> float:
    return 1 - math.exp(-5 * (progress - 1) ** 2)
