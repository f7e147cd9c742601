"""Two processes write and learn what one does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.launch import TESTS, torchrun
from distributed.rollouts import CASES, run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left their students."""
    folder = tmp_path_factory.mktemp("rollouts")
    done = torchrun(str(TESTS / "distributed" / "rollouts.py"), str(folder))
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(autouse=True)
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_student_of_one(case: str, two: Path, tmp_path: Path) -> None:
    first, second = (load_file(two / f"{case}.{rank}.safetensors") for rank in (0, 1))
    alone = run(case, tmp_path)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-9)
    ours, theirs = (
        [json.loads(line)["rollouts"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (two / f"{case} 2", tmp_path / f"{case} 1")
    )
    assert ours == theirs


def test_micro_batches_are_one_batch(tmp_path: Path) -> None:
    whole, parts = (run("own", tmp_path / str(count), micro_batches=count) for count in (1, 3))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=0, atol=1e-9)
