"""The README's tables, and the README as the home page."""

from __future__ import annotations

import re

from limbeck.report.explanation import explain

from .comparisons import accuracy_table
from .markup import table
from .methods import families, family_title

BEGIN, END = "<!-- methods: begin (written by docs/build.py --readme) -->", "<!-- methods: end -->"
RESULTS_BEGIN, RESULTS_END = "<!-- results: begin (written by docs/build.py --readme) -->", "<!-- results: end -->"
# Where the files that the README names are on the site.
_MOVED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def family_table() -> str:
    """Returns a row a family with its methods, each linked to its publication."""
    rows = [[family_title(f), ", ".join(_linked(name) for name in names)] for f, names in families().items()]
    return table(["Family", "Methods"], rows)


def _linked(name: str) -> str:
    method = explain(name)
    return f"[`{name}`]({method.link}) {method.year}" if method.link else f"`{name}`"


def with_tables(text: str) -> str:
    """Returns the README with its tables of methods and of results up to date.

    Raises:
        ValueError: the README has no place for a table.
    """
    for begin, end, made in ((BEGIN, END, family_table()), (RESULTS_BEGIN, RESULTS_END, accuracy_table())):
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text, count = between.subn(lambda _, begin=begin, end=end, made=made: f"{begin}\n{made}{end}", text)
        if count != 1:
            raise ValueError(f"README.md should hold the lines '{begin}' and '{end}' once")
    return text


def home(text: str) -> str:
    """Returns a page of the repository's root as a page of the site, its links turned to where things are there."""

    def moved(match: re.Match[str]) -> str:
        shown, address = match[1], match[2]
        if "://" in address or address.startswith("#"):
            return match[0]
        if address.startswith("docs/"):
            return f"[{shown}]({address.removeprefix('docs/')})"
        return f"[{shown}]({_MOVED[address]})" if address in _MOVED else shown

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", moved, text)
