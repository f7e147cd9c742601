"""Commands that look for a student, a recipe or its hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limbeck.cli.application import Overrides, RecipePath, Trust, app


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
