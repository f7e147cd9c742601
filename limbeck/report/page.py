"""Sections to one self-contained HTML file: it requests nothing, and nothing in it runs but its sorting of tables."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from importlib import resources
from typing import Any

from limbeck import __version__
from limbeck.errors import MissingExtraError
from limbeck.report.png import data_uri
from limbeck.report.sections import Section


def render(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> str:
    """Returns a page.

    All texts are escaped. The page carries its styles, drawings and images, follows the reader's light or dark
    setting, and forbids the browser to load anything.

    Args:
        title: heading and title of the page.
        sections: its parts, in order.
        subtitle: one line below the heading.
        footer: one line at the end, before the version of limbeck.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    script = _file("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    named = [(anchor, type(section).__name__.lower(), section) for anchor, section in zip(_anchors(sections), sections)]
    return _template().render(
        title=title,
        subtitle=subtitle,
        footer=footer,
        version=__version__,
        sections=named,
        style=_file("style.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        data_uri=data_uri,
    )


def _template() -> Any:
    try:
        from jinja2 import DictLoader, Environment, StrictUndefined
    except ImportError:
        raise MissingExtraError("jinja2", "report", "writing a report") from None
    files = {name: _file(name) for name in ("page.html", "sections.html")}
    environment = Environment(
        loader=DictLoader(files), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tight"] = _tight
    return environment.get_template("page.html")


def _tight(text: str) -> str:
    """Keeps a number, its deviation and its unit on one line."""
    return re.sub(r"(?<=\d) (?=%|±|points|[kMG]?B\b|[kMG]\b|ms\b)|(?<=±) ", "\N{NO-BREAK SPACE}", text)


def _file(name: str) -> str:
    return (resources.files("limbeck.report") / "templates" / name).read_text("utf-8")


def _anchors(sections: Sequence[Section]) -> list[str]:
    """An id for each section, made of its title; empty where there is no title."""
    taken: set[str] = set()
    anchors = []
    for section in sections:
        plain = unicodedata.normalize("NFKD", section.title).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or ("section" if section.title else "")
        number = 2
        anchor = slug
        while anchor in taken:
            anchor, number = f"{slug}-{number}", number + 1
        taken.add(anchor) if anchor else None
        anchors.append(anchor)
    return anchors
