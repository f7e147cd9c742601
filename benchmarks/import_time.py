"""What importing limbeck costs beyond importing PyTorch, and whether the command's help stays free of PyTorch.

Every measurement is a fresh interpreter, the arms in turns; times are medians of the time of the import statement
after `import torch` is done.

    python benchmarks/import_time.py [--quick] [--runs 9]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

from turns import machine

BAR = 0.3
STATEMENTS = {
    "import limbeck": "import limbeck",
    "from limbeck import distill": "from limbeck import distill",
    "limbeck.functional": "import limbeck; limbeck.functional",
    "every method, model, data set": (
        "from limbeck.methods.base import methods; from limbeck.students.base import models; "
        "from limbeck.data.source import datasets; len(list(methods)), len(list(models)), len(list(datasets))"
    ),
    "limbeck.cli": "import limbeck.cli",
}
TIMED = """
import sys, time
def clocks(): return time.perf_counter(), time.process_time()
first = clocks()
{before}
second = clocks()
{statement}
third = clocks()
print(*(b - a for x, y in ((first, second), (second, third)) for a, b in zip(x, y)))
"""
HELP = """
import contextlib, io, sys, time
started = time.perf_counter(), time.process_time()
from limbeck.cli import main
sys.argv = ["limbeck", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(time.perf_counter() - started[0], time.process_time() - started[1], "torch" in sys.modules)
"""


def run(code: str) -> list[str]:
    """Runs a program in a fresh interpreter that may keep bytecode, and returns the words of its last line."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of the first statement")
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    runs = 1 if arguments.quick else arguments.runs
    statements = dict(list(STATEMENTS.items())[:1]) if arguments.quick else STATEMENTS
    found: dict[str, list[list[float]]] = {name: [] for name in statements}
    helps: list[list[str]] = []
    for number in range(runs + (not arguments.quick)):
        for name, statement in statements.items():
            words = run(TIMED.format(before="import torch", statement=statement))
            # The first round fills the caches of bytecode and files.
            if number or arguments.quick:
                found[name].append([float(word) for word in words])
        helps.append(run(HELP))
    print(f"beyond `import torch`, medians of {runs} fresh interpreters\n{machine()}\n")
    print(f"{'':<32} {'wall s':>8} {'CPU s':>8} {'ratio to import torch':>22} {'<0.3 s':>7}")
    for name, rows in found.items():
        torch_wall, torch_cpu, wall, cpu = (median(column) for column in zip(*rows))
        verdict = "met" if wall < BAR else "missed"
        verdict = verdict if name == "import limbeck" else ""
        print(f"{name:<32} {wall:>8.3f} {cpu:>8.3f} {cpu / torch_cpu:>22.4f} {verdict:>7}")
    print(f"{'import torch itself':<32} {torch_wall:>8.3f} {torch_cpu:>8.3f} {1:>22.4f}")
    wall, cpu = (median(float(h[n]) for h in helps) for n in (0, 1))
    loaded = "loads PyTorch" if any(h[2] == "True" for h in helps) else "loads no PyTorch"
    print(f"\n`limbeck --help`: {wall:.3f} s, {cpu:.3f} s of the processor; {loaded}")


if __name__ == "__main__":
    main()
