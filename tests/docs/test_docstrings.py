"""Docstrings say what signatures say, and are written so that the documentation can read them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import limbeck
from limbeck.methods.base import methods
from limbeck.report.docstrings import documented, parse
from limbeck.report.explanation import explain

_MODULES = sorted(
    m.name for m in pkgutil.walk_packages(limbeck.__path__, "limbeck.") if not m.name.endswith("__main__")
)


def public(name: str) -> Iterator[tuple[str, Any]]:
    """Yields the public classes, functions and methods that a module defines."""
    module = importlib.import_module(name)
    for key, part in vars(module).items():
        if key.startswith("_") or getattr(part, "__module__", None) != name:
            continue
        if inspect.isclass(part):
            yield f"{name}.{key}", part
            for inner, function in vars(part).items():
                if not inner.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{key}.{inner}", function
        elif inspect.isfunction(part):
            yield f"{name}.{key}", part


@pytest.mark.parametrize("name", _MODULES)
def test_documented_arguments_are_those_of_the_signature(name: str) -> None:
    wrong = []
    for path, part in public(name):
        named = set(documented(part).items("Args"))
        if not named or (inspect.isclass(part) and hasattr(part, "model_fields")):
            continue
        try:
            known = set(inspect.signature(part).parameters)
        except (TypeError, ValueError):
            continue
        wrong += [f"{path}: {n}" for n in sorted(named - known)]
    assert wrong == []


@pytest.mark.parametrize("name", _MODULES)
def test_sections_begin_on_a_line_of_their_own(name: str) -> None:
    run_on = re.compile(r"^\s*(?:Args|Attributes|Returns|Raises|Terms): \w+: ", re.MULTILINE)
    assert [path for path, part in public(name) if run_on.search(part.__doc__ or "")] == []


@pytest.mark.parametrize("name", list(methods))
def test_a_method_explains_its_terms_and_hyperparameters(name: str) -> None:
    method = explain(name)
    assert method.doc.summary
    assert [term.name for term in method.terms if not term.meaning or not term.weight] == []
    assert [option.name for option in method.hyperparameters if not option.meaning] == []


def test_a_docstring_is_read_in_its_parts() -> None:
    doc = parse("""Adds.

    More
    words.

    Args:
        a: one,
            with more.
        **rest: others.

    Deviations: none that
        matter.

    Raises:
        ValueError: too much.
    """)
    assert doc.summary == "Adds."
    assert doc.description == "More\nwords."
    assert doc.items("Args") == {"a": "one,\nwith more.", "rest": "others."}
    assert " ".join(doc.sections["Deviations"].split()) == "none that matter."
    assert doc.items("Raises") == {"ValueError": "too much."}
    assert parse(None).summary == ""
