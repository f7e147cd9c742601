"""What there is to say of a method: from its registration, docstring and signature, and from the shipped results."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.bench.suite import arms_prepared_by, shipped_terms
from limbeck.bench.table import Row, Summary, shipped_results, summarise
from limbeck.errors import LimbeckError
from limbeck.methods.base import LogitMethod, Method, methods
from limbeck.recipes.load import load_recipe, shipped
from limbeck.report.docstrings import Docstring, documented
from limbeck.report.wording import describe_default, describe_type, describe_weight


@dataclass(frozen=True)
class TermFact:
    """A term of a loss: name, default weight in words (empty where some hyperparameter must be given), meaning."""

    name: str
    weight: str
    meaning: str


@dataclass(frozen=True)
class Option:
    """A keyword argument: its name, what values it takes, its default (None where it must be given) and its meaning."""

    name: str
    values: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class RoleNeed:
    """What a method reads of a role, and whether it trains it."""

    role: str
    trained: bool
    signals: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """How a method did in a shipped comparison.

    Attributes:
        suite: name of the comparison.
        data: data set.
        teacher: teacher model.
        student: student model.
        epochs: epochs of the method's own arms.
        split: what was measured on.
        summaries: the method's arms and the comparison's baselines, best first.
    """

    suite: str
    data: str
    teacher: str
    student: str
    epochs: int
    split: str
    summaries: tuple[Summary, ...]


@dataclass(frozen=True)
class Explanation:
    """Everything that ``limbeck explain`` and a method's page say.

    Attributes:
        name: name in recipes.
        title: title of the publication.
        authors: its authors, where registered.
        year: year of publication; 0 where there is none.
        link: address of the publication; empty where there is none.
        family: family of methods.
        equation: the loss in LaTeX.
        doc: the docstring of the class.
        terms: its loss terms.
        hyperparameters: its keyword arguments.
        roles: what it reads of each role.
        batch: entries of the batch that it reads.
        views: further views of the samples that it reads.
        batch_coupled: whether its loss depends on which samples share a batch.
        batch_statistics: frozen roles whose batch normalisation uses the statistics of the batch.
        takes_logit_transform: whether ``logit_transform`` applies to it.
        recipes: shipped recipes that use it.
        measured: its shipped results.
        module: where its source is, as a dotted name.
    """

    name: str
    title: str
    authors: str
    year: int
    link: str
    family: str
    equation: str
    doc: Docstring
    terms: tuple[TermFact, ...]
    hyperparameters: tuple[Option, ...]
    roles: tuple[RoleNeed, ...]
    batch: tuple[str, ...]
    views: tuple[str, ...]
    batch_coupled: bool
    batch_statistics: tuple[str, ...]
    takes_logit_transform: bool
    recipes: tuple[str, ...]
    measured: tuple[Measured, ...]
    module: str


def explain(name: str) -> Explanation:
    """Returns what there is to say of the method called ``name``.

    Raises:
        UnknownNameError: no method has that name.
    """
    entry = methods[name]
    cls, about = entry.part, entry.about
    doc = documented(cls)
    method = _with_defaults(cls)
    needs = cls.needs if method is None else method.needs
    return Explanation(
        name=name,
        title=about["title"],
        authors=about.get("authors", ""),
        year=about["year"],
        link=paper_link(about["paper"]),
        family=about["family"],
        equation=about["equation"],
        doc=doc,
        terms=_terms(method, doc),
        hyperparameters=options_of(cls.__init__, doc),
        roles=tuple(RoleNeed(r, r in cls.learners, tuple(sorted(needs.roles.get(r, ())))) for r in cls.roles()),
        batch=tuple(sorted(needs.batch)),
        views=needs.views,
        batch_coupled=cls.batch_coupled if method is None else method.batch_coupled,
        batch_statistics=cls.batch_statistics,
        takes_logit_transform=issubclass(cls, LogitMethod),
        recipes=tuple(recipes_by_method().get(name, ())),
        measured=tuple(
            _measured(suite, rows, own) for suite, rows in shipped_results().items() if (own := _own(name, suite, rows))
        ),
        module=cls.__module__,
    )


def paper_link(paper: str) -> str:
    """Returns the address of a publication given by an arXiv number or an address.

    Example:
        >>> paper_link("1503.02531")
        'https://arxiv.org/abs/1503.02531'
    """
    return f"https://arxiv.org/abs/{paper}" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else paper


def bibtex(name: str, about: Mapping[str, Any]) -> str:
    """Returns a BibTeX entry of a publication from the facts of a registration; empty where there is no publication.

    Example:
        >>> about = {"title": "Distilling the Knowledge in a Neural Network", "paper": "1503.02531", "year": 2015}
        >>> print(bibtex("kd", about))
        @misc{kd2015,
          title = {{Distilling the Knowledge in a Neural Network}},
          year = {2015},
          eprint = {1503.02531},
          archiveprefix = {arXiv},
          url = {https://arxiv.org/abs/1503.02531},
        }
    """
    paper = about.get("paper", "")
    if not paper:
        return ""
    link = paper_link(paper)
    fields = {"title": f"{{{about['title']}}}", "author": about.get("authors", ""), "year": str(about["year"])}
    if link != paper:
        fields |= {"eprint": paper, "archiveprefix": "arXiv"}
    fields["url"] = link
    lines = [f"  {key} = {{{value}}}," for key, value in fields.items() if value]
    return "\n".join([f"@misc{{{name}{about['year']},", *lines, "}"])


def options_of(
    function: Callable[..., Any], doc: Docstring, *, leave_out: tuple[str, ...] = ("self",)
) -> tuple[Option, ...]:
    """Returns the keyword arguments of a constructor or function, with their meanings from its docstring.

    Args:
        function: what takes them; a wrapper stands for what it wraps.
        doc: where ``Args`` explains them.
        leave_out: arguments that are no options.
    """
    plain = inspect.unwrap(function)
    hints = typing.get_type_hints(plain, include_extras=True)
    meanings = doc.items("Args")
    return tuple(
        Option(
            name,
            describe_type(hints.get(name, Any)),
            None if parameter.default is parameter.empty else describe_default(parameter.default),
            meanings.get(name, ""),
        )
        for name, parameter in inspect.signature(plain).parameters.items()
        if name not in leave_out and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    )


def recipes_by_method() -> dict[str, list[str]]:
    """Returns the names of the shipped recipes that use each method."""
    found: dict[str, list[str]] = {}
    for recipe in shipped():
        for method in sorted({name for stage in load_recipe(recipe).stages for name in stage.method_names}):
            found.setdefault(method, []).append(recipe)
    return found


def _with_defaults(cls: type[Method]) -> Method | None:
    """Returns an instance with default hyperparameters; None where some must be given."""
    try:
        return cls()
    except LimbeckError:
        return None


def _terms(method: Method | None, doc: Docstring) -> tuple[TermFact, ...]:
    weights = {} if method is None else method.weights
    meanings = doc.items("Terms")
    names = dict.fromkeys([*meanings, *weights])
    return tuple(TermFact(n, describe_weight(weights[n]) if n in weights else "", meanings.get(n, "")) for n in names)


def _own(name: str, suite: str, rows: list[Row]) -> list[Row]:
    """Returns the runs of a method alone, or else those in which it is one of several, or else those it prepares."""
    alone = [row for row in rows if row.method == name]
    beside = alone or [row for row in rows if name in row.method.split(" + ")]
    if beside:
        return beside
    prepared = arms_prepared_by(name, suite)
    return [row for row in rows if row.arm in prepared]


def _measured(suite: str, rows: list[Row], own: list[Row]) -> Measured:
    terms, first = shipped_terms(suite), own[0]
    arms = {row.arm for row in own} | set(terms.baselines)
    found = tuple(summarise([row for row in rows if row.arm in arms], terms))
    return Measured(first.suite, first.data, first.teacher, first.student, first.epochs, first.split, found)
