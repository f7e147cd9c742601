"""What a cache of sequences says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from limbeck.teachers.cache.header import HEADER, UNSIGNED, Checksum, FileEntry, Part, read_sealed

FORMAT: Final = "limbeck-sequences"
VERSION: Final = 1
_Positive = Annotated[int, Field(ge=1)]
_WholeNumber = Annotated[int, Field(ge=0)]


class SequenceHeader(Part):
    """The header of a cache of sequences.

    A finished cache has an entry in ``shards`` for every shard, and in ``entries`` where tokens have different numbers
    of entries.
    """

    format: Literal["limbeck-sequences"] = FORMAT
    version: Literal[1] = VERSION
    limbeck: str = Field(description="version that wrote the cache")
    teacher: str = Field(description="fingerprint of the teacher")
    tokenizer: str = Field(description="hash of everything that decides which ids a text gets")
    template: str = Field(description="hash of the chat template")
    vocabulary: _Positive = Field(description="true tokens")
    width: _WholeNumber = Field(description="size of the hidden states; 0 where they are not stored")
    codec: dict[str, Any] = Field(description="name and parameters of the codec, temperature of its draws included")
    revision: _Positive = Field(default=1, description="which way of packing the codec used")
    precision: str = Field(description="type in which the teacher ran")
    sequences: _Positive = Field(description="sequences, equal ones counted once")
    tokens: _Positive = Field(description="tokens that count in all sequences")
    tokens_per_shard: _Positive
    rows_per_block: _Positive
    keys: FileEntry = Field(description="file of content hashes and lengths, in the order of sequences")
    head: dict[str, Any] | None = Field(
        description="the output layer's scale, softcap and checksum, where it is stored"
    )
    shards: list[FileEntry] = Field(description="files of tokens")
    entries: list[FileEntry] = Field(description="files of entries")
    checksum: Checksum = Field(default=UNSIGNED, description="128-bit BLAKE2b of this file with zeros here")


def read_sequence_header(folder: Path, name: str = HEADER) -> SequenceHeader:
    """Reads and checks a header.

    Raises:
        CacheError: there is none, it is corrupt, of another version or not one of ours; the message says which.
    """
    return read_sealed(folder, name, SequenceHeader, FORMAT, VERSION)


def is_sequence_cache(folder: Path) -> bool:
    """Whether a folder holds a cache of sequences, finished or begun, and not one of images."""
    marks = [folder / name for name in (HEADER, "plan.json") if (folder / name).is_file()]
    return any(FORMAT.encode() in mark.read_bytes()[:200] for mark in marks)


def shard_path(folder: Path, shard: int) -> Path:
    """Where the tokens of a shard are."""
    return folder / "shards" / f"{shard:05d}.safetensors"


def entries_path(folder: Path, shard: int) -> Path:
    """Where the entries of a shard's tokens are."""
    return folder / "shards" / f"{shard:05d}.entries.safetensors"


def head_path(folder: Path) -> Path:
    """Where the output layer is."""
    return folder / "head.safetensors"


def shard_of(counts: np.ndarray, tokens_per_shard: int) -> np.ndarray:
    """Returns the shard of every sequence ``[N]``, from the tokens that each has: a sequence is never divided.

    Example:
        >>> shard_of(np.array([3, 3, 3, 3]), 5).tolist()
        [0, 0, 1, 1]
    """
    before = np.cumsum(counts) - counts
    numbers = before // tokens_per_shard
    # Numbers without a gap, where one long sequence fills several shards.
    return np.unique(numbers, return_inverse=True)[1]
