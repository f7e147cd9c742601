"""Commands that train, and what comes before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.application import Overrides, RecipePath, Trust, app, is_first_process
from limbeck.errors import RecipeError


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the runs, the report and the ONNX student.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="Students of each kind.", min=2, max=20)] = 3,
    open_report: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the report in a browser at the end.")
    ] = False,
) -> None:
    """Distil a small image classifier on real data and show what it gained, in under five minutes on two cores."""
    from limbeck.demo import run_demo

    page = run_demo(out, seeds=seeds)
    if open_report:
        typer.launch(str(page))


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder. By default `runs/<recipe>-<hash>`, so the same recipe continues where it was stopped."
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Train what a recipe says, or run a comparison (`arms`, see `lm/quickstart`) or lab (`lm/teacher_hacking`).

    Ctrl-C saves the state; the same command continues, and ends with the same bits as a run that was never stopped.
    Several processes share the work with `torchrun --nproc_per_node 2 -m limbeck run ...`.

    Example: `limbeck run fashion_mnist_dkd train.epochs=5 seed=1`
    """
    from limbeck.recipes.arms import holds_arms, run_arms
    from limbeck.recipes.hacking.spec import holds_lab
    from limbeck.recipes.load import read_mapping
    from limbeck.recipes.run import run_recipe
    from limbeck.report.progress import ConsoleReporter, show_results

    data = read_mapping(recipe)
    if holds_arms(data):
        from limbeck.report.language import report_arms, show_arms

        with ConsoleReporter() as reporter:
            compared = run_arms(data, overrides or [], name=recipe, out=out, trust=trust, reporter=reporter)
        show_arms(compared)
        typer.echo(f"wrote {report_arms(compared)}")
        return
    if holds_lab(data):
        from limbeck.recipes.hacking.lab import run_lab
        from limbeck.report.hacking import report_lab, show_lab

        with ConsoleReporter() as reporter:
            found = run_lab(data, overrides or [], name=recipe, out=out, trust=trust, reporter=reporter)
        show_lab(found)
        typer.echo(f"wrote {report_lab(found)}")
        return
    with ConsoleReporter(quiet=not is_first_process()) as reporter:
        finished = run_recipe(recipe, overrides or [], out=out, trust=trust, reporter=reporter)
    if is_first_process():
        show_results(finished)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None, trust: Trust = False) -> None:
    """Say whether a recipe can work, without training: shapes, taps, loss terms, forecast of time and memory.

    Of language models it is also the doctor. It compares the tokens of every model with those of the data, by their
    bytes and not by their names; special tokens, padding and where sequences begin and end; chat templates, rendered
    side by side; context, type of numbers, softcaps, tied weights under adapters; whether a server honours temperature
    and how much probability it leaves out; how much of the text is cut, empty or unknown. Each finding has its
    evidence and a fix: an *error* would spoil the run, a *warning* may, a *note* is how it should be.

    Of a comparison (`arms`) every arm is checked; caches that are not there yet count as the model they are made of.

    Ends with status 2 when there is an error. Example: `limbeck check lm_word_kd data.options.context=256`
    """
    from limbeck.recipes.arms import arms_to_check, holds_arms
    from limbeck.recipes.check import check_recipe
    from limbeck.recipes.hacking.spec import holds_lab
    from limbeck.recipes.load import load_recipe, read_mapping
    from limbeck.report.progress import show_check

    data, changes = read_mapping(recipe), overrides or []
    if holds_lab(data):
        raise RecipeError(f"'{recipe}' is a lab, which makes what would be checked; limbeck run runs it")
    recipes = arms_to_check(data, changes, name=recipe) if holds_arms(data) else {"": load_recipe(recipe, changes)}
    wrong = False
    for arm, single in recipes.items():
        if arm:
            typer.echo(f"arm {arm}")
        checked = check_recipe(single, trust=trust)
        show_check(checked)
        wrong |= bool(checked.errors)
    if wrong:
        raise typer.Exit(2)


@app.command()
def cache(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the cache.")] = Path("runs/cache"),
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Views of each sample to store; the recipe's epochs when absent, 1 without augmentation.", min=1
        ),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(help="`fp32`, `fp16`, or `topk` with an exact tail; for text also `sampled` and `hidden`."),
    ] = "fp16",
    k: Annotated[int, typer.Option(help="Classes kept by `topk`.", min=1)] = 10,
    draws: Annotated[int, typer.Option(help="Tokens drawn by `sampled`.", min=1)] = 40,
    independent: Annotated[
        bool, typer.Option("--independent", help="`sampled` draws each token by itself, as published, not by a comb.")
    ] = False,
    trust: Trust = False,
) -> None:
    """Write the teacher's outputs for a recipe, so that students train without the teacher in memory.

    A killed command continues when it is called again. Use the cache with `roles.teacher='{cache: FOLDER}'`.
    """
    from limbeck.recipes.cache import cache_recipe
    from limbeck.report.progress import ProgressBar

    with ProgressBar("caching") as bar:
        said = cache_recipe(
            recipe,
            overrides or [],
            out=out,
            epochs=epochs,
            codec=codec,
            k=k,
            draws=draws,
            independent=independent,
            trust=trust,
            progress=bar.update,
        )
    typer.echo(said)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Folder of a teacher cache.")]) -> None:
    """Check every byte of a teacher cache, and say what it holds and of whom.

    Where files are missing or corrupt, they are named and the command ends with status 2; the `limbeck cache` command
    that wrote the cache rewrites those files alone when it is called again.
    """
    from limbeck.teachers.cache import describe, verify
    from limbeck.teachers.cache.sequences.header import is_sequence_cache
    from limbeck.teachers.cache.sequences.inspection import describe_sequences, verify_sequences

    check, say = (verify_sequences, describe_sequences) if is_sequence_cache(folder) else (verify, describe)
    check(folder)
    typer.echo(f"{say(folder)} Every byte is as it was written.")
