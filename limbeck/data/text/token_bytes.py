"""What the tokens of a tokenizer stand for, byte by byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NO_TEXT = b"\xff"
_SPACE = "\u2581"
_PROBE = "Two  cafés — 漢字 \U0001f642\n\tx = 1; don't"


def byte_characters() -> dict[str, int]:
    """Returns the character by which byte-level tokenizers write each byte, as GPT-2 does.

    Example:
        >>> byte_characters()["Ġ"] == ord(" "), len(byte_characters())
        (True, 256)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


class Cut(NamedTuple):
    """A text as a tokenizer cuts it.

    Attributes:
        ids: ``[n]`` the tokens.
        ends: ``[n]`` bytes of the text up to the end of each.
        exact: ``[n]`` whether a token stands for just these bytes; not where a tokenizer changes the text (lower case,
            composed characters), knows no token for it, or drops it.
    """

    ids: np.ndarray
    ends: np.ndarray
    exact: np.ndarray


class TokenBytes:
    r"""The bytes of every token of a tokenizer: byte-level BPE, or SentencePiece with or without byte fallback.

    Args:
        tokenizer: the tokenizer.

    Attributes:
        tokenizer: the same.
        pieces: bytes of each token by its id; None for those that do not say (special and unknown ones).
        unknown: ids of tokens that stand for any text that the tokenizer does not know.

    Raises:
        DataError: its tokens do not say which bytes they stand for, so it cannot be aligned with another.

    Example:
        >>> from limbeck.data.text import load_tokenizer
        >>> TokenBytes(load_tokenizer("bytes")).pieces[:2]
        (b'\x00', b'\x01')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        whole = json.loads(tokenizer.backend.backend_tokenizer.to_str())
        self._kind = _kind(whole)
        self.unknown = _unknown(tokenizer, whole["model"])
        self.pieces = _pieces(tokenizer, whole, self._kind, self.unknown)
        told, _ = self.read(tokenizer.encode(_PROBE))
        if self._kind is None or not _reads(told, _PROBE):
            raise DataError(
                f"the tokens of '{tokenizer.name}' do not say which bytes they stand for, so its text cannot be "
                "aligned with another tokenizer's; byte-level BPE and SentencePiece can"
            )

    @cached_property
    def adds_space(self) -> bool:
        """Whether it puts a space before a text that has none, as SentencePiece does."""
        return b"".join(piece or b"" for piece in self.of(self.tokenizer.encode("a"))) == b" a"

    @cached_property
    def beginning(self) -> list[int]:
        """What it puts before a text for its model: a begin-of-sequence token, or nothing."""
        ids = list(self.tokenizer.backend("", verbose=False)["input_ids"])
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_id else []

    def of(self, ids: Sequence[int] | np.ndarray) -> list[bytes | None]:
        """Returns the bytes of tokens; None for one that stands for no text, or is outside the vocabulary."""
        return [self.pieces[i] if 0 <= i < len(self.pieces) else None for i in map(int, ids)]

    def read(self, ids: Sequence[int] | np.ndarray, *, first: bool = False) -> tuple[bytes, np.ndarray]:
        """Returns the text of tokens in bytes, and up to where in it each reaches ``[n]``.

        Args:
            ids: the tokens; special ones have no width, unknown ones are a byte that no text has.
            first: whether they begin a text, before which a space is none of it.
        """
        pieces = [piece or (_NO_TEXT if i in self.unknown else b"") for i, piece in zip(map(int, ids), self.of(ids))]
        if first and self.adds_space and pieces and pieces[0].startswith(b" "):
            pieces[0] = pieces[0][1:]
        return b"".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)

    def silent(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns which tokens are special ones, that stand for no text at all, ``[n]`` bool."""
        return np.array([p is None and int(i) not in self.unknown for i, p in zip(ids, self.of(ids))], bool)

    def cut(self, text: str, *, first: bool = True) -> Cut:
        """Returns the tokens of a text with what each stands for.

        Args:
            text: the text.
            first: whether nothing comes before it; else a space that the tokenizer puts before it is one too many.
        """
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        told, ends = self.read(ids, first=True)
        if told == text.encode() and all(piece is not None for piece in self.of(ids)):
            found = Cut(np.array(ids, np.int64), ends, np.ones(len(ids), bool))
        else:
            found = self._by_characters(text, ids, offsets)
        if not first and self.adds_space and ids and not text.startswith(" "):
            found.exact[0] = False
        return found

    def _by_characters(self, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Cut:
        """Goes by the characters that the tokenizer names, where its tokens do not say the text itself."""
        whole = text.encode()
        places = np.cumsum([0, *(len(c.encode()) for c in text)], dtype=np.int64)
        ends, exact = np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        reached = 0
        for first, last, stop in _groups(offsets):
            end = max(int(places[stop]), reached)
            pieces = self.of(ids[first:last])
            widths = [len(piece or b"") for piece in pieces]
            told = b"".join(piece or b"" for piece in pieces)
            if not reached and self.adds_space and told == b" " + whole[:end]:
                told, widths[0] = told[1:], widths[0] - 1
            # Bytes that were skipped before the group belong to it, and make it inexact.
            good = None not in pieces and told == whole[reached:end]
            ends[first:last] = reached + np.cumsum(widths) if good else reached
            ends[last - 1] = end
            exact[first:last] = good
            reached = end
        return Cut(np.array(ids, np.int64), ends, exact)


def _groups(offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields runs of tokens that share characters: first and last token, and the character after them."""
    first, stop = 0, 0
    for number, (_, end) in enumerate(offsets):
        stop = max(stop, end)
        if number + 1 == len(offsets) or offsets[number + 1][0] >= stop:
            yield first, number + 1, stop
            first = number + 1


def token_map(student: TokenBytes, teacher: TokenBytes) -> np.ndarray:
    """Returns for each token of the teacher the student's token of the same bytes, ``[V']`` int64; -1 without one.

    The tokens that end a sequence are the same, whatever they are called. No token is the partner of two: of several
    with the same bytes (SentencePiece's byte tokens beside letters) the tokens that a text gets count.
    """
    found = np.full(len(teacher.pieces), -1, np.int64)
    ours, theirs = (_by_bytes(side) for side in (student, teacher))
    for piece, number in theirs.items():
        found[number] = ours.get(piece, -1)
    found[teacher.tokenizer.eos_id] = student.tokenizer.eos_id
    return found


def _by_bytes(side: TokenBytes) -> dict[bytes, int]:
    """Returns a token for each piece of bytes: of several the one that is no byte token, and among those the first."""
    strings = side.tokenizer.backend.convert_ids_to_tokens(list(range(len(side.pieces))))
    fallback = [bool(_BYTE.fullmatch(string or "")) for string in strings]
    order = sorted(range(len(side.pieces)), key=lambda n: (not fallback[n], -n))
    found = {piece: n for n in order if (piece := side.pieces[n])}
    ending = side.tokenizer.eos_id
    return {piece: n for piece, n in found.items() if n != ending}


def _kind(whole: dict[str, Any]) -> str | None:
    """Returns how tokens write bytes: ``bytes``, ``pieces`` or not at all."""
    parts = [part for key in ("decoder", "pre_tokenizer") for part in _parts(whole.get(key))]
    types = {part["type"] for part in parts}
    if "ByteLevel" in types:
        return "bytes"
    spaces = any(part.get("content") == _SPACE for part in _parts(whole.get("normalizer")))
    return "pieces" if spaces or "Metaspace" in types or "ByteFallback" in types else None


def _parts(section: Any) -> list[dict[str, Any]]:
    """Returns the members of a section of a tokenizer, which may be a sequence of sections."""
    if not isinstance(section, dict):
        return []
    inner = next((section[key] for key in ("decoders", "pretokenizers", "normalizers") if key in section), None)
    return [section] if inner is None else [part for one in inner for part in _parts(one)]


def _unknown(tokenizer: Tokenizer, model: dict[str, Any]) -> frozenset[int]:
    """Returns the token for what a tokenizer does not know, where it has one."""
    named = model.get("unk_token")
    number = model.get("unk_id") if named is None else tokenizer.backend.convert_tokens_to_ids(named)
    return frozenset() if number is None else frozenset({int(number)})


def _pieces(
    tokenizer: Tokenizer, whole: dict[str, Any], kind: str | None, unknown: frozenset[int]
) -> tuple[bytes | None, ...]:
    backend = tokenizer.backend
    silent = set(backend.all_special_ids) | {t["id"] for t in whole["added_tokens"] if t["special"]} | unknown
    literal = {t["id"]: t["content"].encode() for t in whole["added_tokens"]}
    letters = byte_characters()
    found: list[bytes | None] = []
    for number, string in enumerate(backend.convert_ids_to_tokens(list(range(tokenizer.vocabulary)))):
        if string is None or number in silent:
            found.append(None)
        elif number in literal:
            found.append(literal[number])
        elif kind == "bytes":
            known = [letters.get(c) for c in string]
            found.append(None if None in known else bytes(b for b in known if b is not None))
        else:
            one = _BYTE.fullmatch(string)
            found.append(bytes([int(one[1], 16)]) if one else string.replace(_SPACE, " ").encode())
    return tuple(found)


def _reads(told: bytes, text: str) -> bool:
    """Whether tokens say a text as far as they know it: nothing but what is in it, in order."""
    letters = re.sub(r"\s", "", told.decode("utf-8", "ignore")).casefold()
    rest = iter(re.sub(r"\s", "", text).casefold())
    return bool(letters) and all(any(c == other for other in rest) for c in letters)
