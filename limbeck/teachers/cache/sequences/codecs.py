"""How a next-token distribution is stored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.errors import CacheError, RecipeError
from limbeck.hyperparameters import Count, Positive, WholeNumber
from limbeck.registry import Registry
from limbeck.signals import Head, Hidden, Sampled, Signals, TopK
from limbeck.teachers.cache.codecs.base import Column, build_codec, codec, narrowed
from limbeck.teachers.cache.codecs.gaps import pack_counts, unpack_counts
from limbeck.teachers.cache.codecs.topk import TopKCodec

_ROWS = 128
_MOST_DRAWS = 127
_MOST_BYTES = 255


class Rows:
    """Columns of tokens, and of entries where tokens have different numbers of them.

    Attributes:
        tokens: ``[M, ...]`` columns, one row a token.
        entries: ``[sum of counts, ...]`` columns, in the order of tokens; empty where every token has as many.
        counts: ``[M]`` entries of each token; None likewise.
    """

    def __init__(
        self,
        tokens: Mapping[str, np.ndarray],
        entries: Mapping[str, np.ndarray] | None = None,
        counts: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.entries, self.counts = dict(tokens), dict(entries or {}), counts


class SequenceCodec(Protocol):
    """Turns next-token distributions into columns of numbers and back.

    Attributes:
        reads: the signal that is stored, ``logits`` or ``hidden``.
        revision: number of the way of packing, which grows where the bytes change that the same parameters give.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["logits", "hidden"]]
    revision: ClassVar[int] = 1

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments from which the same codec is made."""

    def columns(self, classes: int, width: int) -> dict[str, Column]:
        """Returns what a token stores, for a vocabulary of ``classes`` and hidden states of ``width``."""

    def entry_columns(self, classes: int) -> dict[str, Column]:
        """Returns what an entry stores, where tokens have different numbers of them; else nothing."""

    def encode(self, values: Tensor, keys: np.ndarray) -> Rows:
        """Returns the columns of ``[M, V]`` logits or ``[M, D]`` hidden states.

        Args:
            values: what is stored.
            keys: ``[M]`` uint64 what tells the tokens apart, for streams of random numbers.
        """

    def decode(self, rows: Rows, classes: int, head: Head | None) -> Signals:
        """Returns the float32 signals of ``[M, ...]`` columns."""


sequence_codecs: Registry[Callable[..., SequenceCodec]] = Registry(
    "codec for sequences", "limbeck.teachers.cache.sequences"
)


_codec = functools.partial(codec, registry=sequence_codecs)


def build_sequence_codec(spec: str | Mapping[str, Any] | SequenceCodec) -> SequenceCodec:
    """Returns the codec that a recipe names: ``topk``, or ``{name: topk, k: 50}``.

    Raises:
        UnknownNameError: no codec has that name.
        RecipeError: a parameter is unknown or out of range.

    Example:
        >>> build_sequence_codec({"name": "sampled", "draws": 50}).parameters
        {'draws': 50, 'seed': 0, 'temperature': 1.0, 'independent': False}
    """
    return cast(SequenceCodec, build_codec(spec, sequence_codecs))


def revision_of(codec: SequenceCodec) -> int:
    """Returns the codec's way of packing; a codec that says nothing has had one only."""
    return getattr(codec, "revision", 1)


class _Numbers:
    """What codecs share that store a vector of floating-point numbers for every token."""

    def __init__(self, *, dtype: Literal["float32", "float16"] = "float16") -> None:
        self.dtype = dtype

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dtype": self.dtype}

    def entry_columns(self, classes: int) -> dict[str, Column]:
        """Nothing: every token has as many numbers."""
        return {}

    def _narrow(self, values: Tensor, what: str) -> np.ndarray:
        return narrowed(values.float().cpu().numpy(), self.dtype, what)


@_codec("topk", title="The k most likely tokens, the exact mass of the rest and the logsumexp of all logits")
class TopKTokens:
    """Stores the ``k`` largest log-probabilities, the log-mass of all other tokens, and the logsumexp of the logits.

    A token takes ``2 k + ceil(k bits / 8) + 2 + 4`` bytes, where ``bits`` are what the vocabulary needs.

    Args:
        k: tokens kept.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["logits", "hidden"]] = "logits"

    def __init__(self, *, k: Count = 32) -> None:
        self.k = k
        self._distribution = TopKCodec(k=k)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"k": self.k}

    def columns(self, classes: int, width: int) -> dict[str, Column]:
        """Those of the distribution, and ``logsumexp``."""
        return {**self._distribution.columns(classes), "logsumexp": Column("float32")}

    def entry_columns(self, classes: int) -> dict[str, Column]:
        """Nothing: every token has ``k`` entries."""
        return {}

    def encode(self, values: Tensor, keys: np.ndarray) -> Rows:
        """Returns the columns of ``[M, V]`` logits."""
        parts = [self._distribution.encode(part) for part in values.split(_ROWS)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        columns["logsumexp"] = values.float().logsumexp(-1).cpu().numpy()
        return Rows(columns)

    def decode(self, rows: Rows, classes: int, head: Head | None) -> Signals:
        """Returns ``topk``, normalised to a total of one."""
        columns = {name: array for name, array in rows.tokens.items() if name != "logsumexp"}
        found = self._distribution.sparse(columns, classes)
        lse = torch.from_numpy(rows.tokens["logsumexp"]).float()
        return Signals(topk=TopK(found.logprobs, found.indices, found.tail, classes, lse))


@_codec("full", title="All logits, in full or half precision")
class FullTokens(_Numbers):
    """Stores every logit: ``4 V`` bytes a token, or ``2 V``; for small vocabularies and for tests.

    Args:
        dtype: ``float32`` or ``float16``.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["logits", "hidden"]] = "logits"

    def __init__(self, *, dtype: Literal["float32", "float16"] = "float16") -> None:
        super().__init__(dtype=dtype)

    def columns(self, classes: int, width: int) -> dict[str, Column]:
        """One column of logits."""
        return {"logits": Column(self.dtype, (classes,))}

    def encode(self, values: Tensor, keys: np.ndarray) -> Rows:
        """Returns the logits in the codec's type."""
        return Rows({"logits": self._narrow(values, "logits")})

    def decode(self, rows: Rows, classes: int, head: Head | None) -> Signals:
        """Returns ``logits``."""
        return Signals(logits=torch.from_numpy(rows.tokens["logits"]).float())


@_codec("hidden", title="Final hidden states, with the output layer stored once")
class HiddenTokens(_Numbers):
    """Stores the final hidden state of every token, from which the stored output layer makes the whole distribution.

    Exact to the rounding of the states, at ``2 D`` bytes a token: the choice where ``D`` is small, or where divergences
    other than forward KL need the tail.

    Args:
        dtype: ``float32`` or ``float16``.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["logits", "hidden"]] = "hidden"

    def __init__(self, *, dtype: Literal["float32", "float16"] = "float16") -> None:
        super().__init__(dtype=dtype)

    def columns(self, classes: int, width: int) -> dict[str, Column]:
        """One column of states."""
        return {"states": Column(self.dtype, (width,))}

    def encode(self, values: Tensor, keys: np.ndarray) -> Rows:
        """Returns the states in the codec's type."""
        return Rows({"states": self._narrow(values, "hidden states")})

    def decode(self, rows: Rows, classes: int, head: Head | None) -> Signals:
        """Returns ``hidden``: the states with the stored output layer."""
        if head is None:
            raise CacheError("the cache's output layer is missing; write the cache again")
        return Signals(hidden=Hidden(torch.from_numpy(rows.tokens["states"]).float(), head))


@_codec("sampled", title="Tokens drawn from the distribution, with how often: random-sampling KD")
class SampledTokens:
    r"""Stores ``draws`` tokens drawn with replacement from :math:`p^{1/T}`, as distinct ids with counts.

    Counts over ``draws`` are a target whose expectation is the teacher's distribution, so the gradient of the
    cross-entropy with it is an unbiased estimate of that of full distillation, tail included, which no top-k is. Ids
    take the bits of the gaps between them, and a count of one a single bit (see
    :mod:`limbeck.teachers.cache.codecs.gaps`); `benchmarks/sampled_gradient.py` prints what that makes on prose.

    Draws come from a stream keyed by (seed, sequence, position), so a cache is the same however often its writing was
    interrupted.

    Args:
        draws: tokens drawn.
        seed: seed of the draws.
        temperature: divides the logits before they are drawn from; the target is that distribution.
        independent: draw each token by itself, as published with 50 draws; false draws them by one random shift of a
            regular comb (systematic sampling), which is unbiased too and varies less: 40 such draws give a gradient
            nearer to that of the whole distribution than 50 independent ones, in fewer bytes.

    Reference:
        Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, 2025,
        https://arxiv.org/abs/2503.16870
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["logits", "hidden"]] = "logits"
    revision: ClassVar[int] = 2

    def __init__(
        self, *, draws: Count = 40, seed: WholeNumber = 0, temperature: Positive = 1.0, independent: bool = False
    ) -> None:
        if draws > _MOST_DRAWS:
            raise RecipeError(f"codec 'sampled': draws = {draws}: give at most {_MOST_DRAWS}")
        self.draws, self.seed, self.temperature, self.independent = draws, seed, temperature, independent

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "draws": self.draws, "seed": self.seed, "temperature": self.temperature, "independent": self.independent,
        }  # fmt: skip

    def columns(self, classes: int, width: int) -> dict[str, Column]:
        """How many bytes the token's draws take."""
        return {"count": Column("uint8")}

    def entry_columns(self, classes: int) -> dict[str, Column]:
        """A byte of the draws."""
        return {"entry": Column("uint8")}

    def encode(self, values: Tensor, keys: np.ndarray) -> Rows:
        """Returns what was drawn from ``[M, V]`` logits."""
        parts = [
            pack_counts(*_counted(self._draw(values[start : start + _ROWS], keys[start : start + _ROWS])))
            for start in range(0, len(values), _ROWS)
        ]
        packed, lengths = (np.concatenate(arrays) for arrays in zip(*parts))
        if lengths.max(initial=0) > _MOST_BYTES:
            raise CacheError(
                f"the draws of a token take {lengths.max()} bytes, but at most {_MOST_BYTES} can be told; lower draws"
            )
        return Rows({"count": lengths.astype(np.uint8)}, {"entry": packed}, lengths)

    def _draw(self, logits: Tensor, keys: np.ndarray) -> np.ndarray:
        """Returns ``[M, draws]`` classes by inverting the cumulative distribution."""
        p = (logits.double() / self.temperature).softmax(-1)
        cumulative = p.cumsum(-1)
        count = 1 if not self.independent else self.draws
        uniform = streams.uniform(self.seed, "sampled tokens", 0, keys, count)
        if not self.independent:
            uniform = (np.arange(self.draws) + uniform) / self.draws
        # Scaled by the last sum, which rounding moves off one: no draw lies beyond the last token with mass.
        places = torch.from_numpy(uniform).to(cumulative.device) * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, places, right=True).clamp(max=logits.shape[-1] - 1)
        return found.cpu().numpy()

    def decode(self, rows: Rows, classes: int, head: Head | None) -> Signals:
        """Returns ``sampled``, as wide as the fullest token needs."""
        assert rows.counts is not None
        try:
            ids, often, distinct = unpack_counts(rows.entries["entry"], rows.counts, self.draws)
        except ValueError as error:
            raise CacheError(f"cached draws cannot be read: {error}; write the cache again") from None
        if int(ids.max()) >= classes:
            raise CacheError(f"a cached row names token {int(ids.max())} of only {classes}; write the cache again")
        width = int(distinct.max())
        indices = np.zeros((len(distinct), width), np.int64)
        weights = np.zeros((len(distinct), width), np.float32)
        place = np.arange(width)[None, :] < distinct[:, None]
        indices[place], weights[place] = ids, often / self.draws
        return Signals(sampled=Sampled(torch.from_numpy(indices), torch.from_numpy(weights), classes))


def _counted(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct classes of ``[M, draws]`` draws, how often each was drawn, and how many each row has."""
    ordered = np.sort(drawn, axis=1)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.flatnonzero(new)
    return ordered[new], np.diff(starts, append=ordered.size), new.sum(1)
