from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("turns")


def test_loops_take_turns_step_by_step(turns: ModuleType) -> None:
    order: list[str] = []

    def loop(name: str, steps: int) -> object:
        def run(pace: object) -> None:
            for number in pace(range(steps)):
                order.append(f"{name}{number}")

        return run

    times = turns.in_turns({"a": loop("a", 5), "b": loop("b", 5), "c": loop("c", 5)}, warmup=1)
    assert order == [f"{name}{number}" for number in range(5) for name in "abc"]
    # Of five steps the first is a warm-up and the last cleans up.
    assert [len(t.wall) for t in times.values()] == [3, 3, 3]
    assert [len(t.cpu) for t in times.values()] == [3, 3, 3]


def test_a_step_lasts_from_the_request_for_its_batch_to_the_next(
    turns: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: clock[0], thread_time=lambda: 2 * clock[0]))

    def batches() -> Iterator[int]:
        for number in range(6):
            clock[0] += 1.0  # making the batch
            yield number

    def run(pace: object) -> None:
        for _ in pace(batches()):
            clock[0] += 10.0  # using it

    times = turns.in_turns({"one": run, "two": run}, warmup=1)
    assert times["one"].wall == times["two"].wall == [11.0] * 4
    assert times["one"].cpu == times["two"].cpu == [22.0] * 4


def test_an_error_in_one_loop_ends_all_and_is_raised(turns: ModuleType) -> None:
    def broken(pace: object) -> None:
        for number in pace(range(5)):
            if number == 2:
                raise ValueError("broken loop")

    with pytest.raises(ValueError, match="broken loop"):
        turns.in_turns({"broken": broken, "sound": lambda pace: list(pace(range(5)))}, warmup=0)


def test_the_ratio_is_that_of_medians_and_lies_in_its_interval(turns: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    base = (1 + 0.1 * torch.rand(200, generator=generator)).tolist()
    # One step in twenty is interrupted by another process, which must not show.
    longer = [1.5 * t * (30 if number % 20 == 0 else 1) for number, t in enumerate(base)]
    found = turns.ratio(longer, base)
    assert found.value == pytest.approx(1.5, abs=0.02)
    assert found.low <= found.value <= found.high
    assert (found.verdict(1.6), found.verdict(1.4)) == ("met", "missed")


def test_loops_that_train_differently_are_refused(turns: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, bare = importlib.import_module("workload"), importlib.import_module("bare")

    def loops(methods: tuple[str, str]) -> object:
        def make(teacher: nn.Module, student: nn.Module, batches: list) -> list:
            return [bare.bare_loop(method, teacher, student, batches) for method in methods]

        return make

    workload.check_same_training(loops(("kd", "kd")))
    with pytest.raises(SystemExit, match="different students"):
        workload.check_same_training(loops(("kd", "none")))
