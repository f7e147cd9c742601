"""Batches of text as single sequences, and back: where prompts end, and what was written after them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from limbeck.data.text.encoding import Encoded
from limbeck.data.text.loader import collate
from limbeck.errors import DataError
from limbeck.generation import Generated
from limbeck.signals import Batch

_MULTIPLE = 8
_TEXT = frozenset({"inputs", "labels", "mask", "completion", "index"})


@dataclass(frozen=True)
class Row:
    """One sequence of a batch of data.

    Attributes:
        tokens: its tokens, and which of them are to be learnt.
        index: number of its sample.
        entries: what else the batch holds of it.
    """

    tokens: Encoded
    index: int
    entries: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A sequence that a model wrote.

    Attributes:
        ids: ``[P + n]`` int64, prompt and completion.
        prompt: number of tokens of the prompt.
        index: number of the sample whose prompt it is.
        draw: number among the completions of that prompt.
        born: optimizer steps that the student had taken when it was written.
        logprobs: ``[n]`` of each token under the policy as it is; :class:`limbeck.generation.Generated` says more.
        proposal_logprobs: ``[n]`` with which each token was drawn.
        accepted: ``[n]`` bool, which tokens are the student's own.
        ended: whether an end token ended it.
        entries: what else the batch holds of its sample.
        reward: what it is worth, once a reward has judged it.
    """

    ids: Tensor
    prompt: int
    index: int
    draw: int
    born: int
    logprobs: Tensor
    proposal_logprobs: Tensor
    accepted: Tensor
    ended: bool
    entries: Mapping[str, Tensor] = field(default_factory=dict)
    reward: float | None = None

    @property
    def completion(self) -> Tensor:
        """``[n]`` what was written, the end token included."""
        return self.ids[self.prompt :]

    def encoded(self) -> Encoded:
        """Returns its tokens, those of the completion to be learnt."""
        ids = self.ids.numpy()
        return Encoded(ids, np.arange(len(ids)) >= self.prompt, self.prompt)


def rows_of(batch: Batch) -> list[Row]:
    """Returns the sequences of a batch of text.

    Raises:
        DataError: several sequences share a row, or the batch holds what belongs to its very completions.
    """
    inputs = batch["inputs"]
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise DataError("rollouts continue text, but the inputs of this batch are no tokens; set task: causal-lm")
    if "segment_ids" in inputs:
        raise DataError("rollouts need one sequence a row; set data.options.packed to false")
    bound = [key for key in batch if key.endswith("_inputs") or key == "views"]
    if bound:
        raise DataError(
            f"'{bound[0]}' belongs to the completions of the data, which a rollout replaces; put the transform that "
            "makes it after rollout, or choose a data set without it"
        )
    ids, labels, mask = inputs["input_ids"].cpu(), batch["labels"].cpu(), batch["mask"].cpu().bool()
    lengths = inputs["attention_mask"].sum(-1).tolist()
    further = {k: v for k, v in batch.items() if k not in _TEXT and isinstance(v, Tensor) and len(v) == len(ids)}
    rows = []
    for number, (length, index) in enumerate(zip(lengths, batch["index"].tolist())):
        tokens = _sequence(ids[number, :length], labels[number, :length], mask[number, :length])
        rows.append(Row(tokens, index, {key: value[number].cpu() for key, value in further.items()}))
    return rows


def _sequence(ids: Tensor, labels: Tensor, mask: Tensor) -> Encoded:
    """Returns a sequence with its last token, which is predicted and never read, where it is to be learnt."""
    last = labels[-1:] if bool(mask[-1]) else labels[:0]
    whole = torch.cat([ids, last]).numpy()
    learn = np.concatenate([[False], mask.numpy()])[: len(whole)]
    starts = np.flatnonzero(learn[1:] & ~learn[:-1]) + 1
    # The last turn of a conversation is what a student answers; of running text everything is to be learnt.
    return Encoded(whole, learn, int(starts[-1]) if len(starts) else len(ids))


def prompt_of(row: Row, prompt_tokens: int | None) -> np.ndarray:
    """Returns the tokens of a row before its (last) completion, or the first of running text.

    Raises:
        DataError: it is running text, and nobody says how much of it is the prompt.
    """
    tokens = row.tokens
    if tokens.prompt > 1:
        return tokens.ids[: tokens.prompt]
    if prompt_tokens is None:
        raise DataError(
            f"sample {row.index} is running text without a prompt, so nothing says where the student should go on; "
            "set `prompt_tokens` of the transform rollout, for example 16, or give data with prompts"
        )
    return tokens.ids[: min(prompt_tokens, len(tokens.ids) - 1)]


def written_rows(
    found: Generated, rows: Sequence[Row], prompts: Sequence[np.ndarray], born: int
) -> list[list[Written]]:
    """Returns what was written after the prompts of rows, the completions of a prompt together."""
    samples = len(found.lengths) // len(rows)
    columns = [t.cpu() for t in (found.tokens, found.logprobs, found.proposal_logprobs, found.accepted)]
    lengths, ended = found.lengths.tolist(), found.ended.tolist()
    groups = []
    for number, (row, prompt) in enumerate(zip(rows, prompts)):
        group = []
        for draw in range(samples):
            place = number * samples + draw
            new, own, drawn, accepted = (c[place, : lengths[place]].clone() for c in columns)
            ids = torch.cat([torch.from_numpy(prompt).to(new), new])
            group.append(
                Written(ids, len(prompt), row.index, draw, born, own, drawn, accepted, bool(ended[place]), row.entries)
            )
        groups.append(group)
    return groups


def batch_of(rows: Sequence[Row | Written], like: Batch, *, pad_id: int, step: int, own: bool) -> Batch:
    """Returns a batch of sequences of the data and of sequences that were written.

    Args:
        rows: the sequences.
        like: the batch whose place it takes; gives the device, and entries that belong to no sample.
        pad_id: id that fills rows.
        step: optimizer steps taken, from which policies have their age.
        own: whether what was written is the student's, wholly or partly, so that it is no label to learn from.
    """
    encoded = [row.encoded() if isinstance(row, Written) else row.tokens for row in rows]
    width = -(-max(len(e) - 1 for e in encoded) // _MULTIPLE) * _MULTIPLE
    batch = collate([[e] for e in encoded], width, pad_id=pad_id)
    batch["index"] = torch.tensor([row.index for row in rows])
    for key in rows[0].entries:
        if all(key in row.entries for row in rows):
            batch[key] = torch.stack([row.entries[key] for row in rows])
    batch["on_policy"] = torch.tensor([own and isinstance(row, Written) for row in rows])
    batch["policy_age"] = torch.tensor([step - row.born if isinstance(row, Written) else 0 for row in rows])
    written = [row for row in rows if isinstance(row, Written)]
    if len(written) == len(rows):
        batch["proposal_logprobs"] = _placed((w.proposal_logprobs for w in written), written, width)
        if own:
            batch["sampler_logprobs"] = _placed((w.logprobs for w in written), written, width)
    kept: dict[str, Any] = {k: v for k, v in like.items() if not isinstance(v, (Tensor, Mapping))}
    return Batch({**kept, **batch}).to(like["labels"].device)


def _placed(values: Iterable[Tensor], rows: Sequence[Written], width: int) -> Tensor:
    """Returns ``[B, width]`` with the values of completions where their tokens are predicted."""
    return torch.stack([pad(v, (row.prompt - 1, width - row.prompt + 1 - len(v))) for v, row in zip(values, rows)])
