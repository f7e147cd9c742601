"""Spaces of students: a model of the zoo whose keywords are left open, each with the values it may take."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck import streams
from limbeck.errors import RecipeError, suggest
from limbeck.students.base import models

Genes = tuple[int, ...]
"""An architecture as the number of the option taken at each decision."""


@dataclass(frozen=True)
class Space:
    """All students that a model's open keywords can make.

    A decision is a keyword of the model's constructor, or an entry of a keyword that is a list (``depths.0``).

    Args:
        model: name of a model of the zoo.
        choices: options of each decision, by name.
        fixed: keywords, or entries of them, that are the same for all.

    Raises:
        UnknownNameError: the zoo has no such model.
        RecipeError: there is no decision, or one without two options.

    Example:
        >>> space = Space("small_cnn", {"width": (4, 8, 16)})
        >>> space.size, space.spec((2,))
        (3, {'name': 'small_cnn', 'width': 16})
    """

    model: str
    choices: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        models[self.model]
        if not self.choices:
            raise RecipeError(f"a space of '{self.model}' leaves nothing open; give choices such as {{width: [4, 8]}}")
        for name, options in self.choices.items():
            if isinstance(options, str) or not isinstance(options, Sequence) or len(options) < 2:
                raise RecipeError(f"the decision '{name}' needs a list of two or more options, not {options!r}")

    @property
    def size(self) -> int:
        """Number of architectures."""
        return math.prod(len(options) for options in self.choices.values())

    def __iter__(self) -> Iterator[Genes]:
        """All architectures, in a fixed order."""
        return itertools.product(*(range(len(options)) for options in self.choices.values()))

    def spec(self, genes: Genes) -> dict[str, Any]:
        """Returns the architecture as recipes write a model: its name and keywords."""
        taken = {name: options[gene] for (name, options), gene in zip(self.choices.items(), genes)}
        spec: dict[str, Any] = {"name": self.model}
        # Entries of a list in the order of their numbers, whether open or fixed.
        for name, value in sorted({**self.fixed, **taken}.items(), key=lambda item: _place(item[0])):
            keyword, dot, _ = name.partition(".")
            if dot:
                spec.setdefault(keyword, []).append(value)
            else:
                spec[keyword] = value
        return spec

    def text(self, genes: Genes) -> str:
        """Returns the open keywords and their values, compactly, for people and as a key."""
        spec = self.spec(genes)
        opened = dict.fromkeys(name.partition(".")[0] for name in self.choices)
        return " ".join(f"{name}={json.dumps(spec[name], separators=(',', ':'))}" for name in opened)

    def draw(self, seed: int, number: int) -> Genes:
        """Returns architecture ``number`` of a random sequence."""
        numbers = streams.uniform(seed, "search/draw", 0, np.asarray([number]), len(self.choices))[0]
        return tuple(int(u * len(options)) for u, options in zip(numbers, self.choices.values()))

    def mutate(self, genes: Genes, seed: int, number: int) -> Genes:
        """Returns ``genes`` with one decision changed to another option, by the random numbers of ``number``."""
        where, what = streams.uniform(seed, "search/mutate", 0, np.asarray([number]), 2)[0]
        place = int(where * len(genes))
        others = len(list(self.choices.values())[place]) - 1
        step = 1 + int(what * others)
        return (*genes[:place], (genes[place] + step) % (others + 1), *genes[place + 1 :])


def residual_space(*, depths: Sequence[int] = (1, 2, 3, 4, 5), widths: Sequence[int] = (4, 8, 12, 16, 24)) -> Space:
    """Returns three-stage residual networks of every depth and width of their first two stages.

    All use 3x3 kernels, so they differ in depth and width and not in kind. The last stage is as wide as that of
    ``resnet20`` to ``resnet110``, because a score compares classifiers, which must read vectors of one size.

    Args:
        depths: blocks a stage.
        widths: channels of the stem and the first stage; the second stage may have these and twice these.
    """
    return Space(
        "resnet_cifar",
        {
            **{f"depths.{stage}": tuple(depths) for stage in range(3)},
            "widths.0": tuple(widths),
            "widths.1": tuple(sorted({*widths, *(2 * w for w in widths)})),
        },
        {"widths.2": 64},
    )


def cell_space(*, cells: int = 1) -> Space:
    """Returns the 15,625 cells of NAS-Bench-201: five operations on six edges, with ``cells`` cells a stage."""
    from limbeck.students.cell_network import OPERATIONS

    return Space("cell_network", {f"operations.{edge}": OPERATIONS for edge in range(6)}, {"cells": cells})


SPACES: dict[str, Callable[[], Space]] = {"residual": residual_space, "cells": cell_space}
"""Spaces by name."""


def _place(name: str) -> tuple[str, int]:
    keyword, _, place = name.partition(".")
    if place and not place.isdigit():
        raise RecipeError(f"'{name}' should be a keyword, or a keyword and the number of an entry, such as depths.0")
    return keyword, int(place or 0)


def build_space(spec: str | Mapping[str, Any]) -> Space:
    """Returns a space: ``residual``, ``cells``, or a mapping of ``model``, ``choices`` and ``fixed``.

    Raises:
        UnknownNameError: no model has that name.
        RecipeError: no space has that name, a key is unknown or a decision has no options.

    Example:
        >>> build_space({"model": "mlp", "choices": {"hidden.0": [32, 64], "hidden.1": [16, 32]}}).size
        4
    """
    if isinstance(spec, str):
        if spec not in SPACES:
            raise RecipeError(f"unknown space '{spec}'. {suggest(spec, SPACES)}")
        return SPACES[spec]()
    known = ("model", "choices", "fixed")
    for key in spec:
        if key not in known:
            raise RecipeError(f"a space has no key '{key}'. {suggest(str(key), known)}")
    if "model" not in spec or not isinstance(spec.get("choices"), Mapping):
        raise RecipeError("a space names a model and its choices: {model: small_cnn, choices: {width: [4, 8, 16]}}")
    return Space(str(spec["model"]), dict(spec["choices"]), dict(spec.get("fixed", {})))
