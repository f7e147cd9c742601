"""The application that commands belong to, the arguments that several of them take, and how errors are shown."""

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


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; an error that limbeck raised on purpose is printed without a traceback."""
    try:
        app(args=arguments, standalone_mode=True)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except LimbeckError as error:
        status = 130 if type(error).__name__ == "Interrupted" else 2
        if getattr(error, "everywhere", False) and not is_first_process():
            sys.exit(status)
        fail(str(error), status)


def is_first_process() -> bool:
    """Whether this is the one of torchrun's processes that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def fail(message: str, status: int) -> Any:
    """Prints an error without a traceback and ends the process with ``status``."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text("limbeck: ", style="bold red") + Text(message))
    sys.exit(status)
