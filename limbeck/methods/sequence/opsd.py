"""OPSD: a model taught by itself, which has seen the solution."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.functional.divergence_registry import Divergence, divergence
from limbeck.functional.sparse_targets import top_k, top_k_loss
from limbeck.functional.token_losses import LabelLoss, LabelRule, TokenLoss
from limbeck.hyperparameters import Count, Fraction, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import (
    DENSE_TARGET,
    STUDENT,
    Average,
    SequenceMethod,
    aligned_teacher,
    target_loss,
    whole_logits,
)
from limbeck.signals import Batch, Signals, Terms


@register(
    "opsd",
    title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    authors="Siyan Zhao and Zhihui Xie and Mengchen Liu and Jing Huang and Guan Pang and Feiyu Chen and Aditya Grover",
    paper="2601.18734",
    year=2026,
    family="self",
    equation=r"L = \frac{1}{M} \sum_t \min\big(c,\ \mathrm{JSD}_\beta(p(\cdot \mid x, s, y_{<t}),"
    r" q(\cdot \mid x, y_{<t}))\big), \qquad y \sim q(\cdot \mid x)",
)
class OPSD(SequenceMethod):
    """The student's own answers, judged token by token by the same model with the reference solution in its prompt.

    The role ``teacher`` is the student's initial model, its moving average or the model without its adapter; its
    prompt is in ``teacher_inputs``, and ``teacher_mask`` ``[B, T']`` says where it predicts the tokens that ``mask``
    counts for the student, in the same order.

    Terms:
        distill: divergence of the student's from the informed distribution at each token; or with ``sampled_token`` the
            negative log-probability of the sampled token, weighted by the teacher's log-ratio.

    Deviations: the released code cuts each class's contribution and not the sum, with which the loss can be negative
    (``clip_per: entry``).

    Args:
        objective: ``divergence`` over the vocabulary, or ``sampled_token``.
        beta: weight of the teacher in the mixture; 0 is forward, 1 reverse KL.
        temperature: divides both logits.
        clip: largest divergence of a token; None for no limit. 0.05 in the later release.
        clip_per: what is cut, a ``token`` or each vocabulary ``entry``.
        top_k: number of the teacher's likeliest tokens within which both are compared; None for all.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={DENSE_TARGET}, batch={"labels", "mask"})
    optional_entries = frozenset({"teacher_mask"})

    def __init__(
        self,
        *,
        objective: Literal["divergence", "sampled_token"] = "divergence",
        beta: Fraction = 0.5,
        temperature: Positive = 1.1,
        clip: Positive | None = None,
        clip_per: Literal["token", "entry"] = "token",
        top_k: Count | None = None,
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        if objective == "sampled_token" and (clip is not None or top_k is not None):
            raise RecipeError(
                "method 'opsd': clip and top_k belong to objective: divergence; sampled_token has one token to compare"
            )
        chosen = divergence("jsd", beta=beta)
        self.objective = objective
        self.divergence = _cut(chosen, clip) if clip is not None and clip_per == "entry" else chosen
        self.temperature = temperature
        self.clip = clip if clip_per == "token" else None
        self.top_k = top_k
        self.average = average
        self.weights = {"distill": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``distill``."""
        mask, informed = batch["mask"], aligned_teacher(batch, teacher)
        if self.objective == "sampled_token":
            return {"distill": self.averaged(self._sampled(batch, student, informed), mask)}
        loss = self._loss(student, informed)
        gradient = "forward" if self.clip is None else "backward"
        values = self.position_losses(student, {"distill": loss}, mask, gradient=gradient)["distill"]
        return {"distill": self.averaged(values if self.clip is None else values.clamp(max=self.clip), mask)}

    def _loss(self, student: Signals, teacher: Signals) -> TokenLoss:
        if self.top_k is None:
            return target_loss(self.divergence, teacher, student, temperature=self.temperature)
        with torch.no_grad():
            logits = whole_logits(teacher, "teacher") / self.temperature
            kept = top_k(logits, min(self.top_k, logits.shape[-1]))
        return top_k_loss(
            self.divergence, kept.logprobs, kept.indices, kept.tail, reading="both_renormalized",
            temperature=self.temperature, stored_temperature=self.temperature,
        )  # fmt: skip

    def log_probabilities(self, role: Signals, batch: Batch) -> Tensor:
        """Returns a role's tempered log-probabilities of the sampled tokens, ``[B, T]``."""
        losses = {"nll": LabelLoss(batch["labels"], LabelRule(self.temperature))}
        return -self.position_losses(role, losses, batch["mask"], gradient="backward")["nll"]

    def _sampled(self, batch: Batch, student: Signals, teacher: Signals) -> Tensor:
        log_q = self.log_probabilities(student, batch)
        with torch.no_grad():
            log_p = self.log_probabilities(teacher, batch)
        return -(log_p - log_q.detach()) * log_q


def _cut(chosen: Divergence, limit: float) -> Divergence:
    """Returns a divergence whose contributions are cut at ``limit``, each by itself."""

    def contributions(log_p: Tensor, log_q: Tensor) -> Tensor:
        return chosen.contributions(log_p, log_q).clamp(max=limit)

    return replace(chosen, contributions=contributions, slope=None, convex=False, cross_entropy=False)
