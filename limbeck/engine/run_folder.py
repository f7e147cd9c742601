"""A run's folder: the resolved recipe, metrics, checkpoints, the student, the report.

::

    recipe.yaml         the resolved recipe; running it again gives the same run
    run.json            format and version
    environment.json    library versions, processor, threads
    metrics.jsonl       one line an epoch; the same bytes for an interrupted and an uninterrupted run
    rollouts.jsonl      a few completions an epoch, where models write; likewise
    timing.jsonl        how fast they write, which differs from run to run
    checkpoints/        the last good state of the running stage
    stages/             what finished stages left behind
    student.safetensors, student.json, results.json, predictions.safetensors
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from limbeck import __version__
from limbeck.engine import distributed
from limbeck.engine.checkpoint import disk_error, write_atomically
from limbeck.errors import RecipeError, RunFolderError

_FORMAT = 1
_SHOWN = 5


def _differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yields the dotted keys at which two recipes differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}, key=str):
            yield from _differences(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (ours, theirs) in enumerate(zip(one, other)):
            yield from _differences(ours, theirs, f"{where}.{number}" if where else str(number))
    elif one != other:
        yield where


class RunFolder:
    """A folder that one run owns.

    Args:
        path: the folder; made when absent.
        recipe: the resolved recipe. A folder that holds another one is refused.
        complete: gives a stored recipe the entries that have been added to recipes since it was written.

    Raises:
        RunFolderError: another process is writing there, or the folder belongs to another recipe or version.
    """

    def __init__(
        self, path: str | Path, recipe: dict[str, Any], complete: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 - held as long as the run
        except OSError as error:
            raise disk_error(error, self.path) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunFolderError(
                f"another process is running in '{self.path}'; wait for it, or choose another folder with --out"
            ) from None
        self._check(recipe, complete)
        write_atomically(self.path / "run.json", _json({"format": _FORMAT, "limbeck": __version__}))
        write_atomically(self.path / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False).encode())
        if not (self.path / "environment.json").exists():
            write_atomically(self.path / "environment.json", _json(environment()))

    @classmethod
    def open(
        cls, path: str | Path, recipe: dict[str, Any], complete: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> RunFolder | None:
        """Returns the folder in the first of several processes and None in the others; what it refuses, all refuse."""
        opened: list[RunFolder] = []
        distributed.on_first(lambda: opened.append(cls(path, recipe, complete)))
        return opened[0] if opened else None

    def _check(self, recipe: dict[str, Any], complete: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        marker, stored = self.path / "run.json", self.path / "recipe.yaml"
        if not marker.exists():
            strangers = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if strangers:
                raise RunFolderError(
                    f"'{self.path}' is not a run folder (it holds {strangers[0]}); choose another with --out"
                )
            return
        try:
            found = json.loads(marker.read_text())
        except ValueError:
            found = {}
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise RunFolderError(
                f"'{self.path}' was made by another version of limbeck; choose another folder with --out"
            )
        if stored.exists():
            before = yaml.safe_load(stored.read_text()) or {}
            try:
                before = complete(before)
            except RecipeError as error:
                raise RunFolderError(
                    f"'{self.path}' was made by another version of limbeck, whose recipe this one does not read "
                    f"({error}); choose another folder with --out"
                ) from None
            keys = list(_differences(before, recipe))
            if keys:
                more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                raise RunFolderError(
                    f"'{self.path}' holds a run of another recipe (they differ in: {', '.join(keys[:_SHOWN])}{more}); "
                    "choose another folder with --out"
                )

    @property
    def checkpoints(self) -> Path:
        """Where the running stage keeps its state."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run has its results."""
        return (self.path / "results.json").exists()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file atomically."""
        write_atomically(self.path / name, _json(value))

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of the run."""
        return json.loads((self.path / name).read_text())

    def log(self, name: str, record: dict[str, Any]) -> int:
        """Appends one line to ``name`` and returns the file's length in bytes."""
        try:
            with open(self.path / name, "ab") as file:
                file.write(json.dumps(record, sort_keys=True).encode() + b"\n")
                return file.tell()
        except OSError as error:
            raise disk_error(error, self.path / name) from None

    def length(self, name: str) -> int:
        """Length in bytes of a log, 0 when absent."""
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    def truncate(self, name: str, length: int) -> None:
        """Forgets lines of a log that were written after the checkpoint from which the run continues."""
        path = self.path / name
        if path.exists():
            os.truncate(path, length)

    def close(self) -> None:
        """Releases the folder."""
        self._lock.close()


def epoch_records(path: Path) -> list[dict[str, Any]]:
    """Returns the epochs that a run has logged, oldest first; none where it has logged nothing.

    Raises:
        RunFolderError: a line is damaged.
    """
    log = path / "metrics.jsonl"
    try:
        return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    except ValueError:
        raise RunFolderError(f"'{log}' has a damaged line; run the recipe again in another folder") from None


def environment() -> dict[str, Any]:
    """What the machine and the libraries are, without names, paths or secrets."""
    import torch

    versions = {}
    for package in ("torch", "numpy", "safetensors", "torchvision", "timm", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "limbeck": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions,
    }


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
