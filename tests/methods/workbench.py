"""Builds any registered method around small networks, the way the engine does."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from limbeck.engine.combine import combine, term_means
from limbeck.engine.holdout import HoldOut
from limbeck.engine.preflight import dry_run, tap_groups
from limbeck.functional.sparse_targets import top_k
from limbeck.methods.base import Method, Observed, Passes, Setup, build_method, methods
from limbeck.methods.sequence.base import SequenceMethod
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms, TopK
from limbeck.tasks.causal_lm import CausalLM
from limbeck.tasks.classification import Classification
from limbeck.teachers.live import FrozenTeacher
from limbeck.teachers.provider import Observer
from methods.networks import CHANNELS, CLASSES, SIZE, large_teacher, small_student
from methods.sequences import TOKEN_MAP, LanguageModel, sequence_batch

SAMPLES = 24
ROWS = 6
MOMENTS = tuple(Progress(step, 2, 12) for step in (0, 3, 23))
"""Progress at the beginning, early and at the end of a run of 12 epochs."""

Variant = tuple[str, dict[str, Any]]

BESIDE: dict[tuple[str, str, Any], dict[str, Any]] = {
    ("unified_opd", "access", "text"): {"source": "teacher", "divergence": "forward_kl"},
    ("unified_opd", "access", "none"): {"source": "data", "divergence": "forward_kl"},
}
"""What a choice needs beside it, where a method refuses it alone."""


def annotations(name: str) -> dict[str, Any]:
    """Annotated types of a method's hyperparameters."""
    hints = typing.get_type_hints(inspect.unwrap(methods[name].part.__init__), include_extras=True)
    return {key: hints[key] for key in methods[name].part.hyperparameters()}


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a ``Literal`` or a ``bool``, else none."""
    if annotation is bool:
        return (False, True)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def variants() -> list[Variant]:
    """Every method with its defaults, and with each single choice that is not the default."""
    found: list[Variant] = []
    for name in methods:
        found.append((name, {}))
        for key, parameter in methods[name].part.hyperparameters().items():
            others = [c for c in choices(annotations(name)[key]) if c != parameter.default]
            found.extend((name, {key: other, **BESIDE.get((name, key, other), {})}) for other in others)
    return found


def label(variant: Variant) -> str:
    """Name of a test case."""
    name, config = variant
    return name + "".join(f"[{key}={value}]" for key, value in config.items())


def make_batch(rows: int = ROWS, *, start: int = 0, views: tuple[str, ...] = (), needed: Iterable[str] = ()) -> Batch:
    """Samples ``start`` to ``start + rows`` of a fixed data set, in float64.

    What a transform would make, entries of ``needed`` that end in ``_inputs``, is there as well.
    """
    generator = torch.Generator().manual_seed(7)
    shape = (SAMPLES, CHANNELS, SIZE, SIZE)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    chosen = slice(start, start + rows)
    batch = Batch(inputs=inputs[chosen], labels=all_labels()[chosen], index=torch.arange(SAMPLES)[chosen], epoch=0)
    if views:
        other = torch.randn(shape, generator=generator, dtype=torch.float64)[chosen]
        batch["views"] = {view: other + number for number, view in enumerate(views)}
    for number, key in enumerate(sorted(key for key in needed if key.endswith("_inputs"))):
        batch[key] = batch["inputs"].roll(1, dims=2) + number
    return batch


def make_holdout() -> Batch:
    """Samples that are not in the data set."""
    batch = make_batch()
    return Batch(inputs=batch["inputs"].flip(3) + 0.5, labels=batch["labels"], index=batch["index"])


class _Single:
    """A loader of one batch."""

    steps_per_epoch = 1

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batch."""
        yield self._batch


def all_labels() -> Tensor:
    """Labels of the data set."""
    return torch.arange(SAMPLES) * 7 % CLASSES


def select(batch: Batch, rows: Tensor) -> Batch:
    """The given rows of a batch, in that order."""
    return batch.map(lambda tensor: tensor[rows])


@dataclass
class Bench:
    """A built method with its models.

    Attributes:
        method: the method.
        learners: models that train, by role.
        frozen: providers of the others, by role.
        observers: what gives each role's signals.
    """

    method: Method
    learners: dict[str, nn.Module]
    frozen: dict[str, FrozenTeacher]
    observers: dict[str, Observer]

    def batch(self, rows: int = ROWS, *, start: int = 0) -> Batch:
        """A batch with the views, and the inputs of transforms, that the method needs."""
        if isinstance(self.method, SequenceMethod):
            read = self._visible()
            every = sequence_batch(
                SAMPLES, slice(start, start + rows), views=self.method.needs.views,
                two_tokenizers="teacher_spans" in read,
            )  # fmt: skip
            found = Batch((key, value) for key, value in every.items() if key in read)
            if "on_policy" in self.method.needs.batch:
                found["on_policy"] = torch.ones(found.size, dtype=torch.bool)
            return found
        batch = make_batch(rows, start=start, views=self.method.needs.views, needed=self.method.needs.batch)
        if self.method.needs.holdout == "batches":
            batch["holdout"] = make_holdout()
        return batch

    def signals(self, batch: Batch) -> dict[str, Signals]:
        """What the method's roles say, and nothing that the method does not say it needs."""
        seen = self.method.observe(batch, self.observers)
        return {role: _restricted(s, self.method.needs.roles.get(role, frozenset())) for role, s in seen.items()}

    def terms(self, batch: Batch | None = None) -> Terms:
        """The method's terms on a batch that holds no entry but those the method needs."""
        batch = self.batch() if batch is None else batch
        visible = self._visible()
        shown = Batch((key, value) for key, value in batch.items() if key in visible)
        return self.method(shown, **self.signals(batch))

    def _visible(self) -> frozenset[str]:
        """Entries of a batch that models read, that the method reads, and those that it reads where they are there."""
        known = self.method.needs.batch | getattr(self.method, "optional_entries", frozenset())
        # A teacher with tokens of its own reads them.
        own = {"teacher_inputs"} if "teacher_spans" in known else set()
        return known | own | {"inputs", "index", "views", "epoch"}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that trains, by name."""
        modules = {**self.learners, "method": self.method}
        named = {f"{owner}.{n}": p for owner, module in modules.items() for n, p in module.named_parameters()}
        return {name: p for name, p in named.items() if p.requires_grad}

    def train(self, steps: int) -> None:
        """Takes optimizer steps as the engine does, with plain gradient descent."""
        for role in self.frozen.values():
            role.start()
        for step in range(steps):
            batch = self.bench_batch(step)
            means = term_means(self.terms(batch))
            progress = Progress(step, 2, 12)
            gradients = []
            for parameters, only in self.method.players(self.learners).values():
                loss = combine(means, self.method.weights, progress, only)
                found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                gradients += list(zip(parameters, found))
            with torch.no_grad():
                for parameter, gradient in gradients:
                    if gradient is not None:
                        parameter -= 1e-4 * gradient
            self.method.after_step(Progress(step + 1, 2, 12))
            if step % 2 == 1 and self.method.refreshes:
                self.method.refresh(Progress(step + 1, 2, 12), Passes(self.observe_all, self.observe_holdout))
        for role in self.frozen.values():
            role.finish()

    def observe_all(self) -> Observed:
        """A pass over the data set with what every role says."""
        for step in range(SAMPLES // ROWS):
            batch = self.bench_batch(step)
            yield batch, dry_run(self.method, batch, self.observers)

    def observe_holdout(self) -> Observed:
        """A pass over held-out data with what the learners say."""
        return HoldOut(_Single(make_holdout())).observed(self.observers, self.method.learners)

    def bench_batch(self, step: int) -> Batch:
        """Batch number ``step`` of the data set."""
        return self.batch(start=step * ROWS % SAMPLES)


class _Truncated(CausalLM):
    """A model of which only the three likeliest tokens are told, as a cache or a server does."""

    def run(self, model: nn.Module, inputs: Any, wanted: frozenset[str] = frozenset()) -> Signals:
        """Returns ``topk``."""
        signals = super().run(model, inputs, wanted)
        logits = signals.hidden.logits() if signals.hidden is not None else signals.logits
        kept = top_k(logits, 3)
        return Signals(topk=TopK(kept.logprobs, kept.indices, kept.tail, logits.shape[-1]))


def _restricted(signals: Signals, needed: frozenset[str]) -> Signals:
    """Leaves out what a method does not say it needs."""
    groups = {s.removeprefix("features.") for s in needed if s.startswith("features.")}
    names = {option for need in needed for option in need.split("|")}
    return Signals(
        logits=signals.logits if "logits" in names else None,
        hidden=signals.hidden if "hidden" in names else None,
        topk=signals.topk if "topk" in names else None,
        features={group: maps for group, maps in signals.features.items() if group in groups},
        views={view: _restricted(s, needed) for view, s in signals.views.items()},
    )


def bench(name: str, config: dict[str, Any] | None = None, *, init_seed: int = 0, batch_norm: bool = False) -> Bench:
    """Returns a built method in train mode and float64; ``init_seed`` fixes the start of its own parameters."""
    method = build_method(name, **(config or {}))
    learners: dict[str, nn.Module] = {}
    frozen: dict[str, FrozenTeacher] = {}
    observers: dict[str, Observer] = {}
    for number, role in enumerate(method.roles()):
        taps = method.needs.groups(role)
        task, views = Classification(), method.needs.views
        if isinstance(method, SequenceMethod):
            model = LanguageModel(6 if role in method.learners else 9, seed=1 + 10 * number).double()
            kind = Observer if role in method.learners else FrozenTeacher
            task = _Truncated() if "sparse" in (config or {}) and role == "teacher" else CausalLM()
            observers[role] = kind(role, model, task, {}, views, wanted=method.needs.roles[role])
            if role in method.learners:
                learners[role] = model
            else:
                frozen[role] = observers[role]
            continue
        if role in method.learners:
            learners[role] = model = small_student(seed=1 + 10 * number, batch_norm=batch_norm).double()
            observers[role] = Observer(role, model, task, tap_groups(role, model, taps), views)
        else:
            seed = 2 if role == "teacher" else 2 + 10 * number  # frozen roles differ, or weights of theirs say nothing
            teacher = large_teacher(seed, batch_norm=batch_norm, same_channels=method.same_channels).double()
            observers[role] = frozen[role] = FrozenTeacher(
                role, teacher, task, tap_groups(role, teacher, taps), views,
                batch_statistics=role in method.batch_statistics,
            )  # fmt: skip
    built = Bench(method, learners, frozen, observers)
    _build(built, init_seed)
    return built


def _build(bench: Bench, init_seed: int) -> None:
    method, observers = bench.method, bench.observers
    signals = dry_run(method, bench.batch(), observers)
    setup = Setup(
        signals=signals,
        models={role: observer.model for role, observer in observers.items()},
        taps={role: observer.taps.groups for role, observer in observers.items()},
        num_classes=CLASSES,
        labels=all_labels(),
        seed=3,
        batch=bench.batch(),
        token_map=TOKEN_MAP,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        method.build(setup)
    method.double().train()
    method.prepare(bench.observe_all)


def weighted_totals(bench: Bench, terms: Terms) -> list[float]:
    """The whole loss at every moment of a run."""
    means = term_means(terms)
    return [float(combine(means, bench.method.weights, moment).detach()) for moment in MOMENTS]
