"""Reads what runs left in their folders; whatever is absent or unreadable is told in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import CheckpointError, RunFolderError
from limbeck.evaluate.predictions import Predictions

_FILES = ("results.json", "metrics.jsonl", "recipe.yaml")


@dataclass(frozen=True)
class RunRecord:
    """A run folder's content.

    Attributes:
        folder: where it is.
        results: what the evaluations said; empty before the run's end.
        history: one record an epoch, oldest first.
        recipe: the resolved recipe; empty where it is absent.
        environment: machine and versions; empty where absent.
        card: what ``student.json`` says of the student; empty where absent.
        predictions: logits on the test data, where they were kept.
        missing: what is not there and why, in words.
    """

    folder: Path
    results: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    card: Mapping[str, Any]
    predictions: Predictions | None
    missing: tuple[str, ...]

    @property
    def stage(self) -> Mapping[str, Any]:
        """The recipe's last stage; empty where there is none."""
        stages = self.recipe.get("stages")
        last = stages[-1] if isinstance(stages, list) and stages else self.recipe
        return last if isinstance(last, Mapping) else {}

    @property
    def method(self) -> str:
        """Name of the method."""
        spec = self.stage.get("method", "")
        named = spec.get("name", "") if isinstance(spec, Mapping) else spec
        return str(self.results.get("method") or named or self.folder.name)

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.results.get("seed", self.recipe.get("seed", 0)))

    def model(self, role: str) -> str:
        """Name of a role's model; empty where it is not told."""
        roles = self.stage.get("roles")
        spec = roles.get(role) if isinstance(roles, Mapping) else None
        model = spec.get("model", "") if isinstance(spec, Mapping) else spec or ""
        return str(model.get("name", "")) if isinstance(model, Mapping) else str(model)


def read_run(folder: str | Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        RunFolderError: there is no such folder, or nothing in it comes from a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"there is no run folder '{folder}'")
    if not any((folder / name).exists() for name in _FILES):
        raise RunFolderError(f"'{folder}' is not a run folder: it holds none of {', '.join(_FILES)}")
    missing: list[str] = []
    return RunRecord(
        folder=folder,
        results=_mapping(folder / "results.json", "the results", missing),
        history=_history(folder / "metrics.jsonl", missing),
        recipe=_mapping(folder / "recipe.yaml", "the recipe", missing),
        environment=_mapping(folder / "environment.json", "the machine", missing),
        card=_mapping(folder / "student.json", "the student's card", missing),
        predictions=_predictions(folder / "predictions.safetensors", missing),
        missing=tuple(missing),
    )


def _read(path: Path, what: str, missing: list[str]) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        missing.append(f"{what}: {path.name} is not in {path.parent}")
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{what}: {path.name} in {path.parent} cannot be read ({error})")
    return None


def _mapping(path: Path, what: str, missing: list[str]) -> Mapping[str, Any]:
    text = _read(path, what, missing)
    if text is None:
        return {}
    try:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if isinstance(value, Mapping):
        return value
    missing.append(f"{what}: {path.name} in {path.parent} is damaged")
    return {}


def _history(path: Path, missing: list[str]) -> tuple[Mapping[str, Any], ...]:
    text = _read(path, "the course of training", missing)
    records, damaged = [], 0
    for line in (text or "").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, Mapping):
            records.append(record)
        else:
            damaged += 1
    if damaged:
        missing.append(f"the course of training: {damaged} lines of {path.name} in {path.parent} are damaged")
    return tuple(records)


def _predictions(path: Path, missing: list[str]) -> Predictions | None:
    if not path.exists():
        missing.append(f"the predictions: {path.name} is not in {path.parent}")
        return None
    try:
        return Predictions.load(path)
    except CheckpointError as error:
        missing.append(f"the predictions: {error}")
        return None
