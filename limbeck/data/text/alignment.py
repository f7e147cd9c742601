"""The same text in the tokens of two tokenizers, aligned by bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from limbeck.data.text.encoding import Encoded, encode_example
from limbeck.data.text.examples import Chat
from limbeck.data.text.token_bytes import TokenBytes
from limbeck.functional.spans import NO_SPAN, common_spans

_INVALID = re.compile("[\udc80-\udcff]+")


@dataclass
class Aligned:
    """A sequence of the student's, the same text in the teacher's tokens, and the spans that both cut out.

    Attributes:
        spans: ``[n]`` span of each token of the student, -1 where it has none.
        teacher_ids: the teacher's tokens.
        teacher_learn: which of them stand for text that is to be learnt.
        teacher_spans: the span of each.
        count: number of spans.
    """

    spans: np.ndarray
    teacher_ids: list[int] = field(default_factory=list)
    teacher_learn: list[bool] = field(default_factory=list)
    teacher_spans: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, ids: np.ndarray | list[int], learn: np.ndarray | list[bool]) -> slice:
        """Adds tokens of the teacher, and returns where they are."""
        start = len(self.teacher_ids)
        self.teacher_ids += map(int, ids)
        self.teacher_learn += map(bool, learn)
        self.teacher_spans += [NO_SPAN] * len(ids)
        return slice(start, len(self.teacher_ids))

    def match(self, ours: np.ndarray, theirs: np.ndarray, good: np.ndarray, exact: np.ndarray) -> None:
        """Numbers spans of some tokens on both sides, those that no token on either side forbids.

        Args:
            ours: ``[2, a]`` places of the student's tokens, and spans among themselves.
            theirs: ``[2, b]`` likewise of the teacher's.
            good: ``[a]`` whether a token of the student may be compared.
            exact: ``[b]`` likewise of the teacher.
        """
        bad = {NO_SPAN, *ours[1][~good].tolist(), *theirs[1][~exact].tolist()}
        shared = sorted((set(ours[1].tolist()) & set(theirs[1].tolist())) - bad)
        numbers = {span: self.count + n for n, span in enumerate(shared)}
        for place, span in ours.T.tolist():
            self.spans[place] = numbers.get(span, NO_SPAN)
        for place, span in theirs.T.tolist():
            self.teacher_spans[place] = numbers.get(span, NO_SPAN)
        self.count += len(shared)


class _Text(NamedTuple):
    """A run of the student's tokens as text.

    Attributes:
        text: what they say, where bytes are no text a replacement character, or nothing at both ends.
        ends: ``[n]`` bytes of ``text`` up to the end of each token.
        valid: ``[n]`` whether a token says nothing but text.
    """

    text: str
    ends: np.ndarray
    valid: np.ndarray


def readable(told: bytes, ends: np.ndarray) -> _Text:
    r"""Returns bytes as text, with the ends of tokens in it; a cut or a sampled sequence may hold parts of characters.

    Example:
        >>> readable(b"\xa9 a", np.array([1, 3])).text, readable(b"\xa9 a", np.array([1, 3])).valid.tolist()
        (' a', [False, True])
    """
    loose = told.decode("utf-8", "surrogateescape")
    found = list(_INVALID.finditer(loose))
    valid = np.ones(len(ends), bool)
    if not found:
        return _Text(loose, ends, valid)
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    moved, shift, text, read = ends.copy(), 0, "", 0
    for part in found:
        before = loose[read : part.start()]
        text += before
        first = len(loose[: part.start()].encode("utf-8", "surrogateescape"))
        last = first + len(part[0])
        kept = "" if part.start() == 0 or part.end() == len(loose) else "\ufffd"
        valid &= (ends <= first) | (starts >= last)
        # Places inside are moved to the beginning of what stands for the part, and all after it along with its end.
        inside = (ends > first) & (ends < last)
        moved[inside] = first + shift
        shift += len(kept.encode()) - len(part[0])
        moved[ends >= last] = ends[ends >= last] + shift
        text, read = text + kept, part.end()
    return _Text(text + loose[read:], np.maximum.accumulate(moved), valid)


class Aligner:
    """Writes what a student reads in the tokens of its teacher, and says which of them stand for the same bytes.

    Text is cut anew; where the student's sequence goes from what is given to what is to be learnt, the teacher's does
    too, unless its tokenizer would put a space there. Special tokens are no text: the one that ends a sequence
    corresponds to the teacher's, one that begins it is replaced by what the teacher's tokenizer puts there, and others
    are left out. A conversation is written in the teacher's own chat template.

    A span is compared only where all its bytes are text, stand for themselves on both sides, and are predicted and to
    be learnt. All others have the number -1; nothing is compared that is not the same.

    Args:
        student: bytes of the student's tokens.
        teacher: bytes of the teacher's.
        limit: most tokens that the teacher reads of a sequence; what lies behind is not compared. None for no limit.
    """

    def __init__(self, student: TokenBytes, teacher: TokenBytes, *, limit: int | None = None) -> None:
        self.student, self.teacher, self.limit = student, teacher, limit

    def align(self, ids: np.ndarray, learn: np.ndarray, *, chat: Chat | None = None, sampled: bool = False) -> Aligned:
        """Returns a sequence in the teacher's tokens.

        Args:
            ids: ``[n]`` the student's tokens.
            learn: ``[n]`` which of them are to be predicted.
            chat: the conversation that this is, or whose prompt it begins with.
            sampled: whether what is to be learnt was written by a model, and is not the conversation's.

        Raises:
            DataError: the teacher's chat template refuses the conversation.
        """
        learn = learn & (np.arange(len(ids)) > 0)
        found = Aligned(np.full(len(ids), NO_SPAN, np.int64))
        written = None if chat is None else encode_example(chat, self.teacher.tokenizer)
        if written is None:
            found.add(self.teacher.beginning, [False] * len(self.teacher.beginning))
            self._write(found, ids, learn, 0, self.teacher.tokenizer.eos_id)
        elif sampled:
            start = int(learn.argmax()) if learn.any() else len(ids)
            first = int(written.learn.argmax())
            found.add(written.ids[:first], np.zeros(first, bool))
            ends = [i for i, piece in zip(written.ids, self.teacher.of(written.ids)) if piece is None]
            last = ends[-1] if ends else self.teacher.tokenizer.eos_id
            self._write(found, ids, learn, start, int(last))
        else:
            found.add(written.ids, written.learn & (np.arange(len(written)) > 0))
            self._match_turns(found, ids, learn, written)
        return found if self.limit is None else _cut(found, self.limit + 1)

    def _write(self, found: Aligned, ids: np.ndarray, learn: np.ndarray, start: int, end: int) -> None:
        """Writes the student's tokens from ``start`` on for the teacher; ``end`` is what ends a sequence there."""
        silence = self.student.silent(ids)
        for first, last, silent in _runs(silence, learn, start, merge=self.teacher.adds_space):
            if not silent:
                self._write_text(found, ids, learn, slice(first, last))
            elif first > 0 and (learn[first] or int(ids[first]) == self.student.tokenizer.eos_id):
                # A student may end a turn with a token of its chat template's.
                place = found.add([end], [learn[first]])
                span = np.zeros(1, np.int64)
                self._note(found, np.array([first]), place, (span, span), learn[first : first + 1], np.ones(1, bool))

    def _write_text(self, found: Aligned, ids: np.ndarray, learn: np.ndarray, run: slice) -> None:
        told, ends = self.student.read(ids[run], first=bool(self.student.silent(ids[: run.start]).all()))
        text = readable(told, ends)
        cut = self.teacher.cut(text.text, first=found.teacher_ids == self.teacher.beginning)
        starts = np.concatenate([[0], cut.ends[:-1]]) if len(cut.ends) else cut.ends
        own = np.concatenate([[0], text.ends[:-1]])[learn[run]]
        learnt = starts >= own[0] if len(own) else np.zeros(len(starts), bool)
        place = found.add(cut.ids, learnt)
        spans = common_spans(text.ends, cut.ends)
        # Parts of characters at both ends of a sequence are left out of the text, and of its spans.
        outside = ~text.valid & (np.diff(text.ends, prepend=0) == 0)
        ours = np.where(outside, NO_SPAN, spans.first)
        places = np.arange(run.start, run.stop)
        self._note(found, places, place, (ours, spans.second), text.valid & learn[run], cut.exact)

    def _note(
        self,
        found: Aligned,
        places: np.ndarray,
        theirs: slice,
        spans: tuple[np.ndarray, np.ndarray],
        good: np.ndarray,
        exact: np.ndarray,
    ) -> None:
        """Notes spans of tokens at ``places`` and ``theirs``; nothing predicts the first token of a sequence."""
        there = np.arange(theirs.start, theirs.stop)
        found.match(np.stack([places, spans[0]]), np.stack([there, spans[1]]), good, exact & (there > 0))

    def _match_turns(self, found: Aligned, ids: np.ndarray, learn: np.ndarray, written: Encoded) -> None:
        """Matches what the assistant says, turn by turn, and the tokens that end its turns."""
        ours, theirs = _stretches(learn), _stretches(written.learn)
        for mine, other in zip(ours, theirs):
            self._match_turn(found, np.arange(*mine), np.arange(*other), ids, written.ids)

    def _match_turn(
        self, found: Aligned, mine: np.ndarray, other: np.ndarray, ids: np.ndarray, teacher_ids: np.ndarray
    ) -> None:
        sides = []
        for tokens, places, side in ((ids, mine, self.student), (teacher_ids, other, self.teacher)):
            spoken = ~side.silent(tokens[places])
            told, ends = side.read(tokens[places[spoken]])
            sides.append((places[spoken], told, ends, places[~spoken]))
        (places, told, ends, silent), (there, other_told, other_ends, other_silent) = sides
        ours, theirs = _without_margins(told, ends), _without_margins(other_told, other_ends)
        # A sequence that was cut says the beginning of a turn.
        if ours[0].startswith(theirs[0]) or theirs[0].startswith(ours[0]):
            spans = common_spans(ours[1], theirs[1])
            found.match(
                np.stack([places, np.where(ours[3], spans.first, NO_SPAN)]),
                np.stack([there, np.where(theirs[3], spans.second, NO_SPAN)]),
                ours[2], theirs[2],
            )  # fmt: skip
        if len(silent) == len(other_silent) == 1:
            one = np.zeros(1, np.int64)
            found.match(np.stack([silent, one]), np.stack([other_silent, one]), np.ones(1, bool), np.ones(1, bool))


def _runs(silent: np.ndarray, learn: np.ndarray, start: int, *, merge: bool) -> Iterator[tuple[int, int, bool]]:
    """Yields runs of tokens: text that is given or that is to be learnt, and single special tokens.

    Args:
        silent: which tokens are special.
        learn: which tokens are to be learnt.
        start: the first token to look at.
        merge: keep text together whether it is given or to be learnt.
    """
    first = start
    for number in range(start, len(silent)):
        after = number + 1
        border = after == len(silent) or silent[after]
        # Nothing predicts the first token of a sequence, so that it is never learnt; it is no border of the text.
        border = border or (not merge and number > 0 and learn[after] != learn[number])
        if silent[number] or border:
            yield first, after, bool(silent[number])
            first = after


def _stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """Returns the stretches ``[start, stop)`` in which flags are true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int64), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _without_margins(told: bytes, ends: np.ndarray) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
    """Returns text without the white space around it, which templates treat in their own ways.

    Returns:
        The text, the ends of tokens in it, which tokens lie wholly in it, and which touch it at all.
    """
    lead = len(told) - len(told.lstrip())
    text = told.strip()
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    inside = (starts >= lead) & (ends <= lead + len(text))
    touching = (ends > lead) & (starts < lead + len(text))
    return text, np.clip(ends - lead, 0, len(text)), inside, touching


def _cut(found: Aligned, length: int) -> Aligned:
    """Returns what is left of a sequence of which the teacher reads no more than ``length`` tokens."""
    if len(found.teacher_ids) <= length:
        return found
    gone = set(found.teacher_spans[length:]) - {NO_SPAN}
    keep = {span: n for n, span in enumerate(s for s in range(found.count) if s not in gone)}
    return Aligned(
        np.array([keep.get(s, NO_SPAN) for s in found.spans.tolist()], np.int64),
        found.teacher_ids[:length],
        found.teacher_learn[:length],
        [keep.get(s, NO_SPAN) for s in found.teacher_spans[:length]],
        len(keep),
    )
