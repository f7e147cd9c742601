"""The main job on real data in a few minutes: a teacher, a student alone, the same student distilled.

The data are 2,000 labelled images of Fashion-MNIST: the situation in which a large model helps, since the teacher has
seen all 60,000. Both students of a seed start from the same weights, see the same images in the same order with the
same augmentation, and train for the same number of steps; the only difference is that one also hears the teacher.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.recipes.load import load_recipe
from limbeck.recipes.schema import Recipe

ARMS: dict[str, dict[str, Any]] = {
    "alone": {"name": "none"},
    "distilled": {"name": "kd"},
}
"""Method of each kind of student."""


def demo_recipes(seeds: int, overrides: tuple[str, ...] = ()) -> dict[tuple[str, int], Recipe]:
    """Returns the recipe of each kind of student and seed: the shipped recipe ``demo`` with another method and seed."""
    plain = tuple(f"method={json.dumps(method)}" for method in ARMS.values())
    return {
        (arm, seed): load_recipe("demo", (method, f"seed={seed}", *overrides))
        for arm, method in zip(ARMS, plain)
        for seed in range(seeds)
    }


def run_demo(out: Path, *, seeds: int = 3, overrides: tuple[str, ...] = ()) -> Path:
    """Trains what is missing, prints the table, writes the report and the ONNX student, and returns the report's path.

    Args:
        out: folder of the runs and the report; a stopped demo continues there.
        seeds: students of each kind, at least two.
        overrides: changes of the recipe, ``key=value``.

    Raises:
        LimbeckError: a run failed, or the exported student differs from the trained one.
    """
    from rich.console import Console

    from limbeck.bench.run import run_folder, run_recipes
    from limbeck.report.terminal import print_table

    console = Console()
    recipes = demo_recipes(seeds, overrides)
    console.print(
        "Teacher: ResNet-20 trained on 60,000 images of Fashion-MNIST. "
        f"Students: ResNet-8, {len(recipes)} of them, on 2,000 images.",
        soft_wrap=True,
    )
    failures = [f"{name}: {problem}" for name, problem in run_recipes(recipes, out) if problem]
    if failures:
        raise LimbeckError("the demo stopped: " + "; ".join(failures))
    folders = {key: run_folder(out, *key) for key in recipes}
    _measure_on_quiet_machine(folders)
    onnx = _export(folders["distilled", 0], out)
    page = _report(list(folders.values()), out)
    print_table(console, _table(folders))
    console.print(_verdict(folders), soft_wrap=True)
    console.print(f"report: {page}\nstudent: {onnx}", soft_wrap=True)
    return out / "report.html"


def _measure_on_quiet_machine(folders: Mapping[tuple[str, int], Path]) -> None:
    """Adds latencies, measured one after the other when nothing else runs here."""
    from limbeck.recipes.run import evaluate_run

    for folder in folders.values():
        if "latency" not in json.loads((folder / "results.json").read_text()):
            evaluate_run(folder, ["latency"])


def _export(folder: Path, out: Path) -> str:
    """Writes the ONNX student where the packages for it are installed, and says how exact it is."""
    from limbeck.errors import MissingExtraError
    from limbeck.recipes.run import export_run

    try:
        return export_run(folder, "onnx", out / "student.onnx")
    except MissingExtraError as error:
        return f"no ONNX file: {error}"


def _report(folders: list[Path], out: Path) -> str:
    from limbeck.errors import MissingExtraError
    from limbeck.report.run_page import report_runs

    try:
        return str(report_runs(folders, out / "report.html", title="What distillation gained"))
    except MissingExtraError as error:
        return f"no report: {error}"


def _arms(folders: Mapping[tuple[str, int], Path]) -> list[Any]:
    from limbeck.report.arms import arms_of
    from limbeck.report.runs import read_run

    return arms_of([read_run(folder) for folder in folders.values()])


def _table(folders: Mapping[tuple[str, int], Path]) -> Any:
    """Returns the table of teacher and students, a column each, mean and spread over seeds."""
    from rich.table import Table

    from limbeck.evaluate import measures

    arms = _arms(folders)
    table = Table(title="mean ± standard deviation over seeds")
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    for measure in measures(["accuracy", "agreement", "calibration", "cost", "latency"]):
        spreads = [arm.spread(measure) for arm in arms]
        if any(spread is not None for spread in spreads):
            table.add_row(measure.title, *("–" if spread is None else measure.text(spread) for spread in spreads))
    return table


def _verdict(folders: Mapping[tuple[str, int], Path]) -> str:
    """Says what was gained, seed by seed, and whether that is more than the seeds differ."""
    accuracy = {key: json.loads((f / "results.json").read_text())["accuracy"]["top1"] for key, f in folders.items()}
    gains = [accuracy["distilled", seed] - accuracy["alone", seed] for arm, seed in folders if arm == "alone"]
    mean, spread = statistics.fmean(gains), statistics.stdev(gains)
    alone = statistics.stdev(accuracy["alone", seed] for arm, seed in folders if arm == "alone")
    clear = "more" if mean > max(spread, alone) else "not more"
    return (
        f"Distillation gained {100 * mean:+.2f} ± {100 * spread:.2f} points of accuracy over {len(gains)} seeds, "
        f"{clear} than the spread of the students alone ({100 * alone:.2f})."
    )
