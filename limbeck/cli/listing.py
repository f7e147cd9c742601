"""Commands that list and explain what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from limbeck.cli.application import app


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
