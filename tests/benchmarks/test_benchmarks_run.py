"""Every benchmark runs and prints its ratios; how large they are is in `docs/guides/performance.md`, and no test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS = {
    "step_time": ("kd, logits", "at, three taps"),
    "cached_epoch": ("student alone", "cache, topk of 10", "cache, full float16", "live teacher"),
    "import_time": ("import limbeck", "import torch itself"),
    "memory": ("kd, logits",),
    "cpu_switches": ("channels_last",),
    "method_overhead": ("kd", "dkd", "mlkd"),
    "batch_memory": ("crd", "pkt", "rkd"),
    "language_epochs": ("fine-tuning alone", "cache, topk of 32", "cache, 50 draws", "cache, hidden", "live teacher"),
    "language_step": ("limbeck",),
    "on_policy": ("32 prompts, in parts of 8", "8 prompts x 4", "8 prompts x 1"),
    "loss_head": ("limbeck eager",),
    "shifted_digits": ("KD, moved by a pixel", "HARD", "KD, moved as in the test"),
    "sampled_gradient": ("50 draws, as published", "40 draws by a comb", "topk of 32"),
}
# One process for all, because importing PyTorch takes longer than most of them.
DRIVER = """
import contextlib, io, json, runpy, sys, traceback
sys.path.insert(0, sys.argv[1])
said = {}
for name in sys.argv[2:]:
    sys.argv = [name, "--quick"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(f"{sys.path[0]}/{name}.py", run_name="__main__")
        except BaseException:
            traceback.print_exc(file=out)
    said[name] = out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What every benchmark prints."""
    root = {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", DRIVER, str(BENCHMARKS), *ROWS]
    done = subprocess.run(command, env={**os.environ, **root}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ROWS)
def test_benchmark_prints_a_ratio_for_every_arm(said: dict[str, str], name: str) -> None:
    text = said[name]
    assert "Traceback" not in text, text
    assert "torch 2." in text, "the versions are missing"
    for row in ROWS[name]:
        lines = [line for line in text.splitlines() if line.startswith(row)]
        assert lines, f"no row '{row}' in\n{text}"
        numbers = [float(word) for word in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", lines[0])]
        assert numbers, f"no numbers in\n{text}"
        assert all(number >= 0 for number in numbers)


def test_memory_of_models_that_train_alike_is_alike(said: dict[str, str]) -> None:
    """Not a figure to reach: the bare loop and limbeck hold the same tensors, so the measurement must see that."""
    row = next(line for line in said["memory"].splitlines() if line.startswith("kd"))
    assert 0.5 < float(re.findall(r"\d+\.\d{3}", row)[0]) < 2.0


def test_no_loss_needs_more_memory_than_its_method_states(said: dict[str, str]) -> None:
    rows = [line.split() for line in said["batch_memory"].splitlines() if line.endswith(("met", "missed"))]
    assert {"cc", "crd", "mlkd", "pkt", "rkd", "sinkd", "sp", "trg"} <= {row[0] for row in rows}
    assert [row[0] for row in rows if row[-1] == "missed"] == []


def test_passes_are_counted_as_the_equations_have_them(said: dict[str, str]) -> None:
    """Of two views both models are shown, of plain KD one; only the student's keep a graph."""
    counted = {}
    for line in said["method_overhead"].splitlines():
        found = re.match(r"(kd|dkd|mlkd) .*\]\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)", line)
        if found:
            counted[found[1]] = [float(number) for number in found.groups()[1:]]
    assert counted == {"kd": [1, 1, 1], "dkd": [1, 1, 1], "mlkd": [2, 2, 2]}
