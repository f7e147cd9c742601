from __future__ import annotations

import math

from limbeck.bench.orderings import FAILS, HOLDS, PUBLISHED, UNTOLD, Ordering, judge, judged
from limbeck.bench.suite import load_suite, shipped
from limbeck.bench.table import Row, shipped_results, summarise
from limbeck.methods import methods


def _row(arm: str, seed: int, accuracy: float) -> Row:
    nan = math.nan
    return Row("s", "d", "t", "u", arm, arm, seed, 1, "test", accuracy, nan, nan, nan, nan, nan, "p")


def _summaries(**accuracies: list[float]):
    rows = [_row(arm, seed, value) for arm, values in accuracies.items() for seed, value in enumerate(values)]
    return {s.arm: s for s in summarise(rows)}


def test_an_ordering_holds_fails_or_cannot_be_told() -> None:
    arms = _summaries(kd=[0.80, 0.81, 0.82], none=[0.70, 0.71, 0.72], dkd=[0.79, 0.815, 0.83])
    assert judge(Ordering("kd", "none", ""), arms)[0] == HOLDS  # type: ignore[index]
    assert judge(Ordering("none", "kd", ""), arms)[0] == FAILS  # type: ignore[index]
    assert judge(Ordering("dkd", "kd", ""), arms)[0] == UNTOLD  # type: ignore[index]
    assert judge(Ordering("crd", "kd", ""), arms) is None
    assert math.isclose(judge(Ordering("kd", "none", ""), arms)[1], 0.1)  # type: ignore[index]


def test_every_claim_is_about_methods_or_arms_that_exist_and_is_made_once() -> None:
    pairs = [(o.better, o.worse) for o in PUBLISHED]
    assert len(set(pairs)) == len(pairs)
    shipped_arms = {arm for name in shipped() for arm in load_suite(name)[1].arms}
    for arm in {arm for pair in pairs for arm in pair} - shipped_arms:
        assert all(name in methods or name == "standardize" for name in arm.split(" + "))


def test_shipped_comparisons_are_judged() -> None:
    found = judged(shipped_results())
    assert {"kd", "dkd", "crd"} <= {ordering.better for ordering, _ in found}
    assert {verdict for _, verdicts in found for verdict, _ in verdicts.values()} <= {HOLDS, FAILS, UNTOLD}
