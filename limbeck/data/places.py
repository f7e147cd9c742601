"""Where data lies on this machine, and how it is fetched when that is allowed."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import DataError

_CHUNK = 1 << 18


def cache_folder() -> Path:
    """Returns the folder for downloaded data: ``$LIMBECK_DATA``, or ``~/.cache/limbeck``."""
    named = os.environ.get("LIMBECK_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "limbeck"


def hub_cache() -> Path:
    """Returns the folder of the Hugging Face hub's cache, by the hub's own environment variables."""
    for variable, below in (("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser() / below
    return Path.home() / ".cache" / "huggingface" / "hub"


def hub_parquet(repositories: Iterable[str], split: str) -> list[Path]:
    """Returns the parquet files of a split of the first of these data sets that the hub's cache holds, or nothing."""
    for repository in repositories:
        snapshots = hub_cache() / f"datasets--{repository.replace('/', '--')}" / "snapshots"
        for snapshot in sorted(snapshots.glob("*"), key=lambda p: p.stat().st_mtime, reverse=True):
            files = sorted(snapshot.rglob(f"{split}-*.parquet"))
            if files and files[0].stem.endswith(f"-of-{len(files):05d}"):
                return files
    return []


def not_found(name: str, places: Iterable[Any], fix: str) -> DataError:
    """Returns the error of a data set that is in none of ``places``."""
    return DataError(
        f"the data set '{name}' is not on this machine; looked in {', '.join(str(p) for p in places)}. {fix}"
    )


@dataclass(frozen=True)
class Download:
    """A file that its publisher offers, and the checksum he states.

    Attributes:
        url: where it is.
        file: its name in the cache folder.
        md5: the published MD5, which guards against damage.
    """

    url: str
    file: str
    md5: str

    def fetch(self, folder: Path) -> Path:
        """Downloads the file into ``folder`` with a progress bar, unless it is there.

        Nothing incomplete is ever left under its name.

        Raises:
            DataError: there is no connection, no space, or the checksum differs.
        """
        target = folder / self.file
        if target.exists():
            return target
        part: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=self.file, suffix=".part", delete=False) as file:
                part = Path(file.name)
                self._fill(file)
            os.replace(part, target)
        except OSError as error:
            raise DataError(f"cannot download {self.url} to {folder}: {error}") from error
        finally:
            if part is not None:
                part.unlink(missing_ok=True)
        return target

    def _fill(self, part: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        digest = hashlib.md5(usedforsecurity=False)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with (
            urllib.request.urlopen(self.url, timeout=60) as response,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            length = response.headers.get("Content-Length")
            task = progress.add_task(self.file, total=int(length) if length else None)
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                part.write(chunk)
                progress.advance(task, len(chunk))
        if digest.hexdigest() != self.md5:
            raise DataError(
                f"{self.url} has the MD5 {digest.hexdigest()}, but its publisher states {self.md5}; the file was "
                "discarded"
            )
