"""GOLD: distributions of spans of text, compared token by token where both vocabularies have the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.errors import NeedsError
from limbeck.functional.divergence_registry import divergence
from limbeck.functional.loss_head import chunk_rows
from limbeck.functional.reduction import widened
from limbeck.functional.shared_vocabulary import SharedTokens, hybrid_losses, shared_tokens
from limbeck.functional.spans import span_sums
from limbeck.functional.token_losses import TargetLogits, rows_of
from limbeck.hyperparameters import Fraction, NonNegative, Positive
from limbeck.methods.base import Needs, Setup, register
from limbeck.methods.sequence.base import (
    DENSE_TARGET,
    STUDENT,
    Average,
    SequenceMethod,
    vocabulary_of,
)
from limbeck.methods.sequence.text_pair import ENTRIES, TextPair, partner_logits, partner_places, text_pair
from limbeck.signals import Batch, Signals, Terms


@register(
    "gold",
    title="Unlocking On-Policy Distillation for Any Model Family",
    authors="Carlos Miguel Patiño and Kashif Rasul and Quentin Gallouédec and Ben Burtenshaw and Sergio Paniego and"
    " Vaibhav Srivastav and Thibaud Frere and Ed Beeching and Lewis Tunstall and Leandro von Werra and Thomas Wolf",
    paper="https://huggingface.co/spaces/HuggingFaceH4/on-policy-distillation",
    year=2025,
    family="sequence",
    equation=r"L = \frac{1}{N} \sum_n w\,\mathrm{JSD}_\beta(P_n, Q_n)\big|_{V_p \cap V_q} + (1-w) \sum_i"
    r" \big|P_{n,(i)} - Q_{n,(i)}\big|_{V_p \triangle V_q}, \qquad Q_n(v) = q(v \mid y_{<k}) \prod_{j<k} q(y_j \mid"
    r" y_{<j})",
)
class GOLD(SequenceMethod):
    """Compares two models with different tokenizers on the spans of text between common boundaries.

    By the chain rule a model gives a span the product of its tokens' probabilities. All of them but the last are those
    of the text itself; the last is left open, which makes a distribution over the vocabulary, scaled by the product of
    the others. Tokens with the same bytes in both vocabularies are compared one by one, all others by their sorted
    probabilities. Where both tokenizers are one this is GKD's divergence.

    On data or on the student's samples; the cross-entropy is another method beside it, `methods: [gold, sft]`.

    Terms:
        shared: generalised Jensen-Shannon divergence over tokens with the same bytes.
        rest: distance of sorted probabilities over the other tokens.

    Deviations: TRL matches tokens by their strings, in which a space is written differently by every family of
    tokenizers; here it is by their bytes. Its default, ``observed``, keeps the first distribution of a span open
    instead of the last, though later tokens are then not those that it predicts (``open: first``), and reads
    distributions one place late, which is not offered. ``open: start`` compares the first distributions of a span
    without any product.

    Args:
        beta: weight of the teacher in the mixture; 0 is forward, 1 reverse KL.
        open: which distribution of a span is left open, its ``last`` or ``first``; or ``start``, the first alone.
        shared_weight: weight of ``shared``; the part of the teacher's vocabulary that is shared when None.
        rest_weight: weight of ``rest``; what is left to 1 when None.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's logits.
        average: ``token_mean`` over all spans of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={DENSE_TARGET}, batch={"labels", "mask"})
    optional_entries = ENTRIES

    def __init__(
        self,
        *,
        beta: Fraction = 0.5,
        open: Literal["last", "first", "start"] = "last",
        shared_weight: NonNegative | None = None,
        rest_weight: NonNegative | None = None,
        student_temperature: Positive = 1.0,
        teacher_temperature: Positive = 1.0,
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.divergence = divergence("jsd", beta=beta)
        self.open = open
        self.given = shared_weight, rest_weight
        self.temperatures = student_temperature, teacher_temperature
        self.average = average
        self.weights = {"shared": 1.0, "rest": 0.0}
        self.tokens: SharedTokens | None = None

    def build(self, setup: Setup) -> None:
        """Takes which tokens both vocabularies have, and weighs them where the recipe does not.

        Raises:
            NeedsError: the vocabularies differ, but nothing says which tokens are the same.
        """
        ours, theirs = (vocabulary_of(setup.signals[role]) for role in ("student", "teacher"))
        assert ours is not None
        assert theirs is not None
        mapped = setup.token_map
        if mapped is None and ours != theirs:
            raise NeedsError(
                f"the teacher's vocabulary has {theirs} tokens, the student's {ours}, and nothing says which are the "
                "same; name the teacher's tokenizer in data.options.teacher_tokenizer"
            )
        self.tokens = shared_tokens(torch.arange(ours) if mapped is None else mapped.cpu(), ours)
        share, rest = self.given
        share = self.tokens.fraction if share is None else share
        self.weights |= {"shared": share, "rest": max(1.0 - share, 0.0) if rest is None else rest}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``shared`` and ``rest``."""
        pair = text_pair(batch)
        chosen, partner = pair.ends() if self.open == "last" else pair.beginnings()
        spans = self._spans(pair, student, teacher, chosen, partner)
        values = [torch.zeros_like(chosen, dtype=part.dtype).masked_scatter(chosen, part) for part in spans]
        return {name: self.averaged(part, chosen) for name, part in zip(("shared", "rest"), values)}

    def _spans(
        self, pair: TextPair, student: Signals, teacher: Signals, chosen: Tensor, partner: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns both losses of every span, ``[n]``, a few rows of the vocabulary at a time."""
        assert self.tokens is not None, "build() comes first"
        ours, theirs = self._products(pair, student, teacher)
        rows = chosen.reshape(-1).nonzero().squeeze(-1)
        # Half-precision states and heads are widened once, and not in every chunk.
        wide = Signals(student.logits, hidden=None if student.hidden is None else student.hidden.map(widened))
        arithmetic = _Spans(self, wide, partner_logits(teacher, partner), self.tokens.to(rows.device))
        teacher_rows = partner_places(partner, theirs.shape[1])
        log_ours = ours.reshape(-1)[rows]
        log_theirs = theirs.reshape(-1)[teacher_rows.reshape(-1)[rows]]
        found = [
            checkpoint(arithmetic, part, log_ours[place], log_theirs[place], use_reentrant=False)
            for place, part in zip(*_chunks(rows, arithmetic.row_bytes))
        ]
        return torch.cat([shared for shared, _ in found]), torch.cat([rest for _, rest in found])

    def _products(self, pair: TextPair, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """Returns the log-probability of the other tokens of each token's span, on both sides, 0 where it has none."""
        if self.open == "start" or pair.same:
            return tuple(torch.zeros_like(side, dtype=torch.float32) for side in (pair.labels, pair.teacher_labels))  # type: ignore[return-value]
        count = pair.count
        ours = self._own(student, pair.labels, pair.spans, self.temperatures[0], count)
        with torch.no_grad():
            theirs = self._own(teacher, pair.teacher_labels, pair.teacher_spans, self.temperatures[1], count)
        return ours, theirs

    def _own(self, role: Signals, labels: Tensor, spans: Tensor, temperature: float, count: int) -> Tensor:
        values = self.label_log_probabilities(role, labels, spans >= 0, temperature=temperature)
        sums = span_sums(values, spans, count).gather(1, spans.clamp(min=0))
        return torch.where(spans >= 0, sums - values, 0.0)


@dataclass(frozen=True)
class _Spans:
    """The losses of some spans from the hidden states or logits at their open places."""

    method: GOLD
    student: Signals
    teacher_logits: TargetLogits
    tokens: SharedTokens

    @property
    def row_bytes(self) -> int:
        """Bytes of a row over the larger vocabulary in float32."""
        return 4 * max(sum(map(len, self.tokens[0::2])), sum(map(len, self.tokens[1::2])), 1)

    def __call__(self, rows: Tensor, log_ours: Tensor, log_theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both losses of positions ``rows`` ``[n]``, whose spans have the given other log-probabilities."""
        ours, theirs = self.method.temperatures
        with torch.no_grad():
            log_p = (widened(self.teacher_logits(rows)) / theirs).log_softmax(-1) + log_theirs.unsqueeze(-1)
        hidden, logits = self.student.hidden, self.student.logits
        if hidden is not None:
            scores = hidden.head(rows_of(hidden.states, rows))
        else:
            assert logits is not None
            scores = rows_of(logits, rows)
        log_q = (widened(scores) / ours).log_softmax(-1) + log_ours.unsqueeze(-1)
        return tuple(hybrid_losses(log_p, log_q, self.tokens, self.method.divergence))  # type: ignore[return-value]


def _chunks(rows: Tensor, row_bytes: int) -> tuple[list[slice], list[Tensor]]:
    """Cuts rows so that a chunk's logits are of the usual size; at least one chunk, which may be empty."""
    size = chunk_rows(row_bytes)
    places = [slice(start, start + size) for start in range(0, max(len(rows), 1), size)]
    return places, [rows[place] for place in places]
