"""The data of a stage: splits, parts kept out, labels left, loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.data.load import Split, load_data
from limbeck.data.loader import Loader
from limbeck.data.partly_labelled import keep_labels, labelled_only, labels_of_only
from limbeck.data.relabelled import noisy_labels
from limbeck.data.source import Source
from limbeck.data.subsets import hold_out, long_tailed, subset
from limbeck.engine import distributed
from limbeck.errors import RecipeError
from limbeck.recipes.schema import DataSpec, StageSpec

if TYPE_CHECKING:
    from limbeck.recipes.writing_forecast import WritingForecast


@dataclass(frozen=True)
class StageData:
    """The data of a stage.

    Attributes:
        train: training samples.
        held: samples on which the student is judged: the test split, or the validation part where the recipe holds one
            out.
        split: what ``held`` is, ``test`` or ``validation``.
        loader: training batches.
        held_loader: unaugmented batches of ``held``.
        holdout_loader: unaugmented batches of what the recipe keeps out of training; None where it keeps nothing.
        tokenizers: of roles that read text in other tokens than the data's.
        to_write: what it takes to have the training text written of which ``train`` is a trial; None where it is there.
    """

    train: Source
    held: Source
    split: str
    loader: Loader
    held_loader: Loader
    holdout_loader: Loader | None = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict)
    to_write: WritingForecast | None = None


def held_split(spec: DataSpec) -> Split:
    """Returns what the student is judged on: the validation part where the recipe holds one out, else the test data."""
    return "validation" if spec.validation else "test"


def load_split(spec: DataSpec, split: Split) -> Source:
    """Returns one split of a recipe's data.

    Raises:
        LimbeckError: the data is unknown, missing or damaged.
    """
    given = {"path": spec.path, "limit": spec.limit, "validation": spec.validation or None}
    return load_data(
        {"name": spec.name, **spec.options, **{k: v for k, v in given.items() if v is not None}}, split=split
    )


def build_data(
    spec: DataSpec,
    stage: StageSpec,
    seed: int,
    *,
    view_seed: int | None = None,
    view_epochs: int | None = None,
    view_names: Sequence[str] = (),
    shuffle: bool = True,
) -> StageData:
    """Returns the data of a stage.

    Args:
        spec: which data.
        stage: its batch size, workers and the views that its method needs.
        seed: seed of the order of samples.
        view_seed: seed of the augmentation, that of a cache for example; ``seed`` when None.
        view_epochs: number of epochs after which augmented views repeat, that of a cache; never when None.
        view_names: further views that the method needs; one that the recipe does not define is made by RandAugment.
        shuffle: whether training samples come in random order.
    """
    split = held_split(spec)
    train, held = load_split(spec, "train"), load_split(spec, split)
    train_settings = stage.train
    usual = train.info.augment if spec.augment is None else spec.augment
    # The literature's second view of a sample is the usual augmentation followed by RandAugment.
    views = {**{name: (*usual, {"name": "randaugment"}) for name in view_names}, **spec.views}
    common: dict[str, Any] = {"normalize": spec.normalize, "workers": train_settings.workers}
    ranks: dict[str, Any] = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    apart = None
    check_holdout(spec)
    if spec.holdout:
        kept_out = hold_out(train, spec.holdout, "held", purpose="holdout")
        train = kept_out if spec.train_on == "holdout" else hold_out(train, spec.holdout, "rest", purpose="holdout")
        size = min(train_settings.batch_size, len(kept_out))
        apart = Loader(kept_out, (), batch_size=size, seed=seed, normalize=spec.normalize, **ranks)
    if spec.imbalance > 1:
        train = long_tailed(train, spec.imbalance)
    if spec.label_noise:
        train = noisy_labels(train, spec.label_noise)
    if spec.labelled is not None:
        train = keep_labels(train, spec.labelled)
    train = _asked_about(train, spec)
    if spec.unlabelled == "drop":
        train = labelled_only(train)
    loader = Loader(
        train, usual, batch_size=train_settings.batch_size, seed=seed, shuffle=shuffle,
        labelled_per_batch=spec.labelled_per_batch if shuffle else None,
        views=views, view_seed=view_seed, view_epochs=view_epochs,
        **ranks, **common,
    )  # fmt: skip
    held_loader = Loader(held, (), batch_size=max(256, train_settings.batch_size), seed=seed, shuffle=False, **common)
    return StageData(train, held, split, loader, held_loader, apart)


def check_holdout(spec: DataSpec) -> None:
    """Refuses to train on what is kept out where nothing is.

    Raises:
        RecipeError: says what is missing.
    """
    if spec.train_on == "holdout" and not spec.holdout:
        raise RecipeError("data.train_on: holdout needs a part of the data that is kept out, `data: {holdout: 0.1}`")


def _asked_about(source: Source, spec: DataSpec) -> Source:
    """Returns the samples that a recipe names by number, with the labels that it leaves them.

    Raises:
        RecipeError: there is no sample of that number.
    """
    for key in ("label_ids", "use_ids"):
        numbers = getattr(spec, key) or ()
        if max(numbers, default=0) >= len(source):
            raise RecipeError(f"data.{key} names sample {max(numbers)}, but there are {len(source)}, from 0 on")
    if spec.label_ids is not None:
        source = labels_of_only(source, np.asarray(spec.label_ids, dtype=np.int64))
    return source if spec.use_ids is None else subset(source, np.asarray(spec.use_ids, dtype=np.int64))


def cached_views(folder: str) -> dict[str, Any]:
    """Returns the seed and the number of views of a cache, which the loader must replay."""
    from limbeck.teachers.cache import read_header

    header = read_header(Path(folder))
    return {"view_seed": header.seed, "view_epochs": len(header.views)}
