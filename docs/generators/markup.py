"""From the markup of docstrings to Markdown: roles become links, formulas become MathML, which needs no script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from latex2mathml.converter import convert

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([^`]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
_DISPLAY = re.compile(r"^\.\. math::[ ]?(.*(?:\n(?:[ ]{2,}.*)?)*)", re.MULTILINE)
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_ADDRESS = re.compile(r"https?://[^\s)>,]*[^\s)>,.;]")

Links = Mapping[str, str]
"""Address of what is documented, by full dotted name."""


def mathml(latex: str, *, display: bool) -> str:
    """Returns a formula as MathML on one line.

    Raises:
        ValueError: a command of the formula is unknown, so a reader would see its source.
    """
    # The converter knows \Vert, but neither \| before an index nor a sized \|.
    latex = re.sub(r"(?:\\[bB]igg?[lrm]?)?\\\|", r"\\Vert ", latex)
    markup = convert(latex, display="block" if display else "inline")
    left = re.findall(r"\\[a-zA-Z|]+", markup)
    if left:
        raise ValueError(f"the formula {latex!r} has commands that are not converted: {left}")
    return markup


def equation(latex: str) -> str:
    """Returns a formula as a block of its own; parts joined by ``\\quad`` stand below each other."""
    parts = re.split(r",\s*\\quad\s*", latex)
    rows = "".join(f"<div>{mathml(part, display=True)}</div>" for part in parts)
    return f'\n<div class="equation">{rows}</div>\n'


def markdown(text: str, links: Links, *, base: str = "") -> str:
    """Returns the text of a docstring as Markdown.

    Args:
        text: the text, dedented.
        links: addresses of what is documented, relative to the root of the site.
        base: what leads from the page to the root of the site, for example ``../``.
    """
    kept: list[str] = []

    def keep(markup: str) -> str:
        kept.append(markup)
        return f"\x00{len(kept) - 1}\x00"

    text = _DISPLAY.sub(lambda m: keep(equation(" ".join(m[1].split()))), text)
    text = _MATH.sub(lambda m: keep(mathml(" ".join(m[1].split()), display=False)), text)
    text = _ROLE.sub(lambda m: keep(_reference(m[2], bool(m[1]), links, base)), text)
    text = _LITERAL.sub(lambda m: keep(f"`{' '.join(m[1].split())}`"), text)
    # What is left is prose: signs that Markdown would read as markup stay signs.
    text = _ARXIV.sub(lambda m: keep(f"[{m[0]}](https://arxiv.org/abs/{m[1]})"), text)
    text = _ADDRESS.sub(lambda m: keep(f"<{m[0]}>"), text)
    text = re.sub(r"([*_<])", r"\\\1", text)
    return re.sub("\x00(\\d+)\x00", lambda m: kept[int(m[1])], text)


def _reference(name: str, short: bool, links: Links, base: str) -> str:
    shown = f"`{name.rpartition('.')[2] if short else name}`"
    return f"[{shown}]({base}{links[name]})" if name in links else shown


def cell(text: str) -> str:
    """Returns text for a cell of a table: on one line, its bars escaped, a number beside its sign."""
    return re.sub(r"([<>≤≥]) (?=\d)", "\\1\u00a0", " ".join(text.split())).replace("|", r"\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Returns a Markdown table.

    Args:
        header: headings of the columns.
        rows: Markdown of the cells.
        right: positions of the columns that are aligned to the right.
    """
    rule = ["---:" if n in right else "---" for n in range(len(header))]
    lines = [header, rule, *([cell(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def code(text: str, language: str = "python") -> str:
    """Returns a fenced block of code."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def indented(text: str, width: int = 4) -> str:
    """Returns text whose lines after the first are indented, for an entry of a list."""
    first, *rest = text.splitlines() or [""]
    return "\n".join([first, *((" " * width + line) if line.strip() else "" for line in rest)])
