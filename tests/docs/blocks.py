"""Runs the code of a page: files are written, Python is executed, `limbeck` commands are called."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from limbeck.cli import main

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it stands for, its text and the line where it begins."""

    language: str
    title: str | None
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        yield Block(found[1], found[2], found[3], text.count("\n", 0, found.start()) + 2)


def commands(block: Block) -> Iterator[list[str]]:
    """Yields the arguments of the `limbeck` commands of a console block."""
    for line in block.text.splitlines():
        if line.startswith("$ limbeck "):
            yield shlex.split(line.removeprefix("$ limbeck "))


def run_page(page: Path, folder: Path) -> int:
    """Runs a page in ``folder``, the current directory, and returns how many blocks did something."""
    namespace: dict[str, object] = {"__name__": "page"}
    done = 0
    for block in blocks(page):
        if block.title is not None:
            (folder / block.title).write_text(block.text, "utf-8")
        elif block.language == "python":
            # Blank lines before it make a traceback name the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        elif block.language == "console":
            for arguments in commands(block):
                call(arguments)
        else:
            continue
        done += 1
    return done


def call(arguments: list[str]) -> None:
    """Calls the command; fails where it ends with an error."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (None, 0), f"limbeck {shlex.join(arguments)} ended with {end.value.code}"
