"""Data sets by name, as a recipe asks for them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from limbeck.data.source import Source, datasets
from limbeck.data.subsets import hold_out, limit, preload
from limbeck.errors import DataError, RecipeError, suggest
from limbeck.hyperparameters import validated
from limbeck.registry import Entry

Split = Literal["train", "test", "validation"]
_GENERAL = ("limit", "validation", "preload")


def load_data(spec: str | Mapping[str, Any], *, split: Split = "train") -> Source:
    """Returns a split of a named data set.

    Args:
        spec: a name; ``name:path`` for those that lie in files, such as ``folder:pictures`` or ``hf:ylecun/mnist``; or
            a mapping of ``name`` with

            - ``limit``: at most that many training samples, balanced over classes; a mapping ``{train: 1000, test:
              200}`` limits other splits too;
            - ``validation``: part of the training data that is the split ``validation``, chosen by content;
            - ``preload``: decode once and keep in memory;
            - ``path`` and all else: options of the data set itself.
        split: ``train``, ``test`` or ``validation``.

    Raises:
        UnknownNameError: no data set has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range.
        DataError: the data is missing, empty or damaged; says where it was looked for.

    Example:
        >>> source = load_data({"name": "fashion-mnist-small", "limit": 100})
        >>> len(source), source.info.num_classes, source.labels().bincount().tolist()
        (100, 10, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    """
    if split not in ("train", "test", "validation"):
        raise RecipeError(f"unknown split '{split}'. {suggest(str(split), ('train', 'test', 'validation'))}")
    entry, options = _parse(spec)
    given = {key: options.pop(key, None) for key in _GENERAL}
    general = _general(**{key: value for key, value in given.items() if value is not None})
    source = _split(entry, split, general["validation"], options)
    count = _limit_of(general["limit"], split)
    if count is not None:
        source = limit(source, count)
    return preload(source) if general["preload"] else source


def _parse(spec: str | Mapping[str, Any]) -> tuple[Entry[Any], dict[str, Any]]:
    """Returns the data set's entry and all options."""
    options: dict[str, Any] = {"name": spec}
    if isinstance(spec, Mapping):
        options = {str(key): value for key, value in spec.items()}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"a data set is named by `name: ...`, but this says {spec!r}")
    name, colon, path = name.partition(":")
    if colon:
        if options.get("path"):
            raise RecipeError(
                f"the data set '{name}:{path}' has a path in its name and another one in `path`; give one of them"
            )
        options["path"] = path
    entry = datasets[name]
    parameters = inspect.signature(entry.part).parameters
    options = {key: value for key, value in options.items() if key != "path" or value is not None}
    for key in options:
        known = [*(p for p in parameters if p != "split"), *_GENERAL]
        if key not in known:
            raise RecipeError(f"data set '{name}': unknown option '{key}'. {suggest(key, known)}")
    missing = [k for k, p in parameters.items() if p.default is p.empty and k != "split" and k not in options]
    if missing:
        raise RecipeError(f"data set '{name}': '{missing[0]}' is missing; give it as `{missing[0]}: ...`")
    return entry, options


def _general_options(
    *, limit: int | dict[Split, int] | None = None, validation: float = 0.0, preload: bool = False
) -> dict[str, Any]:
    return {"limit": limit, "validation": validation, "preload": preload}


_general = validated("data", _general_options)


def _limit_of(given: int | Mapping[str, int] | None, split: str) -> int | None:
    if isinstance(given, Mapping):
        return given.get(split)
    return given if split == "train" else None


def _split(entry: Entry[Any], split: Split, validation: float, options: dict[str, Any]) -> Source:
    """Loads a split, holding out validation samples where that is asked for."""
    if validation:
        if split == "test":
            return entry.part(split="test", **options)
        return hold_out(entry.part(split="train", **options), validation, "held" if split == "validation" else "rest")
    if split == "validation" and not entry.about.get("validation"):
        raise DataError(f"the data set '{entry.name}' has no validation split; hold one out with `validation: 0.1`")
    return entry.part(split=split, **options)
