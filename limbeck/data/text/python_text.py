"""Code and technical prose that every Python brings along: its library's source and the reference manual's topics."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from limbeck.data.text.examples import Document, read_text
from limbeck.data.text.source import RawText, Split, text_data
from limbeck.errors import DataError
from limbeck.hyperparameters import Count

_LICENCE = "Python Software Foundation License, version 2"


@text_data("python_library", title="source of Python's standard library, as installed here", licence=_LICENCE)
def python_library(*, split: Split, characters: Count = 250_000) -> RawText:
    """Returns modules of the standard library, one document each, in the order of their names.

    Versions of Python differ in a few lines, so results compare within one of them.

    Args:
        split: all splits come from the same modules.
        characters: so many are read, to the end of a module.

    Raises:
        DataError: this Python came without its sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents: list[Document] = []
    left = characters
    for path in sorted(folder.glob("*.py")):
        if left <= 0:
            break
        text = read_text(path)
        left -= len(text)
        if text.strip():
            documents.append(Document(text))
    if not documents:
        raise DataError(f"this Python has no sources in '{folder}'; take other text for code")
    return RawText("python_library", documents, licence=_LICENCE)


@text_data("python_manual", title="topics of the Python reference manual, as installed here", licence=_LICENCE)
def python_manual(*, split: Split) -> RawText:
    """Returns what `help()` tells about the language, one document a topic, in the order of their names.

    Raises:
        DataError: this Python came without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python came without the topics of its manual; take other text for prose") from None
    documents = [Document(text) for _, text in sorted(topics.items()) if text.strip()]
    return RawText("python_manual", documents, licence=_LICENCE)
