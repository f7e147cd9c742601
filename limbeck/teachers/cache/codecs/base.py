"""The contract of a codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from limbeck.errors import CacheError, RecipeError
from limbeck.hyperparameters import validated
from limbeck.registry import Registry
from limbeck.signals import Signals


@dataclass(frozen=True)
class Column:
    """What a row stores under one name.

    Attributes:
        dtype: numpy's name of the element type.
        shape: shape of one row's entry; empty for a number.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes a row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


class Codec(Protocol):
    """Turns logits into columns of numbers and back. A codec has no state beyond its parameters."""

    name: ClassVar[str]

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments from which :func:`build_codec` makes the same codec."""

    def columns(self, classes: int) -> dict[str, Column]:
        """Returns what a row stores of a distribution over ``classes``.

        Raises:
            RecipeError: the codec cannot store so many classes.
        """

    def encode(self, logits: Tensor) -> dict[str, np.ndarray]:
        """Returns the columns of ``[B, C]`` logits, in which no number is NaN or +inf.

        Raises:
            CacheError: a number does not fit the type it would be stored in.
        """

    def decode(self, columns: Mapping[str, np.ndarray], classes: int) -> Signals:
        """Returns float32 signals of ``[B, ...]`` columns."""


codecs: Registry[Callable[..., Codec]] = Registry("codec", "limbeck.teachers.cache.codecs")


def codec(name: str, registry: Registry[Any] = codecs, **about: Any) -> Callable[[type[Any]], type[Any]]:
    """Returns a decorator that registers a codec and checks its parameters at construction."""
    enter = registry.register(name, **about)

    def decorate(cls: type[Any]) -> type[Any]:
        cls.name = name
        cls.__init__ = validated(f"codec '{name}'", cls.__init__)
        return enter(cls)

    return decorate


def build_codec(spec: str | Mapping[str, Any] | Any, registry: Registry[Any] = codecs) -> Any:
    """Returns the codec that a recipe names: ``topk``, or ``{name: topk, k: 10}``; a codec is returned as it is.

    Args:
        spec: what the recipe says.
        registry: codecs of images, or those of sequences.

    Raises:
        UnknownNameError: no codec has that name.
        RecipeError: a parameter is unknown, missing or out of range.

    Example:
        >>> build_codec({"name": "topk", "k": 10}).parameters
        {'k': 10}
    """
    if isinstance(spec, str):
        return registry[spec].part()
    if not isinstance(spec, Mapping):
        return spec
    parameters = dict(spec)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"a codec needs a name, but got {dict(spec)}")
    return registry[name].part(**parameters)


def narrowed(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Returns ``values`` in a narrower floating-point type.

    Raises:
        CacheError: a finite number is too large for it.
    """
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    if np.any(np.isinf(narrow) & ~np.isinf(values)):
        largest = float(np.abs(values[np.isfinite(values)]).max())
        limit = np.finfo(dtype).max
        raise CacheError(f"{what} as large as {largest:.4g} do not fit {dtype} (up to {limit}); store float32")
    return narrow
