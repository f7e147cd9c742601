"""MiniLLM: reverse KL of whole sequences by policy gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.divergence_registry import divergence
from limbeck.functional.policy import mixed_sampler_log_weight, policy_surrogate, reward_to_go, whitened
from limbeck.functional.token_losses import LabelLoss
from limbeck.hyperparameters import Fraction, NonNegative, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import SequenceMethod, target_loss, token_log_probabilities
from limbeck.signals import Batch, Signals, Term, Terms


@register(
    "minillm",
    title="MiniLLM: Knowledge Distillation of Large Language Models",
    authors="Yuxian Gu and Li Dong and Furu Wei and Minlie Huang",
    paper="2306.08543",
    year=2023,
    family="policy",
    equation=r"L = -\frac{1}{M} \sum_t \min(\rho_t A_t, \mathrm{clip}(\rho_t) A_t) + \frac{1}{M} \sum_t"
    r" \mathrm{KL}(q_t \| p_t), \qquad A_t = \mathrm{whiten}\Big(\frac{1}{|y| - t} \sum_{k \ge t}"
    r" \log\frac{p(y_k)}{q_{old}(y_k)}\Big)",
)
class MiniLLM(SequenceMethod):
    """Policy gradient of the sequence-level reverse KL, with the immediate part of it exact.

    The batch holds samples as ``labels`` and ``sampler_logprobs``, the student's log-probabilities at the time of
    sampling (the student is taken to be the sampler where they are missing). Where tokens were drawn from another
    distribution, because the teacher helped or because it was truncated, ``proposal_logprobs`` give the importance
    weight; where they are missing, ``teacher_share`` does.

    Terms:
        policy: negative clipped surrogate of each token.
        single_step: reverse KL at each token over the whole vocabulary.

    Deviations: the paper leaves the immediate reward out of the return where the single-step part counts it; the
    authors' code keeps it, and so does this unless ``future_only`` is set. Their cross-entropy on pre-training text is
    a further method beside this one. They whiten over padding too (``whiten_padding``); the default counts tokens only.

    Args:
        reward_scale: divides log-ratios before they are cut.
        reward_clip: largest reward.
        discount: of later rewards.
        length_normalized: whether returns are divided by the number of tokens that remain.
        clip: range of the likelihood ratio around 1.
        teacher_share: part of the teacher in the mixture that sampled; not read where the batch holds
            ``proposal_logprobs``.
        whiten_padding: whether padding takes part in the mean and variance of the returns.
        future_only: whether a token's return begins with the next one.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={"labels", "mask"})
    batch_coupled = True
    optional_entries = frozenset({"sampler_logprobs", "proposal_logprobs"})

    def __init__(
        self,
        *,
        reward_scale: Positive = 0.5,
        reward_clip: Positive = 100.0,
        discount: Fraction = 1.0,
        length_normalized: bool = True,
        clip: NonNegative = 0.2,
        teacher_share: Fraction = 0.0,
        whiten_padding: bool = False,
        future_only: bool = False,
    ) -> None:
        super().__init__()
        self.reward_scale, self.reward_clip = reward_scale, reward_clip
        self.discount = discount
        self.length_normalized = length_normalized
        self.clip = clip
        self.teacher_share = teacher_share
        self.whiten_padding = whiten_padding
        self.future_only = future_only
        self.weights = {"policy": 1.0, "single_step": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``policy`` and ``single_step``."""
        labels, mask = batch["labels"], batch["mask"]
        losses = {"nll": LabelLoss(labels), "single_step": target_loss(divergence("reverse_kl"), teacher, student)}
        values = self.position_losses(student, losses, mask, gradient="backward")
        log_q = -values["nll"]
        log_p = token_log_probabilities(teacher, labels, mask)
        sampler = batch.get("sampler_logprobs", log_q.detach())
        surrogate = policy_surrogate(
            log_q,
            [(sampler, 1.0)],
            self.advantages(log_p, sampler, mask),
            clip=self.clip,
            log_weight=self.log_importance(batch, sampler, log_p),
        )
        return {"policy": Term(-surrogate.objective, mask), "single_step": Term(values["single_step"], mask)}

    def log_importance(self, batch: Batch, sampler: Tensor, log_p: Tensor) -> Tensor:
        """Returns ``[B, T]`` log-ratios of the student that sampled to what tokens were drawn from."""
        drawn = batch.get("proposal_logprobs")
        if drawn is not None:
            return torch.where(batch["mask"].bool(), sampler - drawn.to(sampler), 0.0)
        return mixed_sampler_log_weight(sampler, log_p, teacher_share=self.teacher_share)

    def returns(self, log_p: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
        """Returns ``[B, T]`` what follows each token, as the sum (or mean) of cut log-ratios from there on."""
        rewards = ((log_p - sampler) / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        if self.future_only:
            rewards = torch.where(mask.bool(), rewards, rewards.new_zeros(()))
            rewards = torch.cat([rewards[:, 1:], torch.zeros_like(rewards[:, :1])], dim=1)
        return reward_to_go(rewards, mask, discount=self.discount, length_normalized=self.length_normalized)

    def advantages(self, log_p: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
        """Returns whitened returns, without gradient."""
        returns = self.returns(log_p, sampler, mask).detach()
        return whitened(returns, mask=None if self.whiten_padding else mask)
