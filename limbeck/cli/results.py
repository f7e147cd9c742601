"""Commands on finished runs and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.application import Overrides, RecipePath, RunPath, Trust, app


@app.command()
def evaluate(
    folder: RunPath,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Evaluations, and options such as `ood.data=digits`; those of the recipe when absent."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another run: compare the two students sample by sample, with a paired test.")
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness, with commas; `harness.folder=DIR` adds those of a folder."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Judge the student of a finished run again, for example with more evaluations.

    Examples: `limbeck evaluate runs/first corruptions corruptions.severities=[1,5] membership`,
    `limbeck evaluate runs/first --against runs/second`, `limbeck evaluate runs/lm --harness arc_easy,piqa`
    """
    from limbeck.evaluate import with_options
    from limbeck.evaluate.paired import compare_runs
    from limbeck.recipes.run import evaluate_run
    from limbeck.report.progress import show_paired, show_results

    if harness is not None:
        names = [*(names or ()), f"harness.tasks=[{harness}]"]
    if against is None or names:
        show_results(evaluate_run(folder, with_options(names or ()) or None, trust=trust))
    if against is not None:
        show_paired(folder, against, compare_runs(folder, against))


@app.command()
def fidelity(
    folders: Annotated[list[Path], typer.Argument(help="Run folders: distilled students and students trained alone.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("fidelity.html"),
) -> None:
    """Ask whether students that repeat their teacher more closely gained more by it: tests and correlations over runs.

    A distilled student is compared with the one trained alone (`none`, `sft`) on the same data, with the same model,
    settings and seed. At least three pairs are needed for a correlation.
    """
    from limbeck.report.fidelity import report_fidelity, show_fidelity

    show_fidelity(folders)
    typer.echo(f"wrote {report_fidelity(folders, out)}")


@app.command()
def export(
    folder: RunPath,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="`onnx`; for language models also `pretrained`, a folder that transformers loads, and `gguf`. "
            "`onnx` or `pretrained` when absent.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File or folder to write; in the run folder when absent.")] = None,
    trust: Trust = False,
) -> None:
    """Write the student of a finished run for deployment and check its outputs against the PyTorch student.

    Language models are compared on held-out text: logits, likeliest tokens and greedy continuations. Adapters are
    merged. What was written appears only when it says the same.
    """
    from limbeck.recipes.run import export_run

    typer.echo(export_run(folder, form, out, trust=trust))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders to show side by side.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from limbeck.report.run_page import report_runs

    typer.echo(f"wrote {report_runs(folders, out)}")


@app.command()
def bench(
    suite: Annotated[
        str | None, typer.Argument(help="A suite file, or the name of a shipped suite; lists those when absent.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs, the CSV and the page; `runs/bench-<suite>` when absent.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Run this arm alone, one row of the table; may be given several times. All when absent."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; one a core when absent.", min=1)] = None,
    trust: Trust = False,
) -> None:
    """Compare methods: same pair, same initialisation, same order of data, several seeds, last epoch.

    The suite's baselines are always among the arms: no distillation, label smoothing and plain KD where it names none.
    A killed command continues, and the table shows whatever has finished.

    Example: limbeck bench fashion_mnist_resnet --arm dkd --arm kd
    """
    if suite is None:
        from limbeck.report.catalogue import show_suites

        show_suites()
        return
    from limbeck.bench.run import run_suite

    page = run_suite(suite, overrides or [], out=out, arms=arm or (), workers=workers, trust=trust)
    typer.echo(f"wrote {page}")


@app.command()
def data_curve(
    recipe: RecipePath,
    overrides: Overrides = None,
    fraction: Annotated[
        list[float] | None, typer.Option(help="A part of the training samples; 0.01, 0.1 and 1 when absent.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of every point.", min=1)] = 3,
    equal_steps: Annotated[
        bool, typer.Option("--equal-steps", help="Train on each part for as many steps as on the whole.")
    ] = False,
    labels_alone: Annotated[
        bool,
        typer.Option(
            "--labels", help="Take labels away and not samples; the student alone has the labelled ones only."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; `runs/data-curve-<recipe>` when absent.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; one a core when absent.", min=1)] = None,
    trust: Trust = False,
) -> None:
    """Run a recipe and the same student alone on parts of the training data. A killed command continues."""
    from limbeck.bench.data_curve import data_curve as draw

    parts = fraction or (0.01, 0.1, 1.0)
    page = draw(
        recipe,
        overrides or [],
        fractions=parts,
        seeds=range(seeds),
        equal_steps=equal_steps,
        labels_alone=labels_alone,
        out=out,
        workers=workers,
        trust=trust,
    )
    typer.echo(f"wrote {page}")
