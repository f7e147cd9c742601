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
    if isinstance(value, (Signals, TopK, Sampled, Head, Hidden)):
        return value.map(fn)
    if isinstance(value, Mapping):
        mapped = {k: _map(v, fn) for k, v in value.items()}
        return Batch(mapped) if isinstance(value, Batch) else mapped
    if isinstance(value, tuple):
        return tuple(_map(v, fn) for v in value)
    return value


UNLABELLED = -100
"""The label of a sample, or of a position, whose label is not known or not to be learnt."""


class Batch(dict[str, Any]):
    """A mapping of tensors whose first dimension is the sample.

    Keys that limbeck itself reads:

    - ``inputs``: what every role sees unless it has an entry of its own, for images ``[B, C, H, W]``;
    - ``<role>_inputs`` (for example ``teacher_inputs``): what one role sees instead;
    - ``views``: a dict of further views of the same samples by name (for example ``strong``), each like ``inputs``;
    - ``labels``: ``[B]`` class indices; :data:`UNLABELLED` where a sample's is not known;
    - ``labelled_mask`` and ``unlabelled_mask``: ``[B]`` bool, which samples have a label and which have not; there only
      where the data is labelled in part;
    - ``index``: ``[B]`` stable sample ids, always there: memory banks, caches and sample weights need them;
    - ``mask``: which positions count, where a task has positions;
    - ``epoch``: a plain int, for streams of random numbers.

    Language models: a row is one sequence, or several that were packed into one.

    - ``inputs``: a dict of ``[B, T]`` tensors, ``input_ids``, ``attention_mask`` (1 where a token is real),
      ``position_ids`` (from 0 in every sequence) and, in packed rows, ``segment_ids`` (number of the sequence in its
      row from 1, 0 for padding);
    - ``labels``: ``[B, T]`` int64, shifted already: entry ``t`` is the token that the output at position ``t``
      predicts, -100 where it is not to be learnt;
    - ``mask``: ``[B, T]`` bool, where ``labels`` counts;
    - ``completion``: ``[B, T]`` bool, where the token to predict belongs to a completion, whether it counts or not;
    - pairs of answers: what the method calls the second one is a view, with ``<view>_labels``, ``<view>_mask`` and
      ``<view>_completion`` ``[B, T']`` beside it.
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

    def of_view(self, view: str) -> Batch:
        """Returns the batch in which a view stands for ``inputs``, with the labels and the mask that belong to it."""
        own = {k.removeprefix(f"{view}_"): v for k, v in self.items() if k.startswith(f"{view}_")}
        rest = {k: v for k, v in self.items() if k in ("index", "epoch")}
        return Batch({**rest, **own, "inputs": self["views"][view]})

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
        logprobs: ``[B, k]`` (``[B, T, k]`` for sequences) natural log-probabilities at temperature 1, in decreasing
            order.
        indices: ``[B, k]`` int64 class indices.
        tail: ``[B]`` log of the summed probability of all other classes (``-inf`` where ``k == classes``).
        classes: number of classes.
        logsumexp: ``[B]`` logarithm of the sum of the exponentials of all logits, where it is known: with it the kept
            logits themselves are ``logprobs + logsumexp``.
    """

    logprobs: Tensor
    indices: Tensor
    tail: Tensor
    classes: int
    logsumexp: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> TopK:
        """Returns a record with ``fn`` applied to every tensor."""
        lse = None if self.logsumexp is None else fn(self.logsumexp)
        return TopK(fn(self.logprobs), fn(self.indices), fn(self.tail), self.classes, lse)

    def dense(self) -> Tensor:
        """Returns ``[B, classes]`` log-probabilities with the tail spread evenly over the classes that are not listed.

        Exact for the listed classes and for the total mass; the shape of the tail is not known.
        """
        rest = self.classes - self.logprobs.shape[-1]
        floor = (self.tail - torch.log(torch.tensor(float(max(rest, 1)), dtype=self.tail.dtype))).unsqueeze(-1)
        full = floor.expand(*self.logprobs.shape[:-1], self.classes).to(self.logprobs.dtype)
        return full.scatter(-1, self.indices, self.logprobs)


@dataclass(frozen=True)
class Sampled:
    """Classes drawn from a distribution over ``classes``: a sparse target whose expectation is the distribution.

    Attributes:
        indices: ``[..., n]`` int64 distinct class indices of a position, in the order in which they were stored.
        weights: ``[..., n]`` weight of each, which sum to one; 0 in unused places.
        classes: number of classes.

    Reference:
        Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, 2025,
        https://arxiv.org/abs/2503.16870
    """

    indices: Tensor
    weights: Tensor
    classes: int

    def map(self, fn: Callable[[Tensor], Tensor]) -> Sampled:
        """Returns a record with ``fn`` applied to every tensor."""
        return Sampled(fn(self.indices), fn(self.weights), self.classes)

    def dense(self) -> Tensor:
        """Returns the ``[..., classes]`` probabilities, zero for all classes that were not drawn."""
        zeros = self.weights.new_zeros(*self.weights.shape[:-1], self.classes)
        return zeros.scatter_add(-1, self.indices, self.weights)


@dataclass(frozen=True)
class Head:
    """The output layer of a language model: ``softcap(scale * (x @ weight.T + bias))`` over the true vocabulary.

    Attributes:
        weight: ``[V, D]``; rows from ``vocabulary`` on are padding and stand for no token.
        bias: ``[V]``.
        scale: what logits are multiplied by (Cohere; the inverse of Granite's ``logits_scaling``).
        softcap: logits are squashed to ``softcap * tanh(logits / softcap)`` after scaling (Gemma).
        vocabulary: number of true tokens; all rows when None.
        adapter: LoRA factors ``A [r, D]``, ``B [V, r]`` and their scale: ``B @ A * scale`` is added to ``weight``.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocabulary: int | None = None
    adapter: tuple[Tensor, Tensor, float] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Head:
        """Returns a record with ``fn`` applied to every tensor."""
        adapter = None if self.adapter is None else (fn(self.adapter[0]), fn(self.adapter[1]), self.adapter[2])
        return replace(self, weight=fn(self.weight), bias=_map(self.bias, fn), adapter=adapter)

    @property
    def classes(self) -> int:
        """Number of true tokens."""
        return self.weight.shape[0] if self.vocabulary is None else self.vocabulary

    def __call__(self, states: Tensor) -> Tensor:
        """Returns the ``[..., classes]`` logits of ``[..., D]`` hidden states: what a lean loss must equal."""
        rows = slice(self.classes)
        logits = torch.nn.functional.linear(states, self.weight[rows], None if self.bias is None else self.bias[rows])
        if self.adapter is not None:
            low, high, strength = self.adapter
            logits = logits + strength * ((states @ low.T) @ high[rows].T)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class Hidden:
    """Final hidden states and the head that makes logits of them, so that nobody need hold ``[tokens, vocabulary]``.

    Attributes:
        states: ``[B, T, D]`` what the head reads.
        head: the output layer.
        table: ``[V, D']`` the input embeddings, where the model says which they are.
    """

    states: Tensor
    head: Head
    table: Tensor | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Hidden:
        """Returns a record with ``fn`` applied to every tensor."""
        return Hidden(fn(self.states), self.head.map(fn), _map(self.table, fn))

    def logits(self) -> Tensor:
        """Returns the ``[B, T, V]`` logits over the true vocabulary."""
        return self.head(self.states)


@dataclass(frozen=True)
class Signals:
    """What a role says about a batch. A method sees this record and never the model.

    Attributes:
        logits: ``[B, C]`` raw class scores; ``[B, T, V]`` of a language model, over the true vocabulary.
        features: tensors by tap group, from shallow to deep. Image classifiers use the groups ``stem``, ``stages`` (the
            ``[B, C, H, W]`` maps at the end of each stage, after the activation), ``preacts`` (the same before the
            activation) and ``pooled`` (the ``[B, D]`` input of the classifier).
        embedding: ``[B, D]`` sentence, image or sample embedding.
        attentions: ``[B, heads, T, T]`` a layer.
        topk: a truncated distribution, as a cache or a server gives it.
        logprobs: log-probabilities of chosen tokens; ``[B, T]`` of the tokens in ``labels`` for language models.
        sampled: a distribution as classes that were drawn from it.
        hidden: final hidden states and output layer of a language model, instead of ``logits``.
        views: the same record for further views of the samples.
    """

    logits: Tensor | None = None
    features: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    embedding: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None
    topk: TopK | None = None
    logprobs: Tensor | None = None
    sampled: Sampled | None = None
    hidden: Hidden | None = None
    views: Mapping[str, Signals] = field(default_factory=dict)

    def feature(self, group: str) -> Tensor:
        """Returns the deepest tensor of a tap group."""
        return self.features[group][-1]

    def map(self, fn: Callable[[Tensor], Tensor]) -> Signals:
        """Returns a record with ``fn`` applied to every tensor."""
        return replace(self, **{f.name: _map(getattr(self, f.name), fn) for f in fields(self)})

    def map_rows(self, fn: Callable[[Tensor], Tensor]) -> Signals:
        """Returns a record with ``fn`` applied to every tensor that has a row a sample; an output layer stays."""
        shared = ("hidden", "views")
        rows = {f.name: _map(getattr(self, f.name), fn) for f in fields(self) if f.name not in shared}
        hidden = None if self.hidden is None else replace(self.hidden, states=fn(self.hidden.states))
        return replace(self, **rows, hidden=hidden, views={name: s.map_rows(fn) for name, s in self.views.items()})

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
