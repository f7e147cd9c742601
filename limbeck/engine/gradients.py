"""The gradients of a batch, the same for every split into micro-batches and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.engine import distributed, sharding
from limbeck.engine.alignment import Alignment
from limbeck.engine.combine import WholeBatch, check_finite, combine, part_means, term_means, whole_batch
from limbeck.engine.term_gradients import TermGradients
from limbeck.errors import NeedsError, NonFiniteLossError
from limbeck.methods.base import Method
from limbeck.schedules import Progress, Weight
from limbeck.signals import Batch, Term, Terms

Players = Mapping[str, tuple[list[nn.Parameter], frozenset[str] | None]]


class Gradients:
    """Puts the gradients of a batch's loss into the parameters and returns the terms.

    Terms are means over the whole batch: sums over micro-batches and processes, divided once. A method that couples
    the samples of a batch sees those of all processes, and every process then holds the whole loss.

    Args:
        step: runs roles and method; wrapped for data parallelism.
        method: the method.
        players: who is optimised for what.
        micro_batches: parts that a batch is computed in.
        watch: measures the gradient of each term, and may change the weights.
    """

    def __init__(
        self, step: nn.Module, method: Method, players: Players, micro_batches: int, watch: TermGradients | None = None
    ) -> None:
        self._step, self._method, self._players = step, method, players
        self._micro_batches, self._watch = micro_batches, watch
        self._measured_at = -1
        self._failure: NonFiniteLossError | None = None
        parameters = [p for own, _ in players.values() for p in own]
        wrapped = isinstance(step, nn.parallel.DistributedDataParallel) or any(map(sharding.is_sharded, parameters))
        self._alignment = Alignment(parameters, method.yielding()) if method.yielding() else None
        averaged = wrapped or distributed.world_size() == 1 or self._alignment is not None
        self._unwrapped = [] if averaged else parameters

    def __call__(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Returns the mean of each term over the batch of all processes.

        Raises:
            NonFiniteLossError: a term is NaN or infinite, in this process or another; raised in all.
            NeedsError: batch normalisation meets a single sample.
        """
        alone = distributed.world_size() == 1
        gathered = self._method.batch_coupled and not alone
        if gathered or (alone and self._micro_batches == 1):
            means = self._backward(batch, None, progress)
        else:
            means = self._backward_in_parts(batch, progress)
        if not alone:
            means = self._agreed(means, add=not gathered)
        if self._alignment is not None:
            self._alignment.merge()
        distributed.average_gradients(self._unwrapped)
        return means

    @property
    def weights(self) -> Mapping[str, Weight]:
        """The weights of the terms that count now: the method's own, or balanced ones."""
        return self._method.weights if self._watch is None else self._watch.weights(self._method.weights)

    def _measure(self, means: Mapping[str, Tensor], progress: Progress) -> None:
        """Looks at the terms' gradients when that is due, on the first part of a batch."""
        if self._watch is not None and self._watch.due(progress) and self._measured_at != progress.step:
            self._watch.measure(means, self._method.weights, progress)
            self._measured_at = progress.step

    def _backward_in_parts(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        whole = whole_batch(batch, distributed.totals)
        parts = list(batch.split(self._micro_batches)) if self._micro_batches > 1 else [batch]
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            with sharding.synchronised(self._step, number == len(parts) - 1):
                for name, mean in self._backward(part, whole, progress).items():
                    sums[name] = sums[name] + mean if name in sums else mean
        return sums

    def _backward(self, part: Batch, whole: WholeBatch | None, progress: Progress) -> dict[str, Tensor]:
        """Adds the gradients of a part (of everything, when ``whole`` is None) and returns its share of the means."""
        terms: Terms = {name: Term(values, mask) for name, (values, mask) in self._run(part).items()}
        means = term_means(terms) if whole is None else part_means(terms, part, whole)
        # Data parallelism averages over processes; shares of a global mean must be added instead.
        scale = 1 if whole is None else distributed.world_size()
        self._measure(means, progress)
        losses = {who: combine(means, self.weights, progress, only) * scale for who, (_, only) in self._players.items()}
        if not all(math.isfinite(loss.item()) for loss in losses.values()):
            self._fail(means, terms, part, progress)
        if self._alignment is not None:
            self._alignment.add(means, self.weights, progress, scale)
        elif len(losses) == 1:
            next(iter(losses.values())).backward()
        else:
            sharding.player_gradients(losses, {who: parameters for who, (parameters, _) in self._players.items()})
        return {name: mean.detach() for name, mean in means.items()}

    def _run(self, part: Batch) -> Mapping[str, tuple[Tensor, Tensor | None]]:
        """Runs roles and method; a first batch of many samples does not show what a last one of a single one meets."""
        try:
            terms: Mapping[str, tuple[Tensor, Tensor | None]] = self._step(part)
        except ValueError as error:
            if part.size > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise NeedsError(
                "batch normalisation cannot train on a single sample, which is all that is left for this batch; choose "
                "a train.batch_size (or train.micro_batches) that leaves none alone at the end of an epoch"
            ) from error
        return terms

    def _fail(self, means: Mapping[str, Tensor], terms: Terms, part: Batch, progress: Progress) -> None:
        """Raises at once when alone; otherwise after the exchange that the other processes are waiting in."""
        try:
            check_finite(means, terms, part, progress.step)
        except NonFiniteLossError as error:
            if distributed.world_size() == 1:
                raise
            self._failure = self._failure or error

    def _agreed(self, means: dict[str, Tensor], *, add: bool) -> dict[str, Tensor]:
        """Returns the sums over processes; where one is not finite, all raise what the first process found."""
        values = distributed.totals([*(float(mean) for mean in means.values()), self._failure is not None])
        if values[-1]:
            distributed.together(self._raise_failure)
        if not add:
            return means
        return {name: torch.tensor(value) for name, value in zip(means, values)}

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
