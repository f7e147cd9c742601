"""The reference of the Python API, from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import limbeck
from limbeck.methods.base import Method, methods
from limbeck.report.docstrings import Docstring, documented

from .markup import Links, code, indented, markdown

# What a user, or the author of a part, has a use for; `cli` has a page of its own and `demo` is a command.
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "limbeck": ("The way in", ("limbeck.distillation", "limbeck.recipes.run", "limbeck.evaluate.runner")),
    "functional": ("Losses and metrics", ("limbeck.functional",)),
    "contracts": (
        "Signals, taps, schedules, errors",
        (
            "limbeck.signals",
            "limbeck.taps",
            "limbeck.anatomy",
            "limbeck.schedules",
            "limbeck.streams",
            "limbeck.hyperparameters",
            "limbeck.registry",
            "limbeck.errors",
        ),
    ),
    "methods": ("Methods", ("limbeck.methods",)),
    "teachers": ("Teachers: providers and the cache", ("limbeck.teachers",)),
    "students": ("Students: models and weights", ("limbeck.students",)),
    "data": ("Data", ("limbeck.data",)),
    "transforms": ("Transforms", ("limbeck.transforms",)),
    "tasks": ("Tasks", ("limbeck.tasks",)),
    "evaluate": ("Evaluation", ("limbeck.evaluate",)),
    "engine": ("Engine", ("limbeck.engine",)),
    "recipes": ("Recipes and comparisons", ("limbeck.recipes", "limbeck.bench")),
    "export": ("Export and report", ("limbeck.export", "limbeck.report")),
}
_WIDEST_SIGNATURE = 100


def _further() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns a page for each package that none of :data:`PAGES` covers."""
    covered = {module for _, modules in PAGES.values() for module in modules}
    names = [module.name for module in pkgutil.iter_modules(limbeck.__path__) if module.ispkg]
    return {n: (n.capitalize(), (f"limbeck.{n}",)) for n in names if f"limbeck.{n}" not in covered}


PAGES |= _further()


@dataclass(frozen=True)
class Member:
    """A public class or function and where it is."""

    path: str
    part: Any


@cache
def page_modules(page: str) -> tuple[ModuleType, ...]:
    """Returns the modules of a page that document something."""
    found: dict[str, ModuleType] = {}
    for name in PAGES[page][1]:
        module = importlib.import_module(name)
        found[name] = module
        for inner in pkgutil.walk_packages(getattr(module, "__path__", ()), name + "."):
            if not any(part.startswith("_") for part in inner.name.split(".")):
                found.setdefault(inner.name, importlib.import_module(inner.name))
    return tuple(module for module in found.values() if members(module))


def members(module: ModuleType) -> list[Member]:
    """Returns the public classes and functions of a module in its order; registered methods have pages of their own."""
    registered = {entry.part for entry in methods.entries()}
    found = [
        Member(f"{module.__name__}.{name}", part)
        for name, part in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(part) or inspect.isfunction(part))
        and part.__module__ == module.__name__
        and part.__name__ == name
        and not (inspect.isclass(part) and issubclass(part, Method) and part in registered)
        and getattr(part, "__doc__", None)
    ]
    return sorted(found, key=lambda member: _line(member.part))


def links() -> Links:
    """Returns the address of everything that has a place in the documentation, by full dotted name."""
    found: dict[str, str] = {}
    for page in PAGES:
        for module in page_modules(page):
            found[module.__name__] = f"api/{page}.md#{module.__name__}"
            for member in members(module):
                found[member.path] = f"api/{page}.md#{member.path}"
                for name, _ in _methods_of(member.part):
                    found[f"{member.path}.{name}"] = f"api/{page}.md#{member.path}"
    for entry in methods.entries():
        found[f"{entry.part.__module__}.{entry.part.__name__}"] = f"methods/{entry.name}.md"
    for package in ("limbeck.functional", "limbeck.evaluate", "limbeck.methods", "limbeck.data"):
        for name, part in vars(importlib.import_module(package)).items():
            original = f"{getattr(part, '__module__', '')}.{getattr(part, '__name__', '')}"
            if original in found:
                found.setdefault(f"{package}.{name}", found[original])
    # Within limbeck a docstring may name a class or a function of its own module, or a unique one, without its path.
    short: dict[str, set[str]] = {}
    for path, address in found.items():
        short.setdefault(path.rpartition(".")[2], set()).add(address)
    return {**{name: next(iter(where)) for name, where in short.items() if len(where) == 1}, **found}


def api_page(page: str, known: Links) -> str:
    """Returns a page of the reference."""
    title, _ = PAGES[page]
    packages = [importlib.import_module(name) for name in PAGES[page][1]]
    intro = [_prose(documented(package), known) for package in packages if package not in page_modules(page)]
    parts = [f"# {title}", *intro]
    for module in page_modules(page):
        doc = documented(module)
        parts.append(f"## {module.__name__} {{ #{module.__name__} }}")
        parts.append(_prose(doc, known))
        parts += [_member(member, known) for member in members(module)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _member(member: Member, known: Links) -> str:
    doc = documented(member.part)
    parts = [
        f"### {member.part.__name__} {{ #{member.path} }}",
        code(_signature(member.part)),
        _prose(doc, known),
        _sections(doc, known),
    ]
    if inspect.isclass(member.part):
        parts += [_method(name, part, known) for name, part in _methods_of(member.part)]
    return "\n\n".join(part for part in parts if part)


def _method(name: str, part: Any, known: Links) -> str:
    function = part.fget if isinstance(part, property) else getattr(part, "func", getattr(part, "__func__", part))
    doc = documented(function)
    kind = "property" if not inspect.isfunction(part) and not isinstance(part, (classmethod, staticmethod)) else ""
    shown = f"{name}" if kind else _signature(function, name)
    body = "\n\n".join(p for p in (_prose(doc, known), _sections(doc, known)) if p)
    return f"- `{' '.join(shown.split())}`{f' ({kind})' if kind else ''}\n\n{'    ' + indented(body)}"


def _methods_of(part: Any) -> Iterator[tuple[str, Any]]:
    """Yields the public methods and properties that a class defines itself and documents."""
    if not inspect.isclass(part):
        return
    for name, value in vars(part).items():
        if name.startswith("_") or isinstance(value, type):
            continue
        function = (
            value.fget if isinstance(value, property) else getattr(value, "func", getattr(value, "__func__", value))
        )
        if inspect.isfunction(function) and function.__doc__:
            yield name, value


def _prose(doc: Docstring, known: Links) -> str:
    text = "\n\n".join(part for part in (doc.summary, doc.description) if part)
    return markdown(text, known, base="../")


def _sections(doc: Docstring, known: Links) -> str:
    parts = []
    for heading in ("Args", "Attributes", "Terms"):
        items = doc.items(heading)
        if items:
            title = {"Args": "Parameters"}.get(heading, heading)
            lines = [f"- `{name}`: {indented(markdown(text, known, base='../'))}" for name, text in items.items()]
            parts.append(f"**{title}**\n\n" + "\n".join(lines))
    for heading in ("Returns", "Yields", "Deviations", "Note", "Notes"):
        if heading in doc.sections:
            parts.append(f"**{heading}** {markdown(doc.sections[heading], known, base='../')}")
    raised = doc.items("Raises")
    if raised:
        lines = [f"- `{name}`: {indented(markdown(text, known, base='../'))}" for name, text in raised.items()]
        parts.append("**Raises**\n\n" + "\n".join(lines))
    for heading in ("Reference", "References"):
        if heading in doc.sections:
            parts.append(f"**Source** {markdown(doc.sections[heading], known, base='../')}")
    for heading in ("Example", "Examples"):
        if heading in doc.sections:
            parts.append(code(doc.sections[heading], "pycon"))
    return "\n\n".join(parts)


def _signature(part: Any, name: str | None = None) -> str:
    """Returns ``name(arguments)`` as it is written, broken over lines where it is long; annotations are left out."""
    try:
        signature = inspect.signature(inspect.unwrap(part) if not inspect.isclass(part) else part)
    except (TypeError, ValueError):
        return name or part.__name__
    plain = [p.replace(annotation=p.empty) for n, p in signature.parameters.items() if n not in ("self", "cls")]
    shown = str(signature.replace(parameters=plain, return_annotation=signature.empty))
    whole = f"{name or part.__name__}{shown}"
    if len(whole) <= _WIDEST_SIGNATURE or not plain:
        return whole
    inner = "".join(f"    {piece},\n" for piece in _pieces(shown[1:-1]))
    return f"{name or part.__name__}(\n{inner})"


def _pieces(arguments: str) -> list[str]:
    """Splits at the commas that are outside brackets and quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for position, sign in enumerate(arguments):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "([{<":
            depth += 1
        elif sign in ")]}>":
            depth -= 1
        elif sign == "," and depth == 0:
            pieces.append(arguments[start:position].strip())
            start = position + 1
    return [*pieces, arguments[start:].strip()]


def _line(part: Any) -> int:
    try:
        return inspect.getsourcelines(inspect.unwrap(part) if not inspect.isclass(part) else part)[1]
    except (OSError, TypeError):
        return 0
