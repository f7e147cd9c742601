"""Looking at a cache without a teacher and without its data."""

from __future__ import annotations

from pathlib import Path

from limbeck.errors import CacheError
from limbeck.teachers.cache.reader import CacheReader


def verify(folder: str | Path) -> int:
    """Checks every byte of a cache and returns the number of rows in it.

    Raises:
        CacheError: the cache is absent, unfinished or corrupt; names every broken file.
    """
    reader = CacheReader(folder)
    problems = reader.verify()
    if problems:
        raise CacheError("\n".join(problems))
    return reader.header.samples * len(reader.header.views)


def bytes_per_sample(folder: str | Path) -> float:
    """Returns the bytes of all files of a cache, divided by samples and views."""
    reader = CacheReader(folder)
    return reader.size() / (reader.header.samples * len(reader.header.views))


def describe(folder: str | Path) -> str:
    """Returns a paragraph that says what a cache holds, of whom, and how large it is.

    Raises:
        CacheError: the cache is absent, unfinished or its header is corrupt.
    """
    reader = CacheReader(folder)
    header = reader.header
    parameters = ", ".join(f"{name} = {value}" for name, value in header.codec.items() if name != "name")
    codec = f"{header.codec['name']} ({parameters})" if parameters else header.codec["name"]
    views = f"{len(header.views)} augmented views" if len(header.views) > 1 else "1 view"
    extras = f", and {', '.join(header.extras)} in {header.extras_dtype}" if header.extras else ""
    each = reader.size() / (header.samples * len(header.views))
    return (
        f"Teacher cache of {header.samples:,} samples in {views} (seed "
        f"{header.seed}). Logits over "
        f"{header.classes:,} classes are stored with the codec {codec}{extras}: {each:.1f} bytes a sample and view, "
        f"{reader.size() / 1e6:.2f} MB in {len(header.shards) + 2} files. Teacher {header.teacher}, data "
        f"{header.data}, preprocessing "
        f"{header.preprocessing}. Written by limbeck {header.limbeck}."
    )
