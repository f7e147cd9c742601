"""The command: it parses, calls the library and prints.

Imports happen inside commands, so that ``--help`` is immediate.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck import __version__
from limbeck.errors import LimbeckError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Distil large models into small ones.

Start with `limbeck demo`. Then write a recipe (about fifteen lines of YAML), ask `limbeck check` whether it can work,
and `limbeck run` it.
`limbeck methods` lists what there is, `limbeck explain dkd` says what a method does and how it measured.""",
)

RecipePath = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe (`limbeck recipes`).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides such as `train.lr=0.05` or `method.temperature=2`.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Allow `python:package.module:factory` models, which run the code they name.")
]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", exists=False)]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Prints the version when asked."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


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
    """Train what a recipe says, or run a comparison (a file with `arms`) such as `lm/quickstart`.

    Ctrl-C saves the state; the same command continues, and ends with the same bits as a run that was never stopped.
    Several processes share the work with `torchrun --nproc_per_node 2 -m limbeck run ...`.

    Example: `limbeck run fashion_mnist_dkd train.epochs=5 seed=1`
    """
    from limbeck.recipes.arms import holds_arms, run_arms
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
    with ConsoleReporter(quiet=not _is_first_process()) as reporter:
        finished = run_recipe(recipe, overrides or [], out=out, trust=trust, reporter=reporter)
    if _is_first_process():
        show_results(finished)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None, trust: Trust = False) -> None:
    """Say whether a recipe can work, without training: shapes, taps, loss terms, forecast of time and memory."""
    from limbeck.recipes.check import check_recipe
    from limbeck.report.progress import show_check

    show_check(check_recipe(recipe, overrides or [], trust=trust))


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
    draws: Annotated[int, typer.Option(help="Tokens drawn by `sampled`.", min=1)] = 50,
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
            trust=trust,
            progress=bar.update,
        )
    typer.echo(said)


@app.command()
def search(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the scores and the recipe with the best student.")] = Path(
        "runs/search"
    ),
    space: Annotated[str, typer.Option(help="`residual` or `cells`.")] = "residual",
    candidates: Annotated[int, typer.Option(help="Students to score.", min=1)] = 100,
    max_parameters: Annotated[float | None, typer.Option(help="Most parameters of a student.")] = None,
    max_macs: Annotated[float | None, typer.Option(help="Most multiply-accumulates of a student.")] = None,
    repeats: Annotated[int, typer.Option(help="Initialisations that a score is the mean of.", min=1)] = 1,
    train: Annotated[
        int, typer.Option(help="Students to train afterwards, to see how well scores order accuracy.", min=0)
    ] = 0,
) -> None:
    """Find a student for a recipe's teacher without training, by DisWOT's scores and evolution.

    Look at the parameters beside the scores: on small data they often order students better. `--train 8` measures it.
    """
    from limbeck.recipes.search import rank_correlations, search_recipe
    from limbeck.report.progress import ProgressBar
    from limbeck.students.search.evolve import Budget, Settings

    settings = Settings(candidates=candidates, budget=Budget(max_parameters, max_macs))
    with ProgressBar("searching") as bar:
        found = search_recipe(
            recipe, overrides or [], out=out, space=space, settings=settings, repeats=repeats, progress=bar.update
        )
    for candidate in found.candidates[:5]:
        scores = "  ".join(f"{name} {value:.5g}" for name, value in candidate.scores.items())
        typer.echo(f"{candidate.value:.5f}  {candidate.spec}  {scores}")
    if train:
        said = rank_correlations(recipe, found, train, out=out / "runs", overrides=overrides or [])
        for name, pair in said.items():
            typer.echo(f"{name}: Kendall {pair['kendall']:+.2f}, Spearman {pair['spearman']:+.2f} with accuracy")
    typer.echo(f"wrote {found.recipe}")


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
    trust: Trust = False,
) -> None:
    """Judge the student of a finished run again, for example with more evaluations.

    Examples: `limbeck evaluate runs/first corruptions corruptions.severities=[1,5] membership`,
    `limbeck evaluate runs/first --against runs/second`
    """
    from limbeck.evaluate import with_options
    from limbeck.evaluate.paired import compare_runs
    from limbeck.recipes.run import evaluate_run
    from limbeck.report.progress import show_paired, show_results

    if against is None or names:
        show_results(evaluate_run(folder, with_options(names or ()) or None, trust=trust))
    if against is not None:
        show_paired(folder, against, compare_runs(folder, against))


@app.command()
def export(
    folder: RunPath,
    form: Annotated[str, typer.Option("--format", help="`onnx`.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="File to write; `student.onnx` in the run folder when absent.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Write the student of a finished run for deployment and check its outputs against the PyTorch student."""
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
    suite: Annotated[str, typer.Argument(help="A suite file, or the name of a shipped suite.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs, the CSV and the page; `runs/bench-<suite>` when absent.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; one a core when absent.", min=1)] = None,
    trust: Trust = False,
) -> None:
    """Compare methods: same pair, same initialisation, same order of data, several seeds, last epoch.

    No distillation, label smoothing and plain KD are always among the arms. A killed command continues.
    """
    from limbeck.bench.run import run_suite

    typer.echo(f"wrote {run_suite(suite, overrides or [], out=out, workers=workers, trust=trust)}")


@app.command()
def serve(
    teacher: Annotated[str, typer.Argument(help="`hf:NAME_OR_FOLDER`, `gguf:FILE`, a packaged model, or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; a free one when 0.", min=0, max=65535)] = 8000,
    precision: Annotated[str, typer.Option(help="`fp32` or `bf16`.")] = "fp32",
    most: Annotated[int, typer.Option(help="Log-probabilities a place that may be asked for.", min=1)] = 1000,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the key which clients must send.")
    ] = None,
) -> None:
    """Serve a language model through the OpenAI protocol, with the log-probabilities that distillation needs.

    Prompts are scored too (`echo`), by as many tokens as asked, at the temperature of the request. Ctrl-C ends it.

    Example: `limbeck serve smollm2-135m-instruct --port 8000`, and in a recipe
    `roles.teacher='{remote: {url: "http://127.0.0.1:8000/v1", model: smollm2-135m-instruct}}'`
    """
    from limbeck.teachers.server import serve as make_server

    key = None if key_variable is None else _key_in(key_variable)
    server = make_server(teacher, host=host, port=port, precision=precision, most=most, key=key)
    typer.echo(f"serving {server.protocol.name} at {server.url}; Ctrl-C ends it")
    server.run()


def _key_in(variable: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        _fail(f"the environment variable {variable} holds no key", 2)
    return value


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
        out=out,
        workers=workers,
        trust=trust,
    )
    typer.echo(f"wrote {page}")


@app.command()
def recommend(
    teacher: Annotated[str, typer.Option(help="The teacher's model.")],
    student: Annotated[str, typer.Option(help="The student's model.")],
    data: Annotated[str, typer.Option(help="The data set, by name.")],
    samples: Annotated[int | None, typer.Option(help="Training samples; all when absent.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs; those of the comparisons when absent.", min=1)] = None,
    teacher_weights: Annotated[str, typer.Option(help="`zoo`, a .safetensors file or a run folder.")] = "zoo",
    path: Annotated[str | None, typer.Option(help="Where the data lie, for data sets that are files.")] = None,
    results: Annotated[list[Path] | None, typer.Option(help="Further results.csv of `limbeck bench`.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the proposed recipes.")] = Path("recommended"),
    search: Annotated[
        int, typer.Option(help="Trials of a search over the first recipe's hyperparameters; none when 0.", min=0)
    ] = 0,
    workers: Annotated[int | None, typer.Option(help="Trials at a time; one a core when absent.", min=1)] = None,
) -> None:
    """Propose three recipes from recorded comparisons, and say on what evidence and what it leaves open.

    Example: `limbeck recommend --teacher resnet20 --student resnet8 --data fashion-mnist-small --samples 2000`
    """
    from limbeck.recommend import Wish
    from limbeck.recommend import recommend as propose
    from limbeck.report.progress import show_recommendation, show_tuned

    wish = Wish(teacher, student, data, samples, epochs)
    where = {"path": path} if path is not None else None
    found = propose(wish, results=results or (), teacher_weights=teacher_weights, data=where, out=out)
    show_recommendation(found)
    if search:
        from limbeck.tuning import tune as look

        first = found.proposals[0].path
        assert first is not None
        show_tuned(look(first, trials=search, out=out / "search", workers=workers))


@app.command()
def tune(
    recipe: RecipePath,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(help="Trials, over all calls with one folder.", min=1)] = 20,
    goal: Annotated[str, typer.Option(help="`accuracy`, or `nll` for the likelihood of the labels.")] = "accuracy",
    only: Annotated[list[str] | None, typer.Option(help="Search this alone, such as `temperature`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search; `runs/tune-<recipe>` when absent.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time; one a core when absent.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search.", min=0)] = 0,
    trust: Trust = False,
) -> None:
    """Search temperature, weights and taps of a recipe, judged on held-out training data and never on test data.

    A killed command continues. The best recipe is written to `best.yaml`; run it with several seeds.
    """
    from limbeck.report.progress import show_tuned
    from limbeck.tuning import tune as look
    from limbeck.tuning.search import checked_goal

    show_tuned(
        look(
            recipe,
            overrides or [],
            trials=trials,
            out=out,
            workers=workers,
            goal=checked_goal(goal),
            only=only or (),
            seed=seed,
            trust=trust,
        )
    )


@app.command()
def methods(family: Annotated[str | None, typer.Option(help="Only this family, for example `logit`.")] = None) -> None:
    """List the methods."""
    from limbeck.report.catalogue import show_methods

    show_methods(family)


@app.command()
def explain(name: Annotated[str, typer.Argument(help="A method.")]) -> None:
    """Say what a method is: equation, terms, hyperparameters, needs, paper and measured result, flattering or not."""
    from limbeck.report.catalogue import show_method

    show_method(name)


@app.command()
def models() -> None:
    """List the models of the zoo, their size and the weights that are shipped."""
    from limbeck.report.catalogue import show_models

    show_models()


@app.command()
def data() -> None:
    """List the data sets that have a name."""
    from limbeck.report.catalogue import show_data

    show_data()


@app.command()
def recipes() -> None:
    """List the recipes that are shipped."""
    from limbeck.report.catalogue import show_recipes

    show_recipes()


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; an error that limbeck raised on purpose is printed without a traceback."""
    try:
        app(args=arguments, standalone_mode=True)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except LimbeckError as error:
        status = 130 if type(error).__name__ == "Interrupted" else 2
        if getattr(error, "everywhere", False) and not _is_first_process():
            sys.exit(status)
        _fail(str(error), status)


def _is_first_process() -> bool:
    """Whether this is the one of torchrun's processes that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _fail(message: str, status: int) -> Any:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text("limbeck: ", style="bold red") + Text(message))
    sys.exit(status)


if __name__ == "__main__":
    main()
