"""Builds the wheel, installs it with its core dependencies only, and uses it as a stranger would, outside the checkout.

Run by `make wheel`. It needs the package registry that `make install` used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
# What a person with only the core would do first.
PYTHON = """
import torch
from torch import nn
import limbeck

assert not limbeck.__file__.startswith({root!r}), limbeck.__file__
x, y = torch.randn(64, 8), torch.arange(64) % 3
done = limbeck.distill(nn.Linear(8, 3), nn.Linear(8, 3), (x, y), method="dkd", evaluate_on=(x, y), epochs=1)
assert 0 <= done.results["accuracy"]["top1"] <= 1
loss = limbeck.functional.kl(torch.randn(4, 10), torch.randn(4, 10), temperature=4.0)
assert loss > 0
"""
RUN = ("run", "demo", "data.limit={train: 200, test: 100}", "train.epochs=1", "--out", "run")


def call(*command: str | Path, cwd: Path) -> str:
    """Runs a command to its end and returns what it printed.

    Raises:
        SystemExit: it failed; shows its output.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(c) for c in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def installed_size(site: Path, *, without: str) -> tuple[int, float]:
    """Returns how many packages lie in ``site``, one not counted, and their megabytes."""
    packages = [p for p in site.glob("*.dist-info") if not p.name.startswith((f"{without}-", "pip-", "setuptools-"))]
    recorded = 0
    for package in packages:
        lines = (package / "RECORD").read_text().splitlines()
        recorded += sum(int(size) for line in lines if (size := line.rpartition(",")[2]).isdigit())
    return len(packages), recorded / 1e6


def main() -> None:
    """Builds, installs, uses."""
    with tempfile.TemporaryDirectory(prefix="limbeck-wheel-") as folder:
        outside = Path(folder)
        call(UV, "build", "--quiet", "--wheel", "--out-dir", outside / "dist", ROOT, cwd=outside)
        wheel = next((outside / "dist").glob("*.whl"))
        call(UV, "venv", "--quiet", "--python", sys.executable, outside / "venv", cwd=outside)
        python = outside / "venv" / "bin" / "python"
        constraints = os.environ.get("CONSTRAINTS", str(ROOT / "constraints" / "cpu.txt"))
        call(UV, "pip", "install", "--quiet", "--python", python, "-c", Path(constraints).resolve(), wheel, cwd=outside)
        command = python.with_name("limbeck")
        call(python, "-c", PYTHON.format(root=str(ROOT)), cwd=outside)
        assert "dkd" in call(command, "methods", cwd=outside)
        assert "Accuracy" in call(command, *RUN, cwd=outside)
        assert (outside / "run" / "student.safetensors").is_file()
        site = next((outside / "venv" / "lib").glob("python3*/site-packages"))
        count, megabytes = installed_size(site, without="torch")
        size = wheel.stat().st_size / 1e6
        shutil.rmtree(outside / "venv")
    print(f"wheel of {size:.1f} MB works outside the checkout; {count} packages, {megabytes:.0f} MB beside torch")


if __name__ == "__main__":
    main()
