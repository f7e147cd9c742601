"""Reads Google docstrings, so that help and documentation say what the code says."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

_HEADING = re.compile(
    "(Args|Attributes|Deviations|Examples?|Modules|Notes?|Raises|References?|Returns|Terms|Yields):(?: (.*))?$"
)
_ITEM = re.compile(r"(\*{0,2}[\w.-]+)(?: \([^)]*\))?:(?: (.*))?$")
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([^`]+)`")
_MATH = re.compile(r":math:`([^`]+)`")


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts, with the markup of the source.

    Attributes:
        summary: the first paragraph, on one line.
        description: the paragraphs between the summary and the sections, and those between sections.
        sections: text by heading (``Args``, ``Returns``, ``Terms`` ...), dedented.
    """

    summary: str
    description: str
    sections: dict[str, str]

    def items(self, heading: str) -> dict[str, str]:
        r"""Returns the entries ``name: text`` of a section; further lines of an entry are dedented.

        Example:
            >>> parse("Adds.\n\nArgs:\n    a: one.\n    b: the\n        other.").items("Args")
            {'a': 'one.', 'b': 'the\nother.'}
        """
        entries: dict[str, list[str]] = {}
        current: list[str] = []
        for line in self.sections.get(heading, "").splitlines():
            found = _ITEM.match(line)
            if found:
                current = entries.setdefault(found[1].lstrip("*"), [])
                current.append(found[2] or "")
            else:
                current.append(line)
        return {name: _dedented_after_first(lines) for name, lines in entries.items()}


def parse(text: str | None) -> Docstring:
    """Returns the parts of a docstring; all are empty where there is none."""
    lines = inspect.cleandoc(text or "").splitlines()
    prose: list[str] = []
    sections: dict[str, str] = {}
    position = 0
    while position < len(lines):
        found = _HEADING.match(lines[position])
        if not found:
            prose.append(lines[position])
            position += 1
            continue
        inline = bool(found[2])
        body = [found[2]] if inline else []
        position += 1
        while position < len(lines) and _belongs(lines[position], inline):
            body.append(lines[position])
            position += 1
        sections[found[1]] = (
            body[0] + "\n" + inspect.cleandoc("\n".join(["", *body[1:]])) if inline else _dedented(body)
        )
        sections[found[1]] = sections[found[1]].strip()
    summary, _, description = "\n".join(prose).strip().partition("\n\n")
    return Docstring(" ".join(summary.split()), description.strip(), sections)


def documented(part: Any) -> Docstring:
    """Returns the docstring of a class, a function or a module; empty for what a class inherits from ``object``."""
    own = part.__dict__.get("__doc__") if isinstance(part, type) else getattr(part, "__doc__", None)
    return parse(own)


def plain(text: str) -> str:
    """Returns text without markup, for a terminal; paragraphs keep their lines.

    Example:
        >>> plain("see :func:`~limbeck.functional.kl` with ``temperature`` :math:`T > 0`")
        'see kl with temperature T > 0'
    """
    text = _ROLE.sub(lambda m: m[2].rpartition(".")[2] if m[1] else m[2], text)
    text = _MATH.sub(r"\1", text).replace(".. math:: ", "")
    return text.replace("``", "")


def one_line(text: str) -> str:
    r"""Returns text with its line breaks turned into spaces.

    Example:
        >>> one_line("a\n  b")
        'a b'
    """
    return " ".join(text.split())


def first_sentence(text: str) -> str:
    """Returns the first sentence of a text, without its full stop.

    Example:
        >>> first_sentence("Splits KD. And weighs it.")
        'Splits KD'
    """
    return re.split(r"\.(?:\s|$)", one_line(text), maxsplit=1)[0]


def sentence_case(text: str) -> str:
    """Returns text whose first letter is a capital, as a sentence begins.

    Example:
        >>> sentence_case("the authors average")
        'The authors average'
    """
    return text[:1].upper() + text[1:]


def _belongs(line: str, inline: bool) -> bool:
    """Whether a line goes on with the section: any up to a blank line, or indented ones."""
    if inline:
        return bool(line.strip()) and not _HEADING.match(line)
    return not line.strip() or line.startswith((" ", "\t"))


def _dedented(lines: list[str]) -> str:
    return inspect.cleandoc("\n".join(["", *lines])).strip()


def _dedented_after_first(lines: list[str]) -> str:
    rest = _dedented(lines[1:])
    return f"{lines[0]}\n{rest}".strip() if rest else lines[0]
