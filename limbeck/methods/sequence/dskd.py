"""DSKD: distributions compared in the output space of the student and in that of the teacher."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.errors import NeedsError
from limbeck.functional.divergence_registry import divergence as divergence_of
from limbeck.functional.loss_head import chunk_rows, projected_token_losses
from limbeck.functional.output_layer import project as logits_of_states
from limbeck.functional.reduction import widened
from limbeck.functional.token_losses import DivergenceLoss, DivergenceRule, LabelLoss, rows_of
from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import Needs, Setup, register
from limbeck.methods.projectors import project
from limbeck.methods.sequence.base import (
    Average,
    DivergenceChoice,
    SequenceMethod,
    chosen_divergence,
    logits_by_rows,
    on_policy_rows,
)
from limbeck.methods.sequence.text_pair import ENTRIES, TextPair, text_pair
from limbeck.signals import Batch, Head, Hidden, Signals, Terms


@register(
    "dskd",
    title="Dual-Space Knowledge Distillation for Large Language Models",
    authors="Songming Zhang and Xue Zhang and Zengkui Sun and Yufeng Chen and Jinan Xu",
    paper="2406.17328",
    year=2024,
    family="sequence",
    equation=r"L = (1-k)\,\mathrm{CE} + k\,\big(\mathrm{CE}(q^{t \to s}) + D(q^{t \to s} \| q) +"
    r" \mathrm{KL}(p \| p^{s \to t})\big), \qquad q^{t \to s} = \mathrm{softmax}(W_s P_{ts} h_t), \;"
    r" p^{s \to t} = \mathrm{softmax}(W_t P_{st} h_s)",
)
class DSKD(SequenceMethod):
    """Carries hidden states into the other model's space, so that one output layer makes both distributions.

    The teacher's states, projected, pass through the student's output layer and teach its distribution; the student's
    states, projected, pass through the teacher's output layer and learn its distribution. Where the tokens differ, an
    attention from the student's tokens (what is read and what comes next) to the teacher's lines the states up. All
    projections train with the student and are dropped afterwards.

    Terms:
        ce: negative log-probability of the data's next token; not of tokens that the student wrote itself.
        t2s_ce: the same of the projected teacher, which trains its projection.
        t2s_kd: divergence of the student from the projected teacher; across tokens only where the latter's likeliest
            token is right.
        s2t_kd: forward KL of the projected student from the teacher.

    Deviations: the authors sum over tokens and divide by a number of the student's tokens; here each term is a mean
    over the tokens that it belongs to, so with another tokenizer ``s2t_kd`` is one over the teacher's. Their attention
    divides the teacher's vectors by the deviation of a whole batch, padding included (``scale: batch``), with which the
    loss depends on which sequences share a batch; here it is that of the sequence. They train the projections with a
    learning rate of their own (0.001), which a recipe gives the whole run here.

    Args:
        kd_ratio: k, weight of the three distillation terms; the cross-entropy has the rest.
        divergence: D of the student's space, a name or a dict of its ``name`` and parameters.
        temperature: divides the logits of both divergences.
        teacher_temperature: divides the projected teacher's logits once more.
        scale: over what the attention's deviation is taken, the ``sequence`` or the ``batch``.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={"hidden"}, teacher={"hidden"}, batch={"labels", "mask", "inputs"})
    optional_entries = ENTRIES | {"on_policy"}

    def __init__(
        self,
        *,
        kd_ratio: Fraction = 0.5,
        divergence: DivergenceChoice = "forward_kl",
        temperature: Positive = 1.0,
        teacher_temperature: Positive = 1.0,
        scale: Literal["sequence", "batch"] = "sequence",
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.rule = DivergenceRule(chosen_divergence(divergence), float(temperature))
        self.teachers_rule = DivergenceRule(divergence_of("forward_kl"), float(temperature))
        self.teacher_temperature = teacher_temperature
        self.scale = scale
        self.batch_coupled = scale == "batch"
        self.average = average
        self.weights = {"ce": 1.0 - kd_ratio, **dict.fromkeys(("t2s_ce", "t2s_kd", "s2t_kd"), float(kd_ratio))}
        self.t2s: nn.Linear | None = None
        self.s2t: nn.Linear | None = None
        self.query: nn.Linear | None = None

    def build(self, setup: Setup) -> None:
        """Makes the projections.

        Raises:
            NeedsError: tokens differ, but a model does not show its embeddings, or they have another width.
        """
        ours, theirs = (_hidden(setup.signals[role]) for role in ("student", "teacher"))
        width, teacher_width = ours.states.shape[-1], theirs.states.shape[-1]
        device = ours.states.device
        self.t2s = nn.Linear(teacher_width, width, device=device)
        self.s2t = nn.Linear(width, teacher_width, device=device)
        if setup.batch is not None and "teacher_spans" in setup.batch:
            sizes = [_table(hidden, role).shape[-1] for hidden, role in ((ours, "student"), (theirs, "teacher"))]
            if sizes[1] != teacher_width:
                raise NeedsError(
                    f"the teacher's embeddings have {sizes[1]} numbers and its hidden states {teacher_width}; the "
                    "attention adds them, so it needs a model where both are the same"
                )
            self.query = nn.Linear(2 * sizes[0], 2 * sizes[1], device=device)

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce``, ``t2s_ce``, ``t2s_kd`` and ``s2t_kd``."""
        ours, theirs, pair = _hidden(student), _hidden(teacher), text_pair(batch)
        there, back = self.carried(batch, ours, theirs, pair)
        head = ours.head.map(Tensor.detach)
        given = on_policy_rows(batch, pair.mask)
        labels = {"ce": LabelLoss(pair.labels)}
        own = self.position_losses(student, labels, given)["ce"]
        projected = projected_token_losses(there, head, labels, mask=given)["ce"]
        taught = given
        if self.query is not None:
            taught = pair.mask & (likeliest(there.detach(), head, pair.mask) == pair.labels)
        target = DivergenceLoss(self.rule, lambda rows: self._target(there, head, rows), there.shape[:-1])
        divergences = self.position_losses(student, {"t2s_kd": target}, taught if self.query is not None else pair.mask)
        logits, shape = logits_by_rows(teacher, "teacher")
        told = {"s2t_kd": DivergenceLoss(self.teachers_rule, logits, shape)}
        learnt = projected_token_losses(back, theirs.head.map(Tensor.detach), told, mask=pair.teacher_mask)["s2t_kd"]
        return {
            "ce": self.averaged(own, given),
            "t2s_ce": self.averaged(projected, given),
            "t2s_kd": self.averaged(divergences["t2s_kd"], pair.mask),
            "s2t_kd": self.averaged(learnt, pair.teacher_mask),
        }

    def _target(self, there: Tensor, head: Head, rows: Tensor | slice) -> Tensor:
        return logits_of_states(rows_of(there.detach(), rows), head) / self.teacher_temperature

    def carried(self, batch: Batch, student: Hidden, teacher: Hidden, pair: TextPair) -> tuple[Tensor, Tensor]:
        """Returns the teacher's states ``[B, T, D]`` in the student's space, and the student's ``[B, T', D']``."""
        assert self.t2s is not None, "build() comes first"
        assert self.s2t is not None
        back = project(self.s2t, student.states)
        if self.query is None:
            return project(self.t2s, teacher.states.detach()), back
        inputs = batch.inputs_for("teacher") if "teacher_inputs" in batch else batch["inputs"]
        ours = embedded(_table(student, "student"), batch["inputs"]["input_ids"], pair.labels, pair.mask)
        theirs = embedded(_table(teacher, "teacher"), inputs["input_ids"], pair.teacher_labels, pair.teacher_mask)
        return self.attended(ours, theirs, teacher.states, back, pair.mask, pair.teacher_mask)

    def attended(
        self,
        student_tokens: tuple[Tensor, Tensor],
        teacher_tokens: tuple[Tensor, Tensor],
        teacher_states: Tensor,
        back: Tensor,
        mask: Tensor,
        teacher_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns both states where the other side's tokens are, by attention between tokens.

        Args:
            student_tokens: embeddings ``[B, T, D]`` of what is read and of what comes next.
            teacher_tokens: likewise ``[B, T', D']``.
            teacher_states: ``[B, T', D']``.
            back: ``[B, T, D']`` the student's states in the teacher's space.
            mask: ``[B, T]``.
            teacher_mask: ``[B, T']``.
        """
        assert self.query is not None
        assert self.t2s is not None
        keys = self._scaled(torch.cat(teacher_tokens, -1), teacher_mask)
        queries = project(self.query, torch.cat(student_tokens, -1))
        scores = queries @ keys.to(queries).transpose(-1, -2) / math.sqrt(2 * teacher_states.shape[-1])
        both = mask.unsqueeze(-1) & teacher_mask.unsqueeze(-2)
        scores = scores.masked_fill(~both, torch.finfo(scores.dtype).min)
        said = self._scaled(teacher_states.detach(), teacher_mask) + self._scaled(teacher_tokens[1], teacher_mask)
        there = scores.softmax(-1) @ project(self.t2s, said)
        return there, scores.transpose(-1, -2).softmax(-1) @ back

    def _scaled(self, values: Tensor, mask: Tensor) -> Tensor:
        """Returns vectors ``[B, T', D]`` divided by their deviation over the batch, or over each sequence's tokens."""
        wide = widened(values)
        if self.scale == "batch":
            deviation = wide.std()
            return wide / torch.where(deviation > 0, deviation, 1.0)
        flags = mask.unsqueeze(-1)
        kept = wide.masked_fill(~flags, 0.0)
        count = (flags.sum((-2, -1), keepdim=True) * wide.shape[-1]).clamp(min=2)
        mean = kept.sum((-2, -1), keepdim=True) / count
        spread = ((kept - mean) * flags).square().sum((-2, -1), keepdim=True) / (count - 1)
        return kept / torch.where(spread > 0, spread, 1.0).sqrt()


def embedded(table: Tensor, inputs: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the embeddings of what is read and of what comes next, ``[B, T, D]`` each and without gradient.

    Where nothing counts they are those of token 0.
    """
    found = table.detach()
    return found[torch.where(mask, inputs, 0)], found[torch.where(mask, labels, 0)]


def likeliest(states: Tensor, head: Head, mask: Tensor) -> Tensor:
    """Returns the likeliest tokens ``[B, T]`` of hidden states where ``mask`` is true, -1 elsewhere."""
    rows = mask.reshape(-1).nonzero().squeeze(-1)
    found = torch.full((mask.numel(),), -1, dtype=torch.long, device=mask.device)
    for part in rows.split(chunk_rows(4 * head.classes)):
        found[part] = logits_of_states(rows_of(states, part), head).argmax(-1)
    return found.reshape(mask.shape)


def _hidden(signals: Signals) -> Hidden:
    assert signals.hidden is not None, "the needs say so"
    return signals.hidden


def _table(hidden: Hidden, role: str) -> Tensor:
    if hidden.table is None:
        raise NeedsError(
            f"the role '{role}' shows no input embeddings, by which tokens are lined up; use a live model that has "
            "get_input_embeddings"
        )
    return hidden.table
