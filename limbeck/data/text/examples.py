"""What a line of text data says: a document, a prompt with its completion, or a conversation."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from limbeck.errors import DataError

_OPENERS: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_ROLES = ("system", "user", "assistant", "tool")


class EmptyAnswerError(DataError):
    """A record has an answer in which there is nothing to learn."""


@dataclass(frozen=True)
class Document:
    """Running text, all of which is to be learnt."""

    text: str


@dataclass(frozen=True)
class Pair:
    """A prompt, which is given, and its completion, which is to be learnt.

    Attributes:
        prompt: the prompt.
        completion: the completion.
        record: every column of the line of data, such as the ``answer`` that a reward compares.
        ended: whether the completion comes to an end, which is then learnt too; false for text that was cut off.
    """

    prompt: str
    completion: str
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    ended: bool = field(default=True, repr=False)


@dataclass(frozen=True)
class Chat:
    """A conversation: ``(role, content)`` in turn. The assistant's turns are to be learnt.

    Attributes:
        messages: the turns.
        learn_from: number of the first message that may be learnt; those before are given.
        record: every column of the line of data.
    """

    messages: tuple[tuple[str, str], ...]
    learn_from: int = 0
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def as_dicts(self) -> list[dict[str, str]]:
        """Returns the messages as a chat template takes them."""
        return [{"role": role, "content": content} for role, content in self.messages]


Example = Document | Pair | Chat


def as_example(record: Mapping[str, Any], where: str) -> Example:
    """Returns what a record with ``text``, with ``prompt`` and ``completion``, or with ``messages`` says.

    Raises:
        DataError: it has none of them, or one of another type; names ``where``.

    Example:
        >>> as_example({"prompt": "2 + 2 =", "completion": " 4"}, "line 1")
        Pair(prompt='2 + 2 =', completion=' 4')
    """
    if "messages" in record:
        return Chat(turns_of(record["messages"], where, answered=True), record=record)
    if "prompt" in record or "completion" in record:
        ended = record.get("ended") is not False
        return Pair(text_of(record, "prompt", where), text_of(record, "completion", where), record, ended)
    if "text" in record:
        return Document(text_of(record, "text", where))
    raise DataError(
        f"{where} has the keys {sorted(map(str, record))[:8]}, but should have `text`, `prompt` and `completion`, or "
        "`messages`, or `chosen` and `rejected`; rename columns with the option `columns`"
    )


def text_of(record: Mapping[str, Any], key: str, where: str) -> str:
    """Returns the text that a record has under a key.

    Raises:
        DataError: it has none, or there is nothing in an answer to learn.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' should be text, but it is {type(value).__name__}")
    if key != "prompt" and key != "text" and not value:
        raise EmptyAnswerError(f"{where}: the {key} is empty, so there is nothing to learn; remove the line")
    return value


def turns_of(
    messages: Any, where: str, *, key: str = "messages", answered: bool = False
) -> tuple[tuple[str, str], ...]:
    """Returns ``(role, content)`` of every message.

    Args:
        messages: a list of ``{role, content}``.
        where: the record's name, for errors.
        key: what the record calls the list.
        answered: refuse a conversation in which the assistant says nothing.

    Raises:
        DataError: it is no such list.
    """
    if not isinstance(messages, Iterable) or isinstance(messages, (str, bytes)):
        raise DataError(f"{where}: '{key}' should be a list of {{role, content}}")
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if role not in _ROLES or not isinstance(content, str):
            raise DataError(
                f"{where}: message {number} should have a role of {', '.join(_ROLES)} and a content of text"
            )
        turns.append((str(role), content))
    if answered and not any(role == "assistant" for role, _ in turns):
        raise EmptyAnswerError(f"{where}: no message comes from the assistant, so there is nothing to learn")
    return tuple(turns)


def read_records(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the records of a JSONL file, which may be compressed (``.xz``, ``.gz``, ``.bz2``), and where each stands.

    Args:
        path: the file.
        columns: what this file calls things, for example ``{prompt: question}``.

    Raises:
        DataError: the file is absent or damaged, or a line is no JSON object; names the line.
    """
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"line {number} of {path.name}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise DataError(f"{where} should be a JSON object, but it is {type(record).__name__}")
            yield renamed(record, columns), where


def renamed(record: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Returns a record under the names that limbeck uses."""
    if not columns:
        return dict(record)
    chosen = {ours: record[theirs] for ours, theirs in columns.items() if theirs in record}
    return {**{k: v for k, v in record.items() if k not in columns.values()}, **chosen}


def read_text(path: Path) -> str:
    """Returns the text of a file, which may be compressed.

    Raises:
        DataError: the file is absent, damaged or not UTF-8.
    """
    with opened(path) as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from None


def opened(path: Path) -> IO[str]:
    """Opens a text file, decompressing by its ending.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8")
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
