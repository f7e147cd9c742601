"""Which signals a row of a cache holds, and in which columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import CacheError, NeedsError
from limbeck.signals import Signals
from limbeck.teachers.cache.codecs.base import Codec, Column, build_codec, narrowed
from limbeck.teachers.cache.header import Header

Shapes = dict[str, tuple[tuple[int, ...], ...]]
FloatType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Layout:
    """The columns of a row.

    Attributes:
        codec: how the logits are stored.
        classes: number of classes.
        extras: further signals (``embedding``, ``attentions``, ``features.<group>``) and the shapes of their tensors.
        extras_dtype: type in which they are stored.
        views: further views of each sample, each stored like the default one.
    """

    codec: Codec
    classes: int
    extras: Shapes
    extras_dtype: FloatType
    views: tuple[str, ...] = ()

    @classmethod
    def of(cls, signals: Signals, codec: Codec, extras: Sequence[str], extras_dtype: FloatType) -> Layout:
        """Returns the layout that stores what a teacher said about a batch.

        Raises:
            NeedsError: the teacher gives no logits, or lacks one of ``extras``.
            RecipeError: the codec cannot store so many classes.
        """
        if signals.logits is None:
            raise NeedsError("a teacher cache stores logits, but the teacher gives none")
        shapes: Shapes = {}
        for name in extras:
            tensors = _extra(signals, name)
            if not tensors:
                has = ", ".join(sorted(signals.present() - {"logits", "topk"})) or "nothing else"
                raise NeedsError(
                    f"the teacher gives no '{name}' to cache, but besides logits {has}; tap it, or leave it out"
                )
            shapes[name] = tuple(tuple(t.shape[1:]) for t in tensors)
        layout = cls(codec, signals.logits.shape[-1], shapes, extras_dtype, tuple(sorted(signals.views)))
        layout.columns()
        return layout

    @classmethod
    def from_header(cls, header: Header) -> Layout:
        """Returns the layout that a header describes.

        Raises:
            CacheError: the header names a codec that this version does not know.
        """
        try:
            codec = build_codec(header.codec)
            shapes = {name: tuple(tuple(s) for s in tensors) for name, tensors in header.extras.items()}
            layout = cls(codec, header.classes, shapes, header.extras_dtype, tuple(header.further_views))
            layout.columns()
        except ValueError as error:
            raise CacheError(f"the cache was written with a codec that this limbeck cannot read: {error}") from None
        return layout

    def columns(self) -> dict[str, Column]:
        """Columns of a row by name; those of a further view begin with ``<view>/``."""
        one = dict(self.codec.columns(self.classes))
        for name, shapes in self.extras.items():
            one.update({_column(name, n): Column(self.extras_dtype, shape) for n, shape in enumerate(shapes)})
        return {prefix + name: column for prefix in self._prefixes() for name, column in one.items()}

    def row_bytes(self) -> int:
        """Bytes that a row takes."""
        return sum(column.bytes for column in self.columns().values())

    def encode(self, signals: Signals) -> dict[str, np.ndarray]:
        """Returns the columns of a batch.

        Raises:
            CacheError: a signal is not finite, or does not fit the type it is stored in.
        """
        columns = self._encode(signals, "")
        for view in self.views:
            columns.update(self._encode(signals.views[view], f"{view}/"))
        return columns

    def _encode(self, signals: Signals, prefix: str) -> dict[str, np.ndarray]:
        assert signals.logits is not None
        # -inf is the logit of a class that is ruled out; NaN and +inf are errors.
        _refuse(torch.isnan(signals.logits) | (signals.logits == torch.inf), "logits")
        columns = {prefix + name: array for name, array in self.codec.encode(signals.logits).items()}
        for name in self.extras:
            for n, tensor in enumerate(_extra(signals, name)):
                _refuse(~torch.isfinite(tensor), name)
                values = tensor.float().cpu().numpy()
                columns[prefix + _column(name, n)] = narrowed(values, self.extras_dtype, f"values of '{name}'")
        return columns

    def decode(self, columns: Mapping[str, np.ndarray]) -> Signals:
        """Returns the float32 signals of a batch."""
        default, *further = (self._decode(columns, prefix) for prefix in self._prefixes())
        return replace(default, views=dict(zip(self.views, further))) if further else default

    def _decode(self, columns: Mapping[str, np.ndarray], prefix: str) -> Signals:
        own = {name.removeprefix(prefix): array for name, array in columns.items() if name.startswith(prefix)}
        signals = self.codec.decode(own, self.classes)
        features: dict[str, tuple[Tensor, ...]] = {}
        for name, shapes in self.extras.items():
            tensors = tuple(torch.from_numpy(own[_column(name, n)]).float() for n in range(len(shapes)))
            if name == "embedding":
                signals = replace(signals, embedding=tensors[0])
            elif name == "attentions":
                signals = replace(signals, attentions=tensors)
            else:
                features[name.removeprefix("features.")] = tensors
        return replace(signals, features=features)

    def _prefixes(self) -> tuple[str, ...]:
        return ("", *(f"{view}/" for view in self.views))


def _column(name: str, number: int) -> str:
    return f"{name}.{number}"


def _extra(signals: Signals, name: str) -> tuple[Tensor, ...]:
    """Returns the tensors of a signal other than logits; none where it is absent."""
    if name == "embedding":
        return () if signals.embedding is None else (signals.embedding,)
    if name == "attentions":
        return signals.attentions or ()
    return signals.features.get(name.removeprefix("features."), ()) if name.startswith("features.") else ()


def _refuse(wrong: Tensor, what: str) -> None:
    """Refuses a batch in which the teacher's output is not a number."""
    rows = wrong.flatten(1).any(-1).nonzero()[:, 0]
    if len(rows):
        raise NotFiniteError(what, int(rows[0]))


class NotFiniteError(CacheError):
    """A signal of the teacher is NaN or infinite."""

    def __init__(self, what: str, row: int) -> None:
        super().__init__(f"the teacher's {what} are NaN or infinite for row {row} of a batch")
        self.what = what
        self.row = row
