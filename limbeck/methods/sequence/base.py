"""What methods for sequences share: losses of tokens in whatever form the distributions come."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.divergence_registry import Divergence, divergence
from limbeck.functional.loss_head import projected_token_losses, token_losses
from limbeck.functional.output_layer import project
from limbeck.functional.reduction import widened
from limbeck.functional.sampled_targets import SampledLoss
from limbeck.functional.sequences import sequence_means
from limbeck.functional.sparse_targets import Reading, top_k_loss
from limbeck.functional.token_losses import (
    ArgmaxLoss,
    DivergenceLoss,
    DivergenceRule,
    LabelLoss,
    LabelRule,
    TargetLogits,
    TokenLoss,
    rows_of,
)
from limbeck.methods.base import Method, Setup
from limbeck.signals import Batch, Signals, Term

STUDENT = "hidden|logits"
"""A student's distributions, from a live model without ever holding all its logits."""
TARGET = "hidden|logits|topk|sampled"
"""A teacher's distributions, live, cached or from a server."""
DENSE_TARGET = "hidden|logits"
"""A teacher's distributions over the whole vocabulary."""
TOKEN_LOGPROBS = "logprobs|hidden|logits"
"""A teacher's log-probabilities of the tokens in ``labels``: all that a server needs to give."""

Average = Literal["token_mean", "sequence_mean"]
DivergenceChoice = str | dict[str, Any]
"""Name of a divergence, or a dict of its ``name`` and its parameters."""


def chosen_divergence(choice: DivergenceChoice) -> Divergence:
    """Returns the divergence that a recipe names.

    Raises:
        RecipeError: it is unknown, or has other parameters or ranges.
    """
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    try:
        return divergence(str(options.pop("name", "")), **options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"divergence: {error}") from None


class SequenceMethod(Method):
    """Base of methods whose losses belong to tokens: ``[B, T]`` values with the batch's own mask.

    The average is over all tokens of the batch, or (``sequence_mean``) over sequences of the mean over their tokens;
    both are divided once over the whole batch, however it is split.

    Attributes:
        average: which of them.
    """

    average: Average = "token_mean"
    optional_entries: ClassVar[frozenset[str]] = frozenset()
    """Entries of a batch that the method reads where they are there."""

    def build(self, setup: Setup) -> None:
        """Refuses a teacher with a prompt of its own where the method would not lay its positions on the student's.

        Raises:
            NeedsError: names methods that do.
        """
        read = self.needs.batch | self.optional_entries
        if "teacher" in self.roles() and "teacher_mask" in (setup.batch or ()) and "teacher_mask" not in read:
            raise NeedsError(
                f"{type(self).__name__} compares student and teacher position by position, but the teacher has a "
                "prompt of its own (privileged_context); use method: opsd, with beta: 0 for its forward KL"
            )

    def position_losses(
        self,
        student: Signals,
        losses: Mapping[str, TokenLoss],
        mask: Tensor,
        *,
        gradient: str = "forward",
    ) -> dict[str, Tensor]:
        """Returns ``[B, T]`` losses by name, zero where masked, from hidden states or logits of the student.

        Args:
            student: what the student says.
            losses: losses by name.
            mask: ``[B, T]``.
            gradient: ``backward`` where positions will count differently, see
                :func:`limbeck.functional.loss_head.projected_token_losses`.
        """
        weights = {n: w if isinstance(w := self.weights.get(n, 1.0), (int, float)) else 1.0 for n in losses}
        if self.average == "sequence_mean":
            gradient = "backward"
        options: dict[str, Any] = {"mask": mask, "weights": weights, "gradient": gradient}
        if student.hidden is not None:
            return projected_token_losses(student.hidden.states, student.hidden.head, losses, **options)
        return token_losses(_logits(student, "student"), losses, **options)

    def averaged(self, values: Tensor, mask: Tensor) -> Term:
        """Returns the term whose mean is the method's average of ``[B, T]`` values."""
        if self.average == "token_mean":
            return Term(values, mask)
        return Term(sequence_means(values, mask), mask.bool().any(-1))

    def label_log_probabilities(
        self, student: Signals, labels: Tensor, mask: Tensor, *, temperature: float = 1.0
    ) -> Tensor:
        """Returns the student's ``[B, T]`` log-probabilities of tokens, with gradient; 0 where masked."""
        losses = {"nll": LabelLoss(labels, LabelRule(temperature))}
        return -self.position_losses(student, losses, mask, gradient="backward")["nll"]


def token_log_probabilities(signals: Signals, labels: Tensor, mask: Tensor) -> Tensor:
    """Returns what a frozen role gives for the log-probabilities of tokens, ``[B, T]`` without gradient.

    Raises:
        NeedsError: the role gives neither log-probabilities nor distributions.
    """
    if signals.logprobs is not None:
        return torch.where(mask.bool(), signals.logprobs.detach(), signals.logprobs.new_zeros(()))
    losses = {"nll": LabelLoss(labels)}
    with torch.no_grad():
        if signals.hidden is not None:
            return -projected_token_losses(signals.hidden.states, signals.hidden.head, losses, mask=mask)["nll"]
        return -token_losses(_logits(signals, "teacher"), losses, mask=mask)["nll"]


def whole_logits(signals: Signals, role: str) -> Tensor:
    """Returns ``[B, T, V]`` logits, made of hidden states where need be, float32 or better.

    Raises:
        NeedsError: the role gives neither.
    """
    if signals.hidden is not None:
        return signals.hidden.map(widened).logits()
    return widened(_logits(signals, role))


def target_loss(
    divergence: Divergence,
    teacher: Signals,
    student: Signals,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = False,
    reading: Reading = "tail",
    labels: Tensor | None = None,
) -> TokenLoss:
    """Returns the loss of tokens against what a teacher says, in the form in which it says it.

    Args:
        divergence: which.
        teacher: hidden states with a head, logits, the largest classes with their tail, or sampled classes.
        student: whose vocabulary the teacher must share.
        temperature: divides both logits.
        scale_by_t2: whether to multiply by the squared temperature.
        reading: how truncated targets are read.
        labels: ``[B, T]`` tokens, for the reading ``label_residual``.

    Raises:
        NeedsError: the vocabularies differ, or this divergence or temperature needs the whole distribution.
    """
    _check_vocabularies(teacher, student)
    scale = temperature**2 if scale_by_t2 else 1.0
    if teacher.topk is not None:
        kept = teacher.topk
        try:
            return top_k_loss(
                divergence, kept.logprobs, kept.indices, kept.tail,
                reading=reading, labels=labels, temperature=temperature,
            )  # fmt: skip
        except ValueError as error:
            raise NeedsError(str(error)) from None
    if teacher.sampled is not None:
        if not divergence.cross_entropy or temperature != 1.0:
            raise NeedsError(
                f"sampled targets estimate forward KL at temperature 1, not {divergence.name} at {temperature}; "
                "use a live teacher or a cache of another codec, or set divergence: forward_kl, temperature: 1"
            )
        return SampledLoss(teacher.sampled.indices, teacher.sampled.weights)
    logits_of, shape = logits_by_rows(teacher, "teacher")
    return DivergenceLoss(DivergenceRule(divergence, float(temperature), float(scale)), logits_of, shape)


def logits_by_rows(signals: Signals, role: str) -> tuple[TargetLogits, torch.Size]:
    """Returns what gives a frozen role's logits ``[n, V]`` of rows of positions, and the shape of the positions.

    Raises:
        NeedsError: the role gives neither hidden states nor logits.
    """
    if signals.hidden is not None:
        states = signals.hidden.states.detach()
        return functools.partial(_projected_rows, states, signals.hidden.head), states.shape[:-1]
    logits = _logits(signals, role).detach()
    return functools.partial(rows_of, logits), logits.shape[:-1]


def likeliest_loss(teacher: Signals) -> TokenLoss:
    """Returns the cross-entropy with the teacher's likeliest token, in whatever form its distribution comes."""
    if teacher.topk is not None:
        return LabelLoss(teacher.topk.indices[..., 0])
    if teacher.sampled is not None:
        heaviest = teacher.sampled.weights.argmax(-1, keepdim=True)
        return LabelLoss(teacher.sampled.indices.gather(-1, heaviest).squeeze(-1))
    return ArgmaxLoss(*logits_by_rows(teacher, "teacher"))


def _projected_rows(states: Tensor, head: Any, rows: Tensor | slice) -> Tensor:
    return project(rows_of(states, rows), head)


def vocabulary_of(signals: Signals) -> int | None:
    """Returns the number of tokens that a role's distributions are over; None where it gives none."""
    if signals.hidden is not None:
        return signals.hidden.head.classes
    for sparse in (signals.topk, signals.sampled):
        if sparse is not None:
            return sparse.classes
    return None if signals.logits is None else signals.logits.shape[-1]


def _check_vocabularies(teacher: Signals, student: Signals) -> None:
    theirs, ours = vocabulary_of(teacher), vocabulary_of(student)
    if theirs is not None and ours is not None and theirs != ours:
        raise NeedsError(
            f"the teacher's vocabulary has {theirs} tokens, the student's {ours}: give the task their true common size "
            "if one head is only padded; models with different tokenizers need a method across tokenizers"
        )


def _logits(signals: Signals, role: str) -> Tensor:
    if signals.logits is None:
        raise NeedsError(f"role '{role}' gives neither logits nor hidden states with a head")
    return signals.logits


def on_policy_rows(batch: Batch, mask: Tensor) -> Tensor:
    """Returns ``[B, T]`` where labels are data and not the student's own words, which are no labels to learn from.

    A source of rollouts marks rows with ``on_policy`` ``[B]``.
    """
    rows = batch.get("on_policy")
    return mask.bool() if rows is None else mask.bool() & ~rows.bool().unsqueeze(-1)


def aligned_teacher(batch: Batch, teacher: Signals) -> Signals:
    """Returns a teacher's signals at the student's positions, where its prompt is another one.

    ``teacher_mask`` ``[B, T']`` says where the teacher predicts the tokens that ``mask`` ``[B, T]`` counts for the
    student, in the same order. Without it, both see the same sequences.

    Raises:
        NeedsError: a sample has another number of such tokens on each side.
    """
    theirs = batch.get("teacher_mask")
    if theirs is None:
        return teacher
    ours, flags = batch["mask"].bool(), theirs.bool()
    if not torch.equal(ours.sum(-1), flags.sum(-1)):
        bad = batch["index"][ours.sum(-1) != flags.sum(-1)][:5].tolist()
        raise NeedsError(f"samples {bad} have other numbers of tokens to compare for the teacher than for the student")

    def moved(tensor: Tensor) -> Tensor:
        placed = tensor.new_zeros(*ours.shape, *tensor.shape[2:])
        placed[ours] = tensor[flags].detach()
        return placed

    hidden = teacher.hidden
    return Signals(
        logits=None if teacher.logits is None else moved(teacher.logits),
        logprobs=None if teacher.logprobs is None else moved(teacher.logprobs),
        topk=None if teacher.topk is None else teacher.topk.map(moved),
        sampled=None if teacher.sampled is None else teacher.sampled.map(moved),
        hidden=None if hidden is None else replace(hidden, states=moved(hidden.states)),
    )
