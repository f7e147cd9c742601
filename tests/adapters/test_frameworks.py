"""In the loops of other people, one process or two, a method gives the step that it gives by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.loops import LOOPS, METHODS, SAMPLES, by_hand
from distributed.launch import TESTS, torchrun


def assert_close(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left their modules."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(str(TESTS / "adapters" / "worker.py"), str(folder))
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loop", LOOPS)
def test_one_process_takes_the_step_of_a_loop_by_hand(loop: str, method: str, tmp_path: Path) -> None:
    expected = by_hand(method, tmp_path, SAMPLES)
    assert int(expected["steps"]) == 1
    assert_close(LOOPS[loop](method, tmp_path, SAMPLES), expected)


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loop", LOOPS)
def test_two_processes_average_through_the_wrapper(loop: str, method: str, two: Path, tmp_path: Path) -> None:
    expected = by_hand(method, tmp_path, SAMPLES)
    for rank in (0, 1):
        assert_close(load_file(two / f"{loop}-{method}.{rank}.safetensors"), expected)
