"""One text as two tokenizers see it: what methods across tokenizers read of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.policy import reward_to_go
from limbeck.functional.spans import span_count, span_lengths, span_places, span_sums
from limbeck.functional.token_losses import TargetLogits
from limbeck.methods.sequence.base import logits_by_rows
from limbeck.signals import Batch, Signals

ENTRIES = frozenset({"spans", "teacher_labels", "teacher_mask", "teacher_spans"})
"""Entries of a batch in which the teacher reads other tokens; without them both read the same."""


@dataclass(frozen=True)
class TextPair:
    """The tokens to predict on both sides, and the spans of text that both cut out.

    Attributes:
        labels: ``[B, T]`` tokens that the student predicts.
        mask: ``[B, T]`` which of them count.
        spans: ``[B, T]`` number of each one's span in its row, -1 where it has none.
        teacher_labels: ``[B, T']`` tokens that the teacher predicts.
        teacher_mask: ``[B, T']`` which of them count.
        teacher_spans: ``[B, T']`` their spans, numbered as the student's.
        same: whether both read the same tokens.
    """

    labels: Tensor
    mask: Tensor
    spans: Tensor
    teacher_labels: Tensor
    teacher_mask: Tensor
    teacher_spans: Tensor
    same: bool

    @property
    def count(self) -> int:
        """Number of spans that the longest row has."""
        return span_count(self.spans, self.teacher_spans)

    def there(self) -> Tensor:
        """Returns which spans there are, ``[B, count]``."""
        count = self.count
        return (span_lengths(self.spans, count) > 0) & (span_lengths(self.teacher_spans, count) > 0)

    def in_order(self, *, skip_student_end: bool = False, skip_teacher_end: bool = False) -> TextPair:
        """Returns a pair in which the n-th token of one side goes with the n-th of the other, whatever they say.

        Args:
            skip_student_end: leave out the last token of every sequence of the student.
            skip_teacher_end: likewise of the teacher.
        """
        return replace(
            self,
            spans=_ranks(self.mask, skip_student_end),
            teacher_spans=_ranks(self.teacher_mask, skip_teacher_end),
        )

    def beginnings(self) -> tuple[Tensor, Tensor]:
        """Returns where both models predict the same span from its beginning, having read the same text.

        Returns:
            ``[B, T]`` bool, the student's positions, and ``[B, T]`` int64, the teacher's position for each of them.
        """
        return self._at(last=False)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Returns where both models predict the last token of the same span; otherwise as :meth:`beginnings`."""
        return self._at(last=True)

    def _at(self, *, last: bool) -> tuple[Tensor, Tensor]:
        count, there = self.count, self.there()
        ours = span_places(self.spans, count, last=last)
        theirs = span_places(self.teacher_spans, count, last=last)
        rows, numbers = there.nonzero(as_tuple=True)
        chosen = torch.zeros_like(self.mask, dtype=torch.bool)
        partner = torch.zeros_like(self.labels)
        places = ours[rows, numbers]
        chosen[rows, places] = True
        partner[rows, places] = theirs[rows, numbers]
        return chosen, partner


def text_pair(batch: Batch) -> TextPair:
    """Returns what both sides predict in a batch of text.

    Raises:
        NeedsError: the teacher reads other tokens, but nothing says which of them stand for the same text.
    """
    labels, mask = batch["labels"], batch["mask"].bool()
    missing = sorted(ENTRIES - set(batch))
    if len(missing) == len(ENTRIES):
        spans = _ranks(mask, False)
        return TextPair(labels, mask, spans, labels, mask, spans, same=True)
    if missing:
        raise NeedsError(
            f"the batch lacks {', '.join(missing)}, which say what the teacher's tokens stand for; "
            "limbeck.data.text.TeacherText adds them"
        )
    theirs = batch["teacher_labels"], batch["teacher_mask"].bool(), batch["teacher_spans"]
    return TextPair(labels, mask, batch["spans"], *theirs, same=False)


def rewards_to_go(pair: TextPair, ours: Tensor, theirs: Tensor, *, discount: float = 0.0) -> Tensor:
    """Returns for each token of the student the log-ratio of its span and, discounted, those of later ones, ``[B, T]``.

    By the chain rule a span's log-ratio is the sum over the teacher's tokens less that over the student's. All tokens
    of a span have a part in it; tokens without a span have none. Where both read the same tokens a span is a token.

    Args:
        pair: the text on both sides.
        ours: ``[B, T]`` log-probabilities of the student's tokens.
        theirs: ``[B, T']`` those that the teacher gives to its own.
        discount: what a later span counts, once more for every span in between; where both read the same tokens, for
            every position, also of tokens that do not count.
    """
    if pair.same:
        sums = reward_to_go(theirs - ours, pair.mask, discount=discount)
        return torch.where(pair.mask, sums, sums.new_zeros(()))
    count = pair.count
    gaps = span_sums(theirs, pair.teacher_spans, count) - span_sums(ours, pair.spans, count)
    sums = reward_to_go(gaps, pair.there(), discount=discount)
    found = sums.gather(1, pair.spans.clamp(min=0))
    return torch.where(pair.spans >= 0, found, found.new_zeros(()))


def _ranks(mask: Tensor, skip_last: bool) -> Tensor:
    """Returns the number of each token that counts among those of its row, -1 for others."""
    numbers = mask.long().cumsum(-1)
    kept = mask & (numbers < numbers[..., -1:]) if skip_last else mask
    return torch.where(kept, numbers - 1, -1)


def partner_logits(teacher: Signals, partner: Tensor) -> TargetLogits:
    """Returns what gives the teacher's logits ``[n, V']`` for rows of the student's positions.

    Args:
        teacher: hidden states with a head, or logits.
        partner: ``[B, T]`` the teacher's position for each of the student's.
    """
    logits_of, shape = logits_by_rows(teacher, "teacher")
    places = partner_places(partner, shape[-1]).reshape(-1)
    return lambda rows: logits_of(places[rows])


def partner_places(partner: Tensor, length: int) -> Tensor:
    """Returns ``[B, T]`` numbers of the teacher's positions over all rows, of which each has ``length``."""
    return torch.arange(len(partner), device=partner.device).unsqueeze(-1) * length + partner
