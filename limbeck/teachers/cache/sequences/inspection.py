"""Looking at a cache of sequences without a teacher and without its data."""

from __future__ import annotations

from pathlib import Path

from limbeck.errors import CacheError
from limbeck.teachers.cache.sequences.reader import SequenceReader


def verify_sequences(folder: str | Path) -> int:
    """Checks every byte of a cache and returns the number of tokens in it.

    Raises:
        CacheError: the cache is absent, unfinished or corrupt; names every broken file.
    """
    reader = SequenceReader(folder)
    problems = reader.verify()
    if problems:
        raise CacheError("\n".join(problems))
    return reader.header.tokens


def bytes_per_token(folder: str | Path) -> float:
    """Returns the bytes that a token's distribution takes, without what is stored once for all tokens."""
    reader = SequenceReader(folder)
    return reader.size() / reader.header.tokens


def describe_sequences(folder: str | Path) -> str:
    """Returns a paragraph that says what a cache holds, of whom, and how large it is.

    Raises:
        CacheError: the cache is absent, unfinished or its header is corrupt.
    """
    reader = SequenceReader(folder)
    header = reader.header
    parameters = ", ".join(f"{name} = {value}" for name, value in header.codec.items() if name != "name")
    beside = " (and the output layer once)" if header.head is not None else ""
    return (
        f"Teacher cache of {header.tokens:,} tokens in {header.sequences:,} sequences, over a vocabulary of "
        f"{header.vocabulary:,}. Stored with the codec {header.codec['name']} ({parameters}){beside}: "
        f"{reader.size() / header.tokens:.1f} bytes a token, {reader.total_size() / 1e6:.2f} MB in all. Teacher "
        f"{header.teacher} in {header.precision}, tokenizer {header.tokenizer}, chat template {header.template}. "
        f"Written by limbeck {header.limbeck}."
    )
