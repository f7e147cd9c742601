"""Batches in which the teacher reads the text in tokens of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from limbeck.data.text.alignment import Aligned, Aligner
from limbeck.data.text.encoding import Encoded
from limbeck.data.text.examples import Chat
from limbeck.data.text.loader import collate
from limbeck.data.text.token_bytes import TokenBytes, token_map
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError
from limbeck.functional.spans import NO_SPAN
from limbeck.signals import Batch

_MULTIPLE = 8
_REMEMBERED = 20_000


class RowSequence(NamedTuple):
    """One sequence of a row.

    Attributes:
        start: its first position.
        ids: ``[n]`` its tokens, the one that is predicted and never read among them where it is known.
        learn: ``[n]`` which are to be predicted.
    """

    start: int
    ids: np.ndarray
    learn: np.ndarray


def sequences_of(batch: Batch) -> list[list[RowSequence]]:
    """Returns the sequences of every row of a batch of text, whether they come from data or from a model."""
    inputs = batch["inputs"]
    ids, labels = inputs["input_ids"].cpu().numpy(), batch["labels"].cpu().numpy()
    seen = inputs["attention_mask"].cpu().numpy() > 0
    mask = batch["mask"].cpu().numpy()
    segments = inputs["segment_ids"].cpu().numpy() if "segment_ids" in inputs else seen.astype(np.int64)
    rows = []
    for row in range(len(ids)):
        found = []
        for number in range(1, int(segments[row].max(initial=0)) + 1):
            places = np.flatnonzero(segments[row] == number)
            if not len(places):
                continue
            last = labels[row, places[-1]]
            end = [last] if mask[row, places[-1]] else []
            learn = np.concatenate([[False], mask[row, places]])[: len(places) + len(end)]
            found.append(RowSequence(int(places[0]), np.concatenate([ids[row, places], end]).astype(np.int64), learn))
        rows.append(found)
    return rows


class TeacherText:
    """Adds to batches of text what a teacher with another tokenizer reads, and which tokens stand for the same bytes.

    It reads nothing but the batch, so text of the data and text that a model has just written are treated alike; it
    comes after what writes text. It adds

    - ``teacher_inputs``, ``teacher_labels``, ``teacher_mask`` ``[B, T']``: the text in the teacher's tokens, shifted as
      the student's; the teacher's chat template where the data are conversations;
    - ``spans`` ``[B, T]`` and ``teacher_spans`` ``[B, T']``: for every token to predict the number, in its row, of the
      shortest piece of text that both tokenizations cut out; -1 where a token belongs to none that can be compared.

    Args:
        student: the data's tokenizer.
        teacher: the teacher's.
        source: the data, whose conversations count; None where there are none.
        limit: most tokens that the teacher reads of a sequence.

    Attributes:
        token_map: ``[V']`` for each token of the teacher the student's with the same bytes, -1 where there is none.

    Raises:
        DataError: the tokens of one of them do not say which bytes they stand for.
    """

    changes = frozenset({"teacher_inputs", "teacher_labels", "teacher_mask", "spans", "teacher_spans"})

    def __init__(self, student: Tokenizer, teacher: Tokenizer, *, source: Any = None, limit: int | None = None) -> None:
        self.student, self.teacher = TokenBytes(student), TokenBytes(teacher)
        self._aligner = Aligner(self.student, self.teacher, limit=limit)
        self._source = source
        self._known: OrderedDict[tuple[Any, ...], Aligned] = OrderedDict()
        self.token_map = torch.from_numpy(token_map(self.student, self.teacher))

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with the teacher's text; the one given stays as it was.

        Raises:
            DataError: no token of the batch can be compared, or the teacher's template refuses a conversation.
        """
        rows = sequences_of(batch)
        sampled = batch["on_policy"].cpu().bool().tolist() if "on_policy" in batch else [False] * len(rows)
        aligned = [
            [(s, self._aligned(s, chat, own)) for s, chat in zip(row, self._chats(int(index), len(row)))]
            for row, own, index in zip(rows, sampled, batch["index"].tolist())
        ]
        if bool(batch["mask"].any()) and not any(a.count for row in aligned for _, a in row):
            raise DataError(
                f"no text of samples {batch['index'][:5].tolist()} can be compared: '{self.teacher.tokenizer.name}' "
                "changes it (lower case, other characters), or the turns that its chat template writes are others"
            )
        return Batch({**batch, **self._entries(batch, aligned)})

    def _aligned(self, sequence: RowSequence, chat: Chat | None, sampled: bool) -> Aligned:
        """Returns a sequence in the teacher's tokens; of those that come again (the data's) what was found before."""
        key = (sequence.ids.tobytes(), sequence.learn.tobytes(), chat, sampled)
        if key not in self._known:
            self._known[key] = self._aligner.align(sequence.ids, sequence.learn, chat=chat, sampled=sampled)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]

    def _chats(self, row: int, count: int) -> list[Chat | None]:
        """Returns the conversation of each sequence of a row."""
        if self._source is None:
            return [None] * count
        found = [getattr(self._source.sequences[n], "chat", None) for n in self._source.rows[row]]
        return [*found, *[None] * count][:count]

    def _entries(self, batch: Batch, aligned: Sequence[Sequence[tuple[RowSequence, Aligned]]]) -> Batch:
        packed = "segment_ids" in batch["inputs"]
        rows = [[_encoded(a) for _, a in row if len(a.teacher_ids) > 1] for row in aligned]
        longest = max((sum(len(s) - 1 for s in row) for row in rows), default=1)
        length = -(-max(longest, 1) // _MULTIPLE) * _MULTIPLE
        theirs = collate(rows, length, pad_id=self.teacher.tokenizer.pad_id, packed=packed)
        spans = np.full(tuple(batch["labels"].shape), NO_SPAN, np.int64)
        teacher_spans = np.full((len(rows), length), NO_SPAN, np.int64)
        for number, row in enumerate(aligned):
            shift, place = 0, 0
            for sequence, found in row:
                ours = found.spans[1:]
                spans[number, sequence.start : sequence.start + len(ours)] = np.where(ours >= 0, ours + shift, NO_SPAN)
                others = np.array(found.teacher_spans[1:], np.int64)
                teacher_spans[number, place : place + len(others)] = np.where(others >= 0, others + shift, NO_SPAN)
                shift, place = shift + found.count, place + len(others)
        entries = Batch(
            teacher_inputs=theirs["inputs"],
            teacher_labels=theirs["labels"],
            teacher_mask=theirs["mask"],
            spans=torch.from_numpy(spans),
            teacher_spans=torch.from_numpy(teacher_spans),
        )
        return entries.to(batch["labels"].device)


def _encoded(found: Aligned) -> Encoded:
    # What is compared is predicted, also where the text goes on that is to be learnt.
    learn = np.array(found.teacher_learn, bool) | (np.array(found.teacher_spans) >= 0)
    return Encoded(np.array(found.teacher_ids, np.int64), learn)
