"""KDRL: a verifiable reward and a teacher's reverse KL in one on-policy step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.functional.divergence_registry import divergence
from limbeck.functional.policy import kl_estimate, policy_surrogate
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import (
    DENSE_TARGET,
    STUDENT,
    TOKEN_LOGPROBS,
    SequenceMethod,
    target_loss,
    token_log_probabilities,
)
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Term, Terms


@dataclass(frozen=True)
class Falling:
    """Falls by the same amount at every step, down to a floor.

    Attributes:
        value: at step 0.
        step: how much it falls at each.
        floor: below which it does not fall.
    """

    value: float
    step: float
    floor: float

    def __call__(self, progress: Progress) -> float:
        """Returns the weight at ``progress``."""
        return max(self.value - self.step * progress.step, self.floor)


@register(
    "kdrl",
    title="KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement Learning",
    authors="Hongling Xu and Qi Zhu and Heyuan Deng and Jinpeng Li and Lu Hou and Yasheng Wang and Lifeng Shang and"
    " Ruifeng Xu and Fei Mi",
    paper="2506.02208",
    year=2025,
    family="policy",
    equation=r"L = -\frac{1}{M} \sum_{i,t} \min(\rho A_i, \mathrm{clip}(\rho) A_i) + \beta\,\frac{1}{M} \sum_{i,t}"
    r" \tfrac12 \big(\log p(y_t) - \log q(y_t)\big)^2",
)
class KDRL(SequenceMethod):
    """Group-relative policy optimisation with the divergence from a teacher on the same samples.

    The batch holds samples of the student as ``labels``, their group-normalised ``advantage`` ``[B]``
    (:func:`limbeck.functional.policy.group_statistics`), and may hold ``sampler_logprobs``; for masks by reward also
    ``reward`` or ``group_best`` ``[B]``.

    Terms:
        policy: negative clipped surrogate of each token.
        kd: divergence from the teacher at each token that the mask keeps; the others count as zero.

    Deviations: the estimate k1 is refused, for as a loss its expected gradient is zero. ``k3`` is offered, but its
    gradient is that of forward KL. That of ``k2`` is reverse KL's as long as the student is who sampled; with several
    steps for the same samples it is no longer, but ``exact`` still has it at the beginnings that they hold.

    Args:
        beta: weight of ``kd``; tasks differ by a factor of a hundred.
        anneal: how much ``beta`` falls at each step; 5e-5 from 5e-3 in the paper.
        beta_floor: below which it does not fall.
        estimator: ``k2`` or ``k3`` from the sampled tokens, or the ``exact`` reverse KL.
        keep: where the teacher is imitated: ``all``, samples with reward 0 (``wrong``), or those of groups without
            any reward (``unsolved_group``).
        placement: ``joint`` loss, or the log-ratio within the ``advantage``, which the paper found worse.
        clip: range of the likelihood ratio around 1.
    """

    optional_entries = frozenset({"sampler_logprobs"})

    def __init__(
        self,
        *,
        beta: NonNegative = 2e-3,
        anneal: NonNegative = 0.0,
        beta_floor: NonNegative = 0.0,
        estimator: Literal["k2", "k3", "exact"] = "k2",
        keep: Literal["all", "wrong", "unsolved_group"] = "all",
        placement: Literal["joint", "advantage"] = "joint",
        clip: NonNegative = 0.2,
    ) -> None:
        super().__init__()
        if placement == "advantage" and estimator != "k2":
            raise RecipeError(
                f"method 'kdrl': estimator = '{estimator}', but placement: advantage takes the log-ratio itself; leave "
                "the estimator out, or set placement: joint"
            )
        self.beta = Falling(beta, anneal, beta_floor) if anneal else beta
        self.estimator = estimator
        self.keep = keep
        self.placement = placement
        self.clip = clip
        extra = {"all": (), "wrong": ("reward",), "unsolved_group": ("group_best",)}[keep]
        target = DENSE_TARGET if estimator == "exact" else TOKEN_LOGPROBS
        self.needs = Needs(student={STUDENT}, teacher={target}, batch={"labels", "mask", "advantage", *extra})
        self.weights = {"policy": 1.0} if placement == "advantage" else {"policy": 1.0, "kd": self.beta}
        self._now = beta

    def after_step(self, progress: Progress) -> None:
        """Moves the coefficient within the advantage, which is no term's weight."""
        self._now = self.beta(progress) if isinstance(self.beta, Falling) else self.beta

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``policy`` and, in a joint loss, ``kd``."""
        labels, mask = batch["labels"], batch["mask"]
        log_q = self.label_log_probabilities(student, labels, mask)
        sampler = batch.get("sampler_logprobs", log_q.detach())
        advantage = batch["advantage"]
        kept = self._kept(batch, log_q)
        if self.placement == "advantage":
            log_p = token_log_probabilities(teacher, labels, mask)
            advantage = advantage.unsqueeze(-1) + self._now * kept * (log_p - log_q.detach())
        surrogate = policy_surrogate(log_q, [(sampler, 1.0)], advantage, clip=self.clip)
        terms: Terms = {"policy": Term(-surrogate.objective, mask)}
        if self.placement == "joint":
            terms["kd"] = Term(self._divergence(batch, student, teacher, log_q) * kept, mask)
        return terms

    def _kept(self, batch: Batch, like: Tensor) -> Tensor:
        """Returns ``[B, 1]`` ones where the teacher is imitated and zeros elsewhere."""
        if self.keep == "all":
            return like.new_ones(len(like), 1)
        worth = batch["reward" if self.keep == "wrong" else "group_best"]
        return (worth <= 0).to(like.dtype).unsqueeze(-1)

    def _divergence(self, batch: Batch, student: Signals, teacher: Signals, log_q: Tensor) -> Tensor:
        labels, mask = batch["labels"], batch["mask"]
        if self.estimator == "exact":
            losses = {"kd": target_loss(divergence("reverse_kl"), teacher, student)}
            return self.position_losses(student, losses, mask, gradient="backward")["kd"]
        log_p = token_log_probabilities(teacher, labels, mask)
        values = kl_estimate(log_q, log_p, kind=self.estimator)
        return torch.where(mask.bool(), values, values.new_zeros(()))
