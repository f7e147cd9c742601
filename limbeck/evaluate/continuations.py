"""What models write after the beginnings of sequences, written once and shared by all evaluations that ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import nn

from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.errors import DataError
from limbeck.evaluate.base import Subject
from limbeck.generation import Draws, Prompts, Sampling, end_tokens, generate

_ROWS = 16


@dataclass(frozen=True)
class Continuations:
    """Prompts and how they go on.

    Attributes:
        prompts: tokens of each prompt.
        truths: the tokens that follow in the text, no more than models may write and without the end token.
        written: by role the tokens written after each prompt, without the end token.
        ended: by role whether each text was ended and not cut off.
    """

    prompts: tuple[list[int], ...]
    truths: tuple[list[int], ...]
    written: Mapping[str, tuple[list[int], ...]]
    ended: Mapping[str, tuple[bool, ...]]


def text_of(subject: Subject) -> TextSource:
    """Returns the held-out text.

    Raises:
        DataError: the loader is one of somebody's own, which does not tell.
    """
    if not isinstance(subject.loader, TextLoader):
        raise DataError("this needs the text itself, which only limbeck's own loader of text gives")
    return subject.loader.source


def continuations(
    subject: Subject, source: TextSource, *, samples: int, prompt: int, sampling: Sampling, seed: int = 0
) -> Continuations:
    """Returns what every live model writes after prompts of a text.

    Args:
        subject: whose models write.
        source: held-out or training text.
        samples: number of prompts, spread over the text.
        prompt: tokens of a prompt, where the data has no prompts of its own.
        sampling: how tokens are drawn, and how many.
        seed: seed of what is drawn.

    Raises:
        DataError: no sequence is longer than a prompt.
    """
    key = (id(source), samples, prompt, sampling, seed)
    known: dict[object, Continuations] = subject.__dict__.setdefault("_continuations", {})
    if key not in known:
        known[key] = _written(subject, source, samples, prompt, sampling, seed)
    return known[key]


def _written(
    subject: Subject, source: TextSource, samples: int, prompt: int, sampling: Sampling, seed: int
) -> Continuations:
    end, most = source.tokenizer.eos_id, sampling.max_new_tokens
    chosen = [(s.ids.tolist(), _begin(s, prompt)) for s in spread(source, samples)]
    prompts = tuple(ids[:start] for ids, start in chosen)
    truths = tuple(_without_end(ids[start : start + most], end) for ids, start in chosen)
    written, ended = {}, {}
    for role, model in subject.modules.items():
        written[role], ended[role] = write(model, prompts, source, subject, sampling, seed)
    return Continuations(prompts, truths, written, ended)


def spread(source: TextSource, samples: int) -> list[Encoded]:
    """Returns up to so many sequences of at least two tokens, evenly spread over the data.

    Raises:
        DataError: there is none.
    """
    usable = [s for s in source.sequences if len(s) > 1]
    if not usable:
        raise DataError(f"no sequence of '{source.info.name}' has a beginning to write after")
    step = max(len(usable) // samples, 1)
    return usable[::step][:samples]


def _begin(sequence: Encoded, prompt: int) -> int:
    return max(min(sequence.prompt or prompt, len(sequence) - 1), 1)


def _without_end(ids: list[int], end: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == end else ids


def write(
    model: nn.Module,
    prompts: tuple[list[int], ...],
    source: TextSource,
    subject: Subject,
    sampling: Sampling,
    seed: int = 0,
) -> tuple[tuple[list[int], ...], tuple[bool, ...]]:
    """Returns what a model writes after each prompt without the end token, and whether it ended it."""
    ends = end_tokens(model, source.tokenizer)
    written: list[list[int]] = []
    ended: list[bool] = []
    for start in range(0, len(prompts), _ROWS):
        some = prompts[start : start + _ROWS]
        found = generate(
            model,
            Prompts.of(cast(list[list[int]], some), device=subject.device),
            sampling,
            draws=Draws(seed, "evaluation", index=np.arange(start, start + len(some))),
            ends=ends,
            vocabulary=source.info.num_classes,
        )
        stops = found.ended.tolist()
        written += [ids[:-1] if stop else ids for ids, stop in zip(found.texts(), stops)]
        ended += stops
    return tuple(written), tuple(ended)
