"""What travels in one step: the batch, what each role says about it, and the named terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Applies ``fn`` to every tensor in a nest of dicts and tuples."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (Signals, TopK)):
        return value.map(fn)
    if isinstance(value, Mapping):
        mapped = {k: _map(v, fn) for k, v in value.items()}
        return Batch(mapped) if isinstance(value, Batch) else mapped
    if isinstance(value, tuple):
        return tuple(_map(v, fn) for v in value)
    return value


class Batch(dict[str, Any]):
    """A mapping of tensors whose first dimension is the sample.

    Keys that limbeck itself reads:

    - ``inputs``: what every role sees unless it has an entry of its own, for images ``[B, C, H, W]``;
    - ``<role>_inputs`` (for example ``teacher_inputs``): what one role sees instead;
    - ``views``: a dict of further views of the same samples by name (for example ``strong``), each like ``inputs``;
    - ``labels``: ``[B]`` class indices;
    - ``index``: ``[B]`` stable sample ids, always there: memory banks, caches and sample weights need them;
    - ``mask``: which positions count, where a task has positions;
    - ``epoch``: a plain int, for streams of random numbers.
    """

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self["index"].shape[0])

    def inputs_for(self, role: str, view: str | None = None) -> Any:
        """Returns what ``role`` sees of ``view`` (the default view when None)."""
        if view is not None:
            return self["views"][view]
        return self.get(f"{role}_inputs", self["inputs"])

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Returns a batch with ``fn`` applied to every tensor."""
        return Batch((k, _map(v, fn)) for k, v in self.items())

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on ``device``."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def split(self, parts: int) -> Iterator[Batch]:
        """Yields ``parts`` micro-batches of nearly equal size, in order."""
        bounds = [self.size * i // parts for i in range(parts + 1)]
        for start, stop in pairwise(bounds):
            if stop > start:
                yield self.map(lambda t, a=start, b=stop: t[a:b])  # type: ignore[misc]


@dataclass(frozen=True)
class TopK:
    """The ``k`` largest log-probabilities of a distribution over ``classes``, and the exact mass of the rest.

    Attributes:
        logprobs: ``[B, k]`` natural log-probabilities at temperature 1, in decreasing order.
        indices: ``[B, k]`` int64 class indices.
        tail: ``[B]`` log of the summed probability of all other classes (``-inf`` where ``k == classes``).
        classes: number of classes.
    """

    logprobs: Tensor
    indices: Tensor
    tail: Tensor
    classes: int

    def map(self, fn: Callable[[Tensor], Tensor]) -> TopK:
        """Returns a record with ``fn`` applied to every tensor."""
        return TopK(fn(self.logprobs), fn(self.indices), fn(self.tail), self.classes)

    def dense(self) -> Tensor:
        """Returns ``[B, classes]`` log-probabilities with the tail spread evenly over the classes that are not listed.

        Exact for the listed classes and for the total mass; the shape of the tail is not known.
        """
        rest = self.classes - self.logprobs.shape[-1]
        floor = (self.tail - torch.log(torch.tensor(float(max(rest, 1)), dtype=self.tail.dtype))).unsqueeze(-1)
        full = floor.expand(*self.logprobs.shape[:-1], self.classes).to(self.logprobs.dtype)
        return full.scatter(-1, self.indices, self.logprobs)


@dataclass(frozen=True)
class Signals:
    """What a role says about a batch. A method sees this record and never the model.

    Attributes:
        logits: ``[B, C]`` raw class scores.
        features: tensors by tap group, from shallow to deep. Image classifiers use the groups ``stem``, ``stages`` (the
            ``[B, C, H, W]`` maps at the end of each stage, after the activation), ``preacts`` (the same before the
            activation) and ``pooled`` (the ``[B, D]`` input of the classifier).
        embedding: ``[B, D]`` sentence, image or sample embedding.
        attentions: ``[B, heads, T, T]`` a layer.
        topk: a truncated distribution, as a cache or a server gives it.
        logprobs: log-probabilities of chosen tokens.
        views: the same record for further views of the samples.
    """

    logits: Tensor | None = None
    features: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    embedding: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None
    topk: TopK | None = None
    logprobs: Tensor | None = None
    views: Mapping[str, Signals] = field(default_factory=dict)

    def feature(self, group: str) -> Tensor:
        """Returns the deepest tensor of a tap group."""
        return self.features[group][-1]

    def map(self, fn: Callable[[Tensor], Tensor]) -> Signals:
        """Returns a record with ``fn`` applied to every tensor."""
        return replace(self, **{f.name: _map(getattr(self, f.name), fn) for f in fields(self)})

    def detach(self) -> Signals:
        """Returns the record cut from the graph: what another learner may use as a target."""
        return self.map(Tensor.detach)

    def present(self) -> frozenset[str]:
        """Names of the signals that are there, tap groups as ``features.<group>``."""
        names = {
            f.name for f in fields(self) if f.name not in ("features", "views") and getattr(self, f.name) is not None
        }
        return frozenset(names | {f"features.{g}" for g in self.features})


@dataclass(frozen=True)
class Term:
    """One named part of a loss, before its weight.

    Attributes:
        values: ``[B]`` (or ``[B, ...]``) one loss a sample or position, averaged by the engine over the whole batch
            whatever its split
            into micro-batches and ranks; or a scalar, for a loss that is not a sum over samples.
        mask: which positions of ``values`` count; all when None.
    """

    values: Tensor
    mask: Tensor | None = None

    @property
    def is_scalar(self) -> bool:
        """Whether the term is a single number for the batch."""
        return self.values.dim() == 0

    def total(self) -> Tensor:
        """Sum over the positions that count."""
        if self.mask is None:
            return self.values.sum()
        return torch.where(self.mask.bool(), self.values, self.values.new_zeros(())).sum()

    def count(self) -> Tensor | int:
        """Number of positions that count."""
        return self.values.numel() if self.mask is None else self.mask.bool().sum()

    def mean(self) -> Tensor:
        """Mean over the positions that count; zero, with a graph, when none does."""
        count = self.count()
        return self.total() / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


Terms = dict[str, "Term | Tensor"]
"""What a method returns: unweighted terms by name; a bare tensor stands for ``Term(tensor)``."""


def as_term(value: Term | Tensor) -> Term:
    """Returns ``value`` as a :class:`Term`."""
    return value if isinstance(value, Term) else Term(value)
