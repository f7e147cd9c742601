"""What ``limbeck methods``, ``explain``, ``models``, ``data``, ``recipes`` and ``bench`` without a name print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.bench.columns import facts_of
from limbeck.bench.suite import load_suite
from limbeck.bench.suite import shipped as shipped_suites
from limbeck.data.source import datasets
from limbeck.data.text.source import texts
from limbeck.errors import UnknownNameError, suggest
from limbeck.evaluate.measure import Measure
from limbeck.methods.base import methods
from limbeck.recipes.load import load_recipe, shipped
from limbeck.report.docstrings import documented, first_sentence, one_line, plain, sentence_case
from limbeck.report.explanation import Explanation, Measured, Option, bibtex, explain
from limbeck.report.terminal import print_table
from limbeck.report.zoo import INPUT_SHAPE, NUM_CLASSES, model_facts

_COUNT = Measure("count", "count", "count")
_WIDEST_PROSE = 100


def show_methods(family: str | None = None) -> None:
    """Prints the methods, all or those of a family.

    Raises:
        UnknownNameError: no method is of that family.
    """
    entries = methods.entries()
    families = sorted({entry.about["family"] for entry in entries})
    if family is not None and family not in families:
        raise UnknownNameError(f"no methods of the family '{family}'. {suggest(family, families)}")
    table = _table("method", "family", "year", "what it does", right=("year",))
    for entry in sorted(entries, key=lambda e: (e.about["family"], e.about["year"], e.name)):
        if family in (None, entry.about["family"]):
            summary = first_sentence(plain(documented(entry.part).summary))
            table.add_row(entry.name, entry.about["family"], _year(entry.about["year"]), summary)
    _print(table, "`limbeck explain NAME` says more of one.")


def show_method(name: str) -> None:
    """Prints what there is to say of a method: paper, equation, terms, hyperparameters, needs, recipes and results.

    Raises:
        UnknownNameError: no method has that name.
    """
    method = explain(name)
    console = Console()
    console.print(Text(f"{name}: {method.title}" + (f" ({method.year})" if method.year else ""), style="bold"))
    if method.authors:
        console.print(Text(method.authors.replace(" and ", ", ")), soft_wrap=True)
    console.print(Text(f"{method.link}  family {method.family}".strip(), style="dim"), soft_wrap=True)
    for paragraph in (method.doc.summary, *method.doc.description.split("\n\n")):
        _prose(console, paragraph)
    if method.equation:
        console.print("\n[bold]Equation[/], in LaTeX")
        console.print(Text("  " + method.equation.replace(r", \quad ", ",\n  ")), soft_wrap=True)
    _show_terms(console, method)
    _show_options(console, "Hyperparameters", method.hyperparameters)
    _show_needs(console, method)
    if "Deviations" in method.doc.sections:
        console.print("\n[bold]Deviations[/] from the paper or its code", end="")
        _prose(console, sentence_case(method.doc.sections["Deviations"]))
    console.print(f"\n[bold]Recipes[/]  {', '.join(method.recipes) or 'none is shipped'}")
    _show_measured(console, method.measured)
    entry = bibtex(name, methods[name].about)
    if entry:
        console.print("\n[bold]Cite[/]")
        console.print(Text(entry), soft_wrap=True)


def show_models() -> None:
    """Prints the models of the zoo with their sizes and the data sets on which weights are shipped."""
    shape = " x ".join(str(n) for n in INPUT_SHAPE)
    table = _table("model", "parameters", "MACs", "weights", "what it is", right=("parameters", "MACs"))
    for fact in model_facts():
        sizes = [_COUNT.text(n) for n in (fact.cost.parameters, fact.cost.macs)] if fact.cost else ["–", "–"]
        table.add_row(fact.name, *sizes, ", ".join(fact.weights) or "–", plain(fact.what))
    _print(
        table,
        f"Sizes are for {NUM_CLASSES} classes and inputs {shape}. Models of other libraries are named timm:NAME, "
        "hf:NAME, torchvision:NAME, your own python:package.module:factory.",
    )


def show_data() -> None:
    """Prints the data sets that have a name, with their licences."""
    table = _table("data set", "what it is", "licence and origin")
    for entry in datasets.entries():
        title = entry.about.get("title", first_sentence(plain(documented(entry.part).summary)))
        table.add_row(entry.name, title, entry.about.get("licence", ""))
    _print(table, "In Python, any torch Dataset or pair of tensors will do.")
    text = _table("text, for the task causal-lm", "what it is", "licence and origin")
    for reader in texts.entries():
        text.add_row(reader.name, reader.about["title"], reader.about["licence"])
    _print(text, "`data.options` also take tokenizer, context, packed, bos, too_long and test.")


def show_recipes() -> None:
    """Prints the recipes that are shipped."""
    table = _table("recipe", "methods", "about")
    for name in shipped():
        recipe = load_recipe(name)
        table.add_row(name, ", ".join(stage.method_name for stage in recipe.stages), recipe.about)
    _print(table, "`limbeck run NAME` trains one, `limbeck check NAME` says what it will cost.")


def show_suites() -> None:
    """Prints the comparisons that are shipped."""
    table = _table("comparison", "arms", "about", right=("arms",))
    for name in shipped_suites():
        suite = load_suite(name)[1]
        table.add_row(name, str(len({*suite.baselines, *suite.arms})), suite.about)
    _print(table, "`limbeck bench NAME` runs one, `limbeck bench NAME --arm ARM` one row of it.")


def _show_terms(console: Console, method: Explanation) -> None:
    table = _table("term", "weight", "meaning")
    for term in method.terms:
        table.add_row(term.name, term.weight, one_line(plain(term.meaning)))
    console.print("\n[bold]Terms[/] of the loss; `weights:` in a recipe changes their weights")
    print_table(console, table)


def _show_options(console: Console, title: str, options: tuple[Option, ...]) -> None:
    if not options:
        return
    table = _table("name", "default", "values", "meaning")
    for option in options:
        default = "must be given" if option.default is None else option.default
        table.add_row(option.name, default, option.values, one_line(plain(option.meaning)))
    console.print(f"\n[bold]{title}[/]")
    print_table(console, table)


def _show_needs(console: Console, method: Explanation) -> None:
    console.print("\n[bold]Needs[/]")
    for need in method.roles:
        signals = ", ".join(need.signals) or "nothing"
        console.print(Text(f"  {need.role} ({'trained' if need.trained else 'frozen'}): {signals}"))
    if method.batch:
        console.print(Text(f"  batch: {', '.join(method.batch)}"))
    if method.views:
        console.print(Text(f"  further views (data.views): {', '.join(method.views)}"))
    for role in method.batch_statistics:
        console.print(Text(f"  the {role}'s batch normalisation uses the statistics of the batch"))
    if method.batch_coupled:
        console.print(Text("  couples the samples of a batch: gathered over processes, refused with micro-batches"))
    if method.takes_logit_transform:
        console.print(Text("  takes logit_transform: standardize"))


def _show_measured(console: Console, measured: tuple[Measured, ...]) -> None:
    if not measured:
        console.print("\n[bold]Measured[/]  no measured result yet")
        return
    for result in measured:
        facts = facts_of(result.summaries)
        runs = "runs" if any(arm.folds for arm in result.summaries) else "seeds"
        titles = [*(_lower(fact.title) for fact in facts), runs]
        table = _table("arm", *titles, right=tuple(titles))
        for arm in result.summaries:
            table.add_row(arm.arm, *(fact.text(arm) for fact in facts), str(arm.seeds))
        console.print(
            f"\n[bold]Measured[/]  {result.teacher or 'no teacher'} to {result.student} on {result.data}, "
            f"{result.epochs} epochs, last epoch, {result.split} data (suite {result.suite})"
        )
        print_table(console, table)


def _lower(title: str) -> str:
    """Writes a heading as the terminal's tables do: in lower case, but for abbreviations."""
    return title if title[:2].isupper() else title[:1].lower() + title[1:]


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if column in right else "left",
            style="bold" if number == 0 else "",
            no_wrap=number == 0,
        )
    return table


def _print(table: Table, note: str) -> None:
    console = Console()
    print_table(console, table)
    console.print(Text(note, style="dim"))


def _prose(console: Console, paragraph: str) -> None:
    if paragraph.strip():
        console.print()
        console.print(Text(one_line(plain(paragraph))), width=min(console.width, _WIDEST_PROSE))


def _year(year: int) -> str:
    return str(year) if year else ""
