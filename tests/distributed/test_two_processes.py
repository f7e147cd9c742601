"""Two processes give what one gives. One launch of torchrun walks all checks; each start costs seconds."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distributed.checks import CHECKS, RESUMED, SHARDED, SIZES, cached, gradient_checks, run_in_folder
from distributed.launch import TESTS, torchrun
from distributed.stages import RATE, TinyLoader

pytestmark = pytest.mark.distributed

Found = dict[str, Any]


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what they found; made once, however many workers pytest has."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two"
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            done = torchrun(str(TESTS / "distributed" / "worker.py"), str(folder))
            assert done.returncode == 0, done.stderr[-6000:]
            (folder / "done").touch()
    return folder


def found_by(folder: Path, check: str, rank: int) -> Found:
    words = json.loads((folder / f"{check}.{rank}.json").read_text())
    return {**load_file(folder / f"{check}.{rank}.safetensors"), **words}


def tensors(found: Found) -> dict[str, torch.Tensor]:
    return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}


def assert_same_bits(folder: Path, check: str) -> dict[str, torch.Tensor]:
    """Both processes end with the same bits, memories and running statistics included."""
    first, second = (tensors(found_by(folder, check, rank)) for rank in (0, 1))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), f"'{key}' differs between the processes"
    return first


@pytest.mark.parametrize("check", dict(gradient_checks()))
def test_gradients_are_those_of_one_process(check: str, two: Path, tmp_path: Path) -> None:
    ours = assert_same_bits(two, check)
    # Micro-batches too are compared with one whole batch in one process.
    name, _, kind = check.rpartition(" ")
    alone = CHECKS[f"{name} ddp"](tmp_path)
    theirs = tensors(alone)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        # Each of the two steps moved the parameters by the rate times the gradient.
        scale = RATE * max(1.0, float(tensor.abs().max()))
        torch.testing.assert_close(
            ours[key], tensor, rtol=0, atol=1e-6 * scale, equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
        )
    said = found_by(two, check, 0)
    assert said["epochs"][0]["loss"] == pytest.approx(alone["epochs"][0]["loss"], rel=1e-9)
    assert f"({'ddp' if kind == 'micro' else kind})" in said["notes"][0]


def test_coupled_losses_say_that_they_gather(two: Path) -> None:
    assert "the loss couples samples, so each sees the signals of all" in found_by(two, "sp ddp", 0)["notes"][0]
    assert "gradients are those of one process" in found_by(two, "kd ddp", 0)["notes"][0]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_averages_and_running_statistics_are_the_same_in_both(kind: str, two: Path) -> None:
    state = assert_same_bits(two, f"followed {kind}")
    moved = {key for key in state if key.startswith("average.") and key.endswith("running_mean")}
    assert moved
    assert all(bool(state[key].any()) for key in moved)


@pytest.mark.parametrize("kind", RESUMED)
def test_run_that_goes_on_ends_with_the_same_bits(kind: str, two: Path) -> None:
    assert_same_bits(two, f"resumed {kind}")


def test_sharded_checkpoint_holds_no_pickle_but_plain_state(two: Path) -> None:
    (checkpoint,) = (two / "crd fsdp torn" / "checkpoints").iterdir()
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert {"manifest.json", "state.pt"} < files
    shards = files - {"manifest.json", "state.pt"}
    assert len(shards) == 2
    assert all(name.startswith("shards/") and name.endswith(".safetensors") for name in shards)
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    assert set(json.loads((checkpoint / "manifest.json").read_text())["files"]) == shards
    assert not any(isinstance(value, torch.Tensor) for value in state["learners"]["student"].values())


def test_one_process_goes_on_from_a_sharded_checkpoint(two: Path, tmp_path: Path) -> None:
    kind, name, train = SHARDED
    shutil.copytree(two / "left", tmp_path / "left")
    went_on = run_in_folder(kind, tmp_path / "left", name, train, TinyLoader(SIZES))
    whole = run_in_folder(kind, tmp_path / "whole", name, train, TinyLoader(SIZES))
    assert (went_on.pop("started"), whole.pop("started")) == (4, 0)
    for key, tensor in whole.items():
        torch.testing.assert_close(went_on[key], tensor, rtol=1e-4, atol=1e-5)


def test_cached_teacher_serves_each_process(two: Path, tmp_path: Path) -> None:
    ours, theirs = assert_same_bits(two, "cached"), tensors(cached(tmp_path))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-6)


def test_error_in_one_process_is_raised_in_both(two: Path) -> None:
    said = found_by(two, "failed", 0)
    assert "the loss term 'ce' is nan at step 1: samples [9]" in said["loss"]
    assert "labels [99] of samples [3] are outside" in said["data"]
    assert "could not be written" in said["folder"]
    assert "runs in one process, but there are 2" in said["single"]
