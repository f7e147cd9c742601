"""``torchrun -m limbeck run``: complete, killed, stopped, refused."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import limbeck
from distributed.launch import started, torchrun

pytestmark = pytest.mark.distributed

RECIPE = """
data: {name: fashion-mnist-small, limit: {train: 200, test: 50}, augment: [flip]}
roles: {teacher: {model: small_cnn}, student: {model: small_cnn}}
method: {name: crd, negatives: 16, embedding: 8}
train: {epochs: 4, batch_size: 32, lr: 0.05, checkpoint_every: 2}
evaluate: [accuracy, agreement]
seed: 3
"""
OURS = str(Path(limbeck.__file__).parent / "recipes")
"""What a traceback of ours would show."""
LEFT = ("metrics.jsonl", "student.safetensors", "results.json", "predictions.safetensors", "recipe.yaml")


def command(folder: Path, *overrides: str) -> list[str]:
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    return ["-m", "limbeck", "run", str(recipe), "--out", str(folder), *overrides]


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").glob("train-*"))


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = started(*arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, after: str = "") -> str:
    """Waits until a checkpoint later than ``after`` is there and returns its name."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        found = [name for name in checkpoints(folder) if name > after]
        if found:
            return found[-1]
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1][-4000:] if process.poll() is not None else "no checkpoint")


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Process numbers of torchrun's children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def test_run_that_was_stopped_and_killed_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = torchrun(*command(whole))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("run folder:") == 1
    assert "2 processes share each batch (ddp); the loss couples samples" in done.stderr

    with running(command(broken)) as process:
        wait_for_checkpoint(process, broken)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert process.returncode != 0
    stopped = checkpoints(broken)
    assert len(stopped) == 1
    assert said.count("run the same command to continue") == 1

    with running(command(broken)) as process:
        wait_for_checkpoint(process, broken, after=stopped[0])
        os.kill(workers(process)[-1], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "another process of this run has ended" in said
        assert OURS not in said
    assert not (broken / "results.json").exists()

    done = torchrun(*command(broken))
    assert done.returncode == 0, done.stderr[-4000:]
    for name in LEFT:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_sharded_run_leaves_a_plain_student(tmp_path: Path) -> None:
    done = torchrun(*command(tmp_path / "run", "train.sharding=fsdp", "method={name: simkd}", "train.epochs=1"))
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["method"] == "simkd"
    from limbeck.recipes.run import evaluate_run

    # Evaluating again rebuilds the student from what the run left.
    assert evaluate_run(tmp_path / "run").results["accuracy"] == results["accuracy"]


def test_what_one_process_refuses_ends_both_at_once_with_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = torchrun(*command(folder))
    assert done.returncode != 0
    assert done.stderr.count("another process is running in") == 1
    assert OURS not in done.stderr
