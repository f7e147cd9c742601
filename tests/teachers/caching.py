"""A small data set, a teacher for it, and caches of the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from teacher_models import Restless

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.data.source import Source
from limbeck.tasks.classification import Classification
from limbeck.teachers.cache import Header, write_cache
from limbeck.teachers.live import FrozenTeacher

SAMPLES, CLASSES, BATCH = 50, 5, 8
AUGMENT = ["flip", {"name": "crop", "padding": 1}]
GROUPS = {"stem": ["stem"], "pooled": ["head@in"]}


def images(samples: int = SAMPLES, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (samples, 3, 8, 8), dtype=torch.uint8, generator=generator)


def source_of(inputs: torch.Tensor | None = None) -> Source:
    inputs = images() if inputs is None else inputs
    return as_source((inputs, torch.arange(len(inputs)) % CLASSES), num_classes=CLASSES)


def loader_of(inputs: torch.Tensor | None = None, augment: Any = AUGMENT, **options: Any) -> Loader:
    settings = {"batch_size": BATCH, "seed": 11, "shuffle": False, **options}
    return Loader(source_of(inputs), augment, **settings)


def teacher_of(seed: int = 5, views: tuple[str, ...] = ()) -> FrozenTeacher:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Restless(CLASSES)
        model(torch.randn(32, 3, 8, 8))
    return FrozenTeacher("teacher", model, Classification(), GROUPS, views)


def cache_of(folder: Path, **options: Any) -> Header:
    settings: dict[str, Any] = {"epochs": 2, "codec": {"name": "topk", "k": 3}, "rows_per_shard": 16, **options}
    settings.setdefault("loader", loader_of())
    settings.setdefault("teacher", teacher_of())
    return write_cache(folder, **settings)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
