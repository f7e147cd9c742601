"""Sequences that models write for a lab: once, or anew for every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from limbeck import streams
from limbeck.data.text import Encoded, TextLoader, TextSource, Tokenizer
from limbeck.errors import DataError
from limbeck.generation import Draws, Prompts, Sampling, generate
from limbeck.recipes.hacking.spec import SampleSource
from limbeck.signals import Batch

Tokens = list[int]
_ROWS = 64


def prompts_of(source: TextSource, length: int, count: int, *, seed: int, purpose: str) -> list[Tokens]:
    """Returns so many pieces of a text, drawn without replacement.

    Raises:
        DataError: the text has too few.
    """
    pieces = [
        s.ids[start : start + length].tolist()
        for s in source.sequences
        for start in range(0, len(s) - length + 1, length)
    ]
    pieces = [p for p in pieces if source.tokenizer.eos_id not in p]
    if len(pieces) < count:
        raise DataError(
            f"'{source.info.name}' has {len(pieces)} prompts of {length} tokens, but the lab asks for {count}; raise "
            "data.limit or lower the number of prompts"
        )
    return [pieces[n] for n in streams.permutation(seed, purpose, 0, len(pieces))[:count]]


def written(
    model: nn.Module, prompts: Sequence[Tokens], tokenizer: Tokenizer, *, tokens: int, draws: Draws
) -> list[Encoded]:
    """Returns prompts with the completions that a model draws for them, of which the completions are to be learnt."""
    found: list[Encoded] = []
    index = np.asarray(draws.index, np.int64)
    for start in range(0, len(prompts), _ROWS):
        some = prompts[start : start + _ROWS]
        made = generate(
            model,
            Prompts.of(some),
            Sampling(max_new_tokens=tokens),
            draws=Draws(draws.seed, draws.purpose, draws.epoch, index[start : start + _ROWS]),
            ends=(tokenizer.eos_id,),
            vocabulary=tokenizer.vocabulary,
        )
        found += [_encoded([*before, *after], len(before)) for before, after in zip(some, made.texts())]
    return found


def _encoded(ids: Tokens, prompt: int) -> Encoded:
    return Encoded(np.array(ids, np.int64), np.arange(len(ids)) >= prompt, prompt)


class SampledText:
    """Batches of sequences that teacher and student write, as a source of the lab says.

    Sequences that are not written anew are those of the beginning. What an epoch shows is part of the state of a run,
    so one that is resumed goes on with the same sequences.

    Args:
        prompts: the prompts.
        teacher: writes the teacher's sequences.
        student: writes the student's, as it is when an epoch begins.
        tokenizer: of both.
        source: who writes, and how often.
        tokens: most tokens of a completion.
        batch_size: sequences of a step.
        seed: seed of everything random.
    """

    def __init__(
        self,
        prompts: Sequence[Tokens],
        teacher: nn.Module,
        student: nn.Module,
        tokenizer: Tokenizer,
        source: SampleSource,
        *,
        tokens: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._prompts = [p for p in prompts for _ in range(source.completions)]
        self._models = {False: teacher, True: student}
        self._tokenizer, self._source, self._tokens = tokenizer, source, tokens
        self._batch_size, self._seed = batch_size, seed
        self._epoch = -1
        self._first: list[Encoded] = []
        self._now: list[Encoded] = []

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        return -(-len(self._prompts) // self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` on."""
        if epoch != self._epoch:
            self._now, self._epoch = self._sequences(epoch), epoch
            self._first = self._first or self._now
        longest = len(self._prompts[0]) + self._tokens
        source = TextSource("samples", self._now, self._tokenizer, context=longest)
        yield from TextLoader(source, batch_size=self._batch_size, seed=self._seed).epoch(epoch, start_step)

    def _sequences(self, epoch: int) -> list[Encoded]:
        everything = np.arange(len(self._prompts))
        if self._first:
            fresh = streams.uniform(self._seed, "fresh", epoch, everything, 1)[:, 0] < self._source.fresh
        else:
            fresh = np.ones(len(everything), bool)
        by_student = streams.uniform(self._seed, "writer", epoch, everything, 1)[:, 0] < self._source.student
        found = list(self._first) or [_encoded(p, len(p)) for p in self._prompts]
        for who, model in self._models.items():
            chosen = everything[fresh & (by_student == who)]
            if len(chosen):
                draws = Draws(self._seed, "lab", epoch, chosen)
                prompts = [self._prompts[n] for n in chosen]
                new = written(model, prompts, self._tokenizer, tokens=self._tokens, draws=draws)
                for place, sequence in zip(chosen, new):
                    found[place] = sequence
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns the sequences of the beginning and of the running epoch."""
        return {"epoch": self._epoch, "first": _packed(self._first), "now": _packed(self._now)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        length = len(self._prompts[0])
        self._epoch = int(state["epoch"])
        self._first, self._now = (_unpacked(state[name], length) for name in ("first", "now"))


def _packed(sequences: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    ids = np.concatenate([s.ids for s in sequences]) if sequences else np.empty(0, np.int64)
    return {"ids": torch.from_numpy(ids), "lengths": torch.tensor([len(s) for s in sequences], dtype=torch.long)}


def _unpacked(state: Mapping[str, torch.Tensor], prompt: int) -> list[Encoded]:
    return [_encoded(part.tolist(), prompt) for part in state["ids"].split(state["lengths"].tolist())]
