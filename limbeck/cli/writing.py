"""The command that lets models write training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli.application import Overrides, RecipePath, Trust, app


@app.command()
def generate(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The JSONL file.")] = Path("runs/generated.jsonl"),
    role: Annotated[str | None, typer.Option(help="The role that writes; `teacher` when absent.")] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Write pairs: what the teacher writes is preferred to what the student does."),
    ] = False,
    chosen: Annotated[str | None, typer.Option(help="Of pairs: whose answers are preferred, a role or `data`.")] = None,
    rejected: Annotated[str | None, typer.Option(help="Of pairs: whose answers are not, a role or `data`.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Keep answers with a positive reward, such as `maths`; of pairs' other side those without."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Answers to each prompt; 1 when absent.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides logits for drawing; 1 when absent.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens with this probability.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer; 128 when absent.", min=1)] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="First tokens of running text that are taken for a prompt.", min=1)
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where answers are kept; `runs/generated` when absent.")] = None,
    trust: Trust = False,
) -> None:
    """Let a role of a recipe write after the prompts of its training data, as JSONL that recipes read.

    A killed command goes on when it is called again, and asks a server for nothing twice. In one step with training:
    `data: {name: generated, options: {of: ..., role: teacher}}`.

    Examples: `limbeck generate my.yaml --out teacher.jsonl --samples 4`,
    `limbeck generate my.yaml --pairs --out pairs.jsonl`,
    `limbeck generate sums.yaml --chosen teacher --rejected teacher --reward maths --samples 8 --out traces.jsonl`
    """
    from limbeck.recipes.generate import generate_recipe
    from limbeck.report.progress import ProgressBar

    if pairs:
        chosen, rejected = chosen or "teacher", rejected or "student"
    given: dict[str, Any] = {
        "role": role, "chosen": chosen, "rejected": rejected, "reward": reward, "samples": samples,
        "temperature": temperature, "top_p": top_p, "greedy": greedy or None, "max_new_tokens": max_new_tokens,
        "prompt_tokens": prompt_tokens, "folder": None if folder is None else str(folder),
    }  # fmt: skip
    options = {key: value for key, value in given.items() if value is not None}
    with ProgressBar("writing") as bar:
        found = generate_recipe(recipe, overrides or [], out=out, trust=trust, progress=bar.update, **options)
    typer.echo(f"{found.path}: {found}")
