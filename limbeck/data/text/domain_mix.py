"""Batches whose mixture of domains follows what student and teacher make of each while the student trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.data.text.document_losses import Gather, Observe, row_losses
from limbeck.data.text.loader import TextLoader
from limbeck.data.text.source import TextSource
from limbeck.errors import DataError, NeedsError
from limbeck.functional.domain_weights import largest_remainder
from limbeck.modes import evaluation_mode
from limbeck.selection.base import PoolSignals
from limbeck.selection.domains import DomainDiscrepancy
from limbeck.signals import Batch, Signals

if TYPE_CHECKING:
    from limbeck.tasks.base import Task

_WANTED = frozenset({"hidden|logits"})


class DomainLoader:
    """Batches whose rows are drawn from domains by weights that are worked out anew every so many steps.

    Before the first step and then every ``selector.every`` steps the student is judged on held-out rows of each domain;
    the teacher, which does not change, once. The first interval reads domains in the proportions of the data, each
    later one by the weights at its beginning. Within a domain rows come in a random order, all before any comes again.
    What is drawn depends on the seed and on what a checkpoint holds, and not on the number of processes.

    Args:
        loader: gives batches of any rows of the training text.
        held: held-out rows of the same domains, in order; the processes of a run share the work.
        selector: weights domains.
        task: how the student is run.
        seed: seed of everything that is drawn.
        gather: returns every process's value in every process.
        log: takes the records of all intervals so far, their losses and weights; called in every process.

    Attributes:
        weights: ``[N]`` of the running interval; None before the first.
        history: a record of each interval.

    Raises:
        NeedsError: the text has no domains.
        DataError: a domain has no row to train on, or none is held out of it.
    """

    def __init__(
        self,
        loader: TextLoader,
        held: TextLoader,
        selector: DomainDiscrepancy,
        task: Task,
        *,
        seed: int,
        gather: Gather = lambda value: [value],
        log: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    ) -> None:
        source = loader.source
        if source.domains is None or held.source.domains is None:
            raise NeedsError(
                "domains are weighted, but the text has none; give `data: {name: domains, options: {domains: {...}}}`"
            )
        self._members = [np.flatnonzero(source.domains == n) for n in range(len(source.domain_names))]
        for name, rows, kept in zip(
            source.domain_names, self._members, np.bincount(held.source.domains, minlength=len(self._members))
        ):
            if not len(rows) or not kept:
                missing = "to train on" if not len(rows) else "that is held out"
                raise DataError(f"the domain '{name}' has no row {missing}; change data.limit or data.holdout")
        self._loader, self._held, self._selector, self._task = loader, held, selector, task
        self._seed, self._gather, self._log = seed, gather, log
        self._student: Callable[[], nn.Module] | None = None
        self._interval = -1
        self._cursors = np.zeros(len(self._members), np.int64)
        self._rows = np.zeros(0, np.int64)
        self._teacher_losses: Tensor | None = None
        self.weights: Tensor | None = None
        self.history: list[dict[str, Any]] = []

    @property
    def source(self) -> TextSource:
        """The training text."""
        return self._loader.source

    @property
    def batch_size(self) -> int:
        """Rows of one step, over all ranks."""
        return self._loader.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch: of so many rows as the text has."""
        return self._loader.steps_per_epoch

    def start(self, student: Callable[[], nn.Module], observers: Mapping[str, Observe]) -> None:
        """Takes what gives the student as it is, and asks the teacher about the held-out text once.

        Raises:
            NeedsError: the method has no teacher, or one that does not run here.
        """
        teacher = observers.get("teacher")
        if not isinstance(getattr(teacher, "model", None), nn.Module):
            raise NeedsError(
                "domains are weighted by what the teacher makes of held-out text, so the method needs the role "
                "'teacher', and a live model there; a cache or a server knows the training text only"
            )
        assert teacher is not None
        self._student = student
        if self._teacher_losses is None:
            self._teacher_losses = self._judged(teacher, "teacher")

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` on: this process's part of each.

        An interval's batches are drawn when its first is asked for, which is after the step before it. A pass over
        the data in between, of an epoch that is over, is one over the whole text.
        """
        every, size = self._selector.every, self._loader.batch_size
        if self._student is None or epoch * self.steps_per_epoch + start_step < self._interval * every:
            yield from self._loader.epoch(epoch, start_step)
            return
        for step in range(start_step, self.steps_per_epoch):
            interval, within = divmod(epoch * self.steps_per_epoch + step, every)
            if interval != self._interval:
                self._begin(interval)
            elif not len(self._rows):
                self._rows = self._drawn()
            yield next(self._loader.in_order(self._rows[within * size : (within + 1) * size], epoch))

    def _begin(self, interval: int) -> None:
        """Judges the student and draws the rows of an interval."""
        assert self._student is not None
        assert self._teacher_losses is not None
        if self._interval >= 0:
            self._cursors = self._cursors + self._counts(self._interval)
        student = self._student()
        with evaluation_mode(student):
            losses = {
                "student": self._judged(_Student(student, self._task), "student"),
                "teacher": self._teacher_losses,
            }
        choice = self._selector(PoolSignals(loss=losses, share=self.weights))
        self._interval, self.weights = interval, choice.share
        self._rows = self._drawn()
        self.history.append(self._record(losses, choice.scores))
        self._log(self.history)

    def _record(self, losses: Mapping[str, Tensor], ratios: Tensor) -> dict[str, Any]:
        names = self.source.domain_names
        per_domain = {**{f"{role}_loss": x for role, x in losses.items()}, "perplexity_ratio": ratios}
        if self.weights is not None:
            per_domain["weight"] = self.weights
        return {
            "step": self._interval * self._selector.every,
            **{what: dict(zip(names, values.tolist())) for what, values in per_domain.items()},
            "rows": dict(zip(names, self._counts(self._interval).tolist())),
        }

    def _judged(self, observe: Observe, role: str) -> Tensor:
        """Returns the mean loss a token in each domain ``[N]``, float64; the same for any number of processes."""
        parts: list[tuple[int, list[int], list[float], list[int]]] = []
        for number, batch in enumerate(self._held.epoch(0)):
            if number % self._loader.world_size == self._loader.rank:
                means, tokens = row_losses(observe, batch, role).tolist(), batch["mask"].sum(-1).tolist()
                parts.append((number, batch["domain"].tolist(), means, tokens))
        gathered = sorted(part for found in self._gather(parts) for part in found)
        sums, counts = np.zeros(len(self._members)), np.zeros(len(self._members))
        for _, domains, means, tokens in gathered:
            np.add.at(sums, domains, np.asarray(means) * np.asarray(tokens))
            np.add.at(counts, domains, tokens)
        return torch.from_numpy(sums / counts)

    def _shares(self, interval: int) -> Tensor:
        """Returns the part of each domain in an interval: that of the data in the first, then the weights."""
        if interval == 0 or self.weights is None:
            sizes = torch.tensor([len(rows) for rows in self._members], dtype=torch.float64)
            return sizes / sizes.sum()
        return self.weights

    def _domains(self, interval: int) -> np.ndarray:
        """Returns the domain of each row of an interval, in order."""
        total = self._selector.every * self._loader.batch_size
        shares = self._shares(interval)
        if self._selector.draw == "shares":
            parts = largest_remainder(shares, total).numpy()
            ordered = np.repeat(np.arange(len(parts)), parts)
            return ordered[streams.permutation(self._seed, "domains/order", interval, total)]
        uniform = streams.uniform(self._seed, "domains/draw", interval, np.arange(total), 1)[:, 0]
        edges = shares.cumsum(0).numpy()
        return np.minimum(np.searchsorted(edges, uniform, side="right"), len(edges) - 1)

    def _counts(self, interval: int) -> np.ndarray:
        return np.bincount(self._domains(interval), minlength=len(self._members))

    def _drawn(self) -> np.ndarray:
        """Returns the rows of the interval, each domain's from where the interval before it ended."""
        domains = self._domains(self._interval)
        rows = np.empty(len(domains), np.int64)
        for number, members in enumerate(self._members):
            places = np.flatnonzero(domains == number)
            rows[places] = self._taken(number, members, int(self._cursors[number]), len(places))
        return rows

    def _taken(self, number: int, members: np.ndarray, first: int, count: int) -> np.ndarray:
        """Returns ``count`` rows of a domain that goes round and round, in a new order each time."""
        rounds = range(first // len(members), (first + count) // len(members) + 1)
        orders = [streams.permutation(self._seed, f"domains/{number}", n, len(members)) for n in rounds]
        start = first - rounds.start * len(members)
        return members[np.concatenate(orders)[start : start + count]]

    def state_dict(self) -> dict[str, Any]:
        """Returns the running interval: its weights, and where in each domain it began."""
        return {
            "interval": self._interval,
            "cursors": torch.from_numpy(self._cursors),
            "weights": self.weights,
            "teacher_losses": self._teacher_losses,
            "history": list(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._interval, self._cursors = int(state["interval"]), state["cursors"].numpy()
        self.weights, self._teacher_losses = state["weights"], state["teacher_losses"]
        self.history = list(state["history"])
        self._rows = np.zeros(0, np.int64)


class _Student:
    """Gives the signals of the student as it is, with no graph and no logits kept."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self._task = model, task

    def __call__(self, batch: Batch) -> Signals:
        return self._task.run(self.model, batch["inputs"], _WANTED)
