"""The loop that writes: many sequences at once, each with random numbers of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.errors import DataError, NeedsError
from limbeck.generation.decoding import Decoder, decoder
from limbeck.generation.policies import Alone, Chosen, Policy
from limbeck.generation.sampling import Sampling
from limbeck.modes import evaluation_mode


@dataclass(frozen=True)
class Prompts:
    """Prompts of different lengths.

    Attributes:
        ids: ``[P, L]`` int64, padded on the left.
        mask: ``[P, L]`` int64, 1 where a token is real.
    """

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int] | np.ndarray], *, device: torch.device | str = "cpu") -> Prompts:
        """Returns prompts given as tokens.

        Raises:
            DataError: a prompt is empty, so nothing says what comes first.

        Example:
            >>> Prompts.of([[5, 6, 7], [8]]).ids
            tensor([[5, 6, 7],
                    [0, 0, 8]])
        """
        lengths = [len(p) for p in prompts]
        if not lengths or min(lengths) < 1:
            raise DataError("a model writes after at least one token, but a prompt is empty; give it one")
        ids, mask = (np.zeros((len(lengths), max(lengths)), np.int64) for _ in range(2))
        for row, prompt in enumerate(prompts):
            ids[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, 1
        return cls(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))

    def rows(self, start: int, stop: int) -> Prompts:
        """Returns some of the prompts, without columns that are padding in all of them."""
        mask = self.mask[start:stop]
        width = int(mask.sum(-1).max())
        return Prompts(self.ids[start:stop, -width:], mask[:, -width:])


@dataclass(frozen=True)
class Draws:
    """Where random numbers come from: (seed, purpose, epoch, sample, draw, position) and nothing else.

    So a sequence is the same whichever others share its batch, in whatever order and on however many processes, up to
    the rounding of the model itself.

    Attributes:
        seed: seed of the run.
        purpose: name of the stream.
        epoch: so that a sample is written differently the next time.
        index: ``[P]`` stable sample ids of the prompts.
    """

    seed: int
    purpose: str = "generation"
    epoch: int = 0
    index: Sequence[int] | np.ndarray = ()

    def uniform(self, samples: int, positions: int, numbers: int) -> Tensor:
        """Returns float64 numbers in [0, 1) of shape ``[P * samples, positions, numbers]``."""
        index = np.asarray(self.index, np.int64)
        found = [
            streams.uniform(self.seed, f"{self.purpose}/{draw}", self.epoch, index, positions * numbers)
            for draw in range(samples)
        ]
        return torch.from_numpy(np.stack(found, 1).reshape(len(index) * samples, positions, numbers))


@dataclass(frozen=True)
class Generated:
    """What was written after prompts; sequences of one prompt follow each other.

    Attributes:
        tokens: ``[B, T]`` int64, 0 beyond a sequence's length.
        lengths: ``[B]`` tokens written, the end token included.
        logprobs: ``[B, T]`` log-probability of each token under the first model as it is, that is at temperature 1
            and over the whole vocabulary. Likelihood ratios of the student are taken against these, since the
            log-probability of the student that trains is of the same kind; 0 beyond the length.
        proposal_logprobs: ``[B, T]`` log-probability with which each token was drawn: tempered, truncated, mixed. Their
            difference from ``logprobs`` is the log of an importance weight.
        accepted: ``[B, T]`` bool, where the token is one of the first model's own.
        ended: ``[B]`` bool, whether an end token ended it, and not its length.
        seconds: time that it took.
    """

    tokens: Tensor
    lengths: Tensor
    logprobs: Tensor
    proposal_logprobs: Tensor
    accepted: Tensor
    ended: Tensor
    seconds: float

    @property
    def written(self) -> Tensor:
        """``[B, T]`` bool, where a token was written."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths.unsqueeze(1)

    @property
    def tokens_per_second(self) -> float:
        """Written tokens a second."""
        return float(self.lengths.sum()) / self.seconds if self.seconds else 0.0

    def texts(self) -> list[list[int]]:
        """Returns the tokens of each sequence, the end token included."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist())]


def generate(
    models: nn.Module | Sequence[nn.Module],
    prompts: Prompts,
    sampling: Sampling,
    *,
    draws: Draws | None = None,
    ends: Sequence[int] = (),
    samples: int = 1,
    limits: Tensor | None = None,
    policy: Policy | None = None,
    vocabulary: int | None = None,
    autocast: torch.dtype | Sequence[torch.dtype | None] | None = None,
    rows: int | None = None,
) -> Generated:
    """Lets models write after prompts.

    They run in eval mode and without gradients, and have their modes back afterwards; no parameter or buffer changes.
    A sequence that has ended takes no further time. Prompts are read once, however many sequences follow each.

    Args:
        models: the model; the student and the teacher where ``policy`` asks two.
        prompts: what to write after.
        sampling: how tokens are drawn.
        draws: where random numbers come from; needed unless ``sampling`` is greedy.
        ends: ids that end a sequence, see :func:`limbeck.generation.end_tokens`.
        samples: sequences a prompt.
        limits: ``[P]`` tokens that may follow each prompt, at most ``sampling.max_new_tokens``; a limit of 0 leaves
            its sequences empty.
        policy: who draws; the model alone by default.
        vocabulary: number of true tokens; all rows of the head when None.
        autocast: type of autocast, of each model where several are given.
        rows: sequences written at a time, where all at once need too much memory; rounded to whole prompts.

    Raises:
        DataError: a prompt is empty, or random numbers are given for another number of prompts.
        NeedsError: the policy asks another number of models, a model has no logits, or its parameters are sharded.
    """
    policy = Alone() if policy is None else policy
    asked = (models,) if isinstance(models, nn.Module) else tuple(models)
    if len(asked) != policy.models:
        raise NeedsError(f"{type(policy).__name__} asks {policy.models} models, but {len(asked)} are given")
    if any(hasattr(p, "full_tensor") for model in asked for p in model.parameters()):
        raise NeedsError(
            "a model whose parameters lie in parts on several processes cannot write: sequences of different lengths "
            "would leave processes waiting for each other; set train.sharding to ddp"
        )
    types = autocast if isinstance(autocast, Sequence) else [autocast] * len(asked)
    count, longest = len(prompts.ids), sampling.max_new_tokens
    numbers = _numbers(draws, sampling, count, samples, policy.numbers)
    allowed = torch.full((count,), longest) if limits is None else limits.cpu().clamp(0, longest)
    writer = _Writer(policy, sampling, torch.tensor(sorted(ends), dtype=torch.long, device=prompts.ids.device))
    parts = []
    started = time.perf_counter()
    with evaluation_mode(*asked), _casts_kept(prompts.ids.device.type, types):
        decoders = [decoder(m, vocabulary=vocabulary, autocast=a) for m, a in zip(asked, types)]
        step = count if rows is None else max(rows // samples, 1)
        for first in range(0, count, step):
            here = slice(first * samples, (first + step) * samples)
            part = prompts.rows(first, first + step)
            parts.append(writer.write(decoders, part, samples, allowed[first : first + step], numbers[here]))
    return _joined(parts, time.perf_counter() - started)


def _casts_kept(device: str, types: Sequence[torch.dtype | None]) -> AbstractContextManager[object]:
    """Lets what autocast makes of weights serve for all tokens: it is forgotten where the outermost context ends."""
    one = len({kind for kind in types if kind is not None}) == 1
    return torch.autocast(device, enabled=False) if one else nullcontext()


def _numbers(draws: Draws | None, sampling: Sampling, count: int, samples: int, numbers: int) -> Tensor:
    shape = (samples, sampling.max_new_tokens, numbers)
    if draws is None:
        if not sampling.greedy:
            raise DataError("tokens are drawn at random, so say from which stream: give draws, or set greedy")
        return torch.zeros(count * samples, *shape[1:], dtype=torch.float64)
    if len(draws.index) != count:
        raise DataError(f"there are {count} prompts, but draws names {len(draws.index)} samples")
    return draws.uniform(*shape)


@dataclass(frozen=True)
class _Writer:
    """Writes one batch of sequences to their ends."""

    policy: Policy
    sampling: Sampling
    ends: Tensor

    def write(
        self, decoders: Sequence[Decoder], prompts: Prompts, samples: int, limits: Tensor, numbers: Tensor
    ) -> Generated:
        """Returns what was written; ``seconds`` is not known here."""
        device = prompts.ids.device
        allowed = limits.repeat_interleave(samples).to(device)
        uniform = numbers.to(device)
        page = _Page(len(allowed), int(allowed.max()))
        logits = [d.start(prompts.ids, prompts.mask, samples, max(page.width - 1, 0)) for d in decoders]
        alive = (allowed > 0).nonzero()[:, 0]
        if len(alive) < len(allowed):
            _keep(decoders, alive)
            logits = [side[alive] for side in logits]
        for position in range(page.width):
            chosen = self.policy.choose(logits, uniform[alive, position], self.sampling)
            ends_here = (chosen.tokens.unsqueeze(1) == self.ends).any(1)
            page.put(alive, chosen, ends_here)
            rows = _going(~ends_here & (position + 1 < allowed[alive]))
            if not len(rows):
                break
            tokens = chosen.tokens[rows]
            if len(rows) < len(alive):
                alive = alive[rows]
                _keep(decoders, rows)
            logits = [d.step(tokens) for d in decoders]
        return page.read(logits[0])


def _going(goes_on: Tensor) -> Tensor:
    """Returns the rows that go on, the last of them in the places of those that do not, so that few move."""
    rows = goes_on.nonzero()[:, 0]
    count = len(rows)
    if count == len(goes_on):
        return rows
    gaps = (~goes_on[:count]).nonzero()[:, 0]
    found = torch.arange(count, device=rows.device)
    found[gaps] = rows[count - len(gaps) :]
    return found


def _keep(decoders: Sequence[Decoder], rows: Tensor) -> None:
    for one in decoders:
        one.keep(rows)


class _Page:
    """What has been written so far, a token of each sequence that goes on at a time.

    Args:
        rows: number of sequences.
        width: tokens of the longest that can come.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        self._written: list[tuple[Tensor, Chosen, Tensor]] = []

    def put(self, rows: Tensor, chosen: Chosen, ended: Tensor) -> None:
        """Writes the next token into some rows."""
        self._written.append((rows, chosen, ended))

    def read(self, like: Tensor) -> Generated:
        """Returns what was written, log-probabilities in the type of ``like``."""
        device, width = like.device, len(self._written)
        shape = (self.rows, width)
        tokens = torch.zeros(shape, dtype=torch.long, device=device)
        accepted = torch.zeros(shape, dtype=torch.bool, device=device)
        logprobs, proposed = like.new_zeros(2, *shape)
        lengths = torch.zeros(self.rows, dtype=torch.long, device=device)
        ended = torch.zeros(self.rows, dtype=torch.bool, device=device)
        if self._written:
            steps, chosen, ends = zip(*self._written)
            rows = torch.cat(steps)
            counts = torch.tensor([len(step) for step in steps], device=device)
            at = (rows, torch.arange(width, device=device).repeat_interleave(counts))
            parts = [torch.cat(column) for column in zip(*chosen)]
            tokens[at], accepted[at] = parts[0], parts[3]
            logprobs[at], proposed[at] = parts[1].to(like), parts[2].to(like)
            lengths = torch.bincount(rows, minlength=self.rows)
            ended[rows[torch.cat(ends)]] = True
        return Generated(tokens, lengths, logprobs, proposed, accepted, ended, 0.0)


def _joined(parts: Sequence[Generated], seconds: float) -> Generated:
    width = max(p.tokens.shape[1] for p in parts)

    def rows(name: str) -> Tensor:
        tensors = [getattr(p, name) for p in parts]
        return torch.cat([nn.functional.pad(t, (0, width - t.shape[1])) if t.dim() > 1 else t for t in tensors])

    names = ("tokens", "lengths", "logprobs", "proposal_logprobs", "accepted", "ended")
    return Generated(**{name: rows(name) for name in names}, seconds=seconds)
