"""What a cache says of itself: for whom, from whom and of what it was written, and a checksum of every part."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.errors import CacheError

H = TypeVar("H", bound=BaseModel)

FORMAT: Final = "limbeck-cache"
VERSION: Final = 1

HEADER = "cache.json"
"""The header of a finished cache."""
PLAN = "plan.json"
"""The header of a cache that is being written; it goes when the cache is finished."""

UNSIGNED = "0" * 32
"""Checksum of a header that has none yet."""
Checksum = Annotated[str, Field(pattern=re.compile(r"\A[0-9a-f]{32}\Z"))]
_Positive = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A part of a header: every field is known and of its type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(Part):
    """A file and how to know that it is whole."""

    rows: _Positive = Field(description="rows in the file")
    size: _Positive = Field(description="bytes of the file")
    checksum: Checksum = Field(description="128-bit BLAKE2b of the file's head and of its CRC-32 a block of rows")


class Header(Part):
    """The header of a cache.

    The field order is the order in the file. A finished cache has an entry in ``shards`` for every shard, in the
    order of views and rows.
    """

    format: Literal["limbeck-cache"] = FORMAT
    version: Literal[1] = VERSION
    limbeck: str = Field(description="version that wrote the cache")
    teacher: str = Field(description="fingerprint of the teacher")
    data: str = Field(description="fingerprint of the data set")
    preprocessing: str = Field(description="fingerprint of what makes inputs of samples, augmentation excepted")
    seed: int = Field(description="seed of the augmentation")
    samples: _Positive = Field(description="samples in the data set")
    classes: _Positive = Field(description="classes")
    codec: dict[str, Any] = Field(description="name and parameters of the codec")
    extras: dict[str, list[list[int]]] = Field(description="further signals, and the shapes of their tensors")
    extras_dtype: Literal["float32", "float16"] = Field(description="type of the further signals")
    further_views: list[str] = Field(description="further views of each sample, stored beside the default one")
    role: str = Field(description="role whose inputs the teacher saw")
    batch_size: _Positive = Field(description="batch size at which the teacher ran")
    rows_per_shard: _Positive
    rows_per_block: _Positive
    views: list[str] = Field(min_length=1, description="augmentation key of each view, in the order of epochs from 0")
    keys: FileEntry = Field(description="file of sample keys, in the order of rows")
    shards: list[FileEntry] = Field(description="files of rows")
    checksum: str = Field(default=UNSIGNED, description="128-bit BLAKE2b of this file with zeros here")

    @property
    def shards_per_view(self) -> int:
        """Number of shards that hold one view."""
        return -(-self.samples // self.rows_per_shard)

    def shard_rows(self, shard: int) -> int:
        """Rows in shard ``shard`` of a view."""
        return min(self.rows_per_shard, self.samples - shard * self.rows_per_shard)

    def to_bytes(self) -> bytes:
        """Returns the header as JSON, with its own checksum."""
        return sealed(self)


def sealed(header: BaseModel) -> bytes:
    """Returns a header with a field ``checksum`` as JSON, with its own checksum."""
    fields = {**header.model_dump(), "checksum": UNSIGNED}
    text = (json.dumps(fields, indent=1) + "\n").encode()
    return text.replace(UNSIGNED.encode(), _digest(text).encode())


def keys_path(folder: Path) -> Path:
    """Where the sample keys are."""
    return folder / "keys.safetensors"


def shard_path(folder: Path, view: int, shard: int) -> Path:
    """Where the rows of a shard are. Paths follow from numbers, so a header cannot name a file outside its folder."""
    return folder / f"view-{view:04d}" / f"{shard:05d}.safetensors"


def read_header(folder: Path, name: str = HEADER) -> Header:
    """Reads and checks a header.

    Raises:
        CacheError: there is none, it is corrupt, of another version or not one of ours; the message says which.
    """
    return read_sealed(folder, name, Header, FORMAT, VERSION)


def read_sealed(folder: Path, name: str, model: type[H], form: str, version: int) -> H:
    """Reads a header that :func:`sealed` wrote.

    Args:
        folder: the cache.
        name: file of the header.
        model: what it must be.
        form: its ``format``.
        version: its ``version``.

    Raises:
        CacheError: there is none, it is corrupt, of another version or not one of ours; the message says which.
    """
    path = folder / name
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise _absent(folder) from None
    except OSError as error:
        raise CacheError(f"the cache header '{path}' cannot be read: {error.strerror}") from None
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise CacheError(f"'{path}' is not a cache header, or it is corrupt; {_AGAIN}") from None
    if not isinstance(fields, dict) or fields.get("format") != form:
        raise CacheError(f"'{path}' is not the header of a teacher cache; give the folder that `limbeck cache` wrote")
    _check_checksum(path, raw, fields.get("checksum"))
    if fields.get("version") != version:
        found = fields.get("version")
        raise CacheError(f"the cache '{folder}' has format {found}, but this limbeck reads format {version}; {_AGAIN}")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CacheError(f"the cache header '{path}' is malformed at '{where}': {first['msg']}; {_AGAIN}") from None


_AGAIN = "delete the folder and write the cache again"


def _check_checksum(path: Path, raw: bytes, checksum: Any) -> None:
    known = isinstance(checksum, str) and re.fullmatch(r"[0-9a-f]{32}", checksum)
    if not known or _digest(raw.replace(checksum.encode(), UNSIGNED.encode())) != checksum:
        raise CacheError(f"the cache header '{path}' is corrupt: its checksum does not match; {_AGAIN}")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _absent(folder: Path) -> CacheError:
    if not folder.is_dir():
        return CacheError(f"there is no cache at '{folder}'; write one with `limbeck cache`, or correct the path")
    if (folder / PLAN).exists():
        return CacheError(f"the cache '{folder}' is unfinished; run the command that writes it again, and it continues")
    return CacheError(f"'{folder}' is no teacher cache: it has no {HEADER}; give the folder that `limbeck cache` wrote")
