"""Adapters of methods that learn from sampled sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from goldens.replay import Case, gradients, replays
from goldens.sequence import term, token_batch
from limbeck.functional.log_divergences import reverse_kl
from limbeck.functional.policy import (
    group_statistics,
    kl_estimate,
    mixed_sampler_log_weight,
    policy_surrogate,
    reward_to_go,
)
from limbeck.methods.base import build_method
from limbeck.methods.sequence.base import token_log_probabilities
from limbeck.methods.sequence.kdrl import KDRL
from limbeck.methods.sequence.minillm import MiniLLM
from limbeck.schedules import Progress, weight_at
from limbeck.signals import Signals


class _Samples:
    """Sampled tokens of a file, and what each policy gives for them; ``[B, T]``, also where masked."""

    def __init__(self, case: Case, sampler: str = "old_logits") -> None:
        self.student = case.input("student_logits", requires_grad=True)
        self.tokens, self.mask = case.input("tokens"), case.input("mask")
        self.signals = {
            "student": Signals(logits=self.student),
            "teacher": Signals(logits=case.input("teacher_logits")),
        }
        everywhere = torch.ones_like(self.mask)
        self.log_q = token_log_probabilities(self.signals["student"], self.tokens, everywhere)
        self.log_p = token_log_probabilities(self.signals["teacher"], self.tokens, everywhere)
        self.log_old = token_log_probabilities(Signals(logits=case.input(sampler)), self.tokens, everywhere)

    def batch(self, **entries: Any) -> Any:
        return token_batch(self.tokens, self.mask, sampler_logprobs=self.log_old, **entries)

    def gradient(self, loss: Tensor) -> Tensor:
        return gradients(loss, {"student_logits": self.student})["grad.student_logits"]


@replays("Thinking-Machines-style on-policy distillation (sampled-token reverse KL as advantage)")
def on_policy_distillation(case: Case) -> dict[str, Tensor]:
    config, samples = case.config, _Samples(case, "sampler_logits")
    base, mask = case.input("base_advantage"), samples.mask.bool()
    method = build_method(
        "on_policy_distillation", coefficient=config["kl_penalty_coef"], discount=config["kl_discount_factor"]
    )
    found = term(method, "policy", samples.batch(advantage=base), **samples.signals)
    sampled = samples.log_old - samples.log_p
    exact = term(build_method("word_kd", divergence="reverse_kl"), "kd", samples.batch(), **samples.signals)
    ratio = torch.exp(samples.log_q - samples.log_old)
    return {
        "out.sampled_reverse_kl": sampled * mask,
        "out.advantages": torch.where(mask, -found.values.detach() / ratio, 0.0),
        "out.loss_sum": found.total(),
        "out.loss_mean": found.mean(),
        "out.mean_sampled_kl": sampled[mask].mean(),
        "out.exact_reverse_kl": exact.mean(),
        "grad.student_logits.sum": samples.gradient(found.total()),
        "grad.student_logits.mean": samples.gradient(found.mean()),
    }


@replays("MiniLLM policy-gradient reverse KL")
def minillm(case: Case) -> dict[str, Tensor]:
    config, samples = case.config, _Samples(case)
    method = build_method(
        "minillm",
        reward_scale=config["reward_scaling"],
        reward_clip=config["cliprange_reward"],
        discount=config["gamma"],
        length_normalized=config["length_norm"],
        clip=config["cliprange"],
        teacher_share=config["teacher_mixed_alpha"],
        whiten_padding=True,
    )
    assert isinstance(method, MiniLLM)
    mask = samples.mask.bool()
    policy = term(method, "policy", samples.batch(), **samples.signals).mean()
    single = term(method, "single_step", samples.batch(), **samples.signals).mean()
    rewards = ((samples.log_p - samples.log_old) / config["reward_scaling"]).clamp(
        -config["cliprange_reward"], config["cliprange_reward"]
    )
    weight = mixed_sampler_log_weight(samples.log_old, samples.log_p, teacher_share=config["teacher_mixed_alpha"]).exp()
    return {
        "out.logq": samples.log_q * mask,
        "out.logq_old": samples.log_old * mask,
        "out.logp": samples.log_p * mask,
        "out.w": torch.where(mask, weight, 1.0),
        "out.rewards": rewards * mask,
        "out.advantages_raw": method.returns(samples.log_p, samples.log_old, mask),
        "out.advantages": method.advantages(samples.log_p, samples.log_old, mask),
        "out.pg_loss": policy,
        "out.reg_loss": single,
        "out.loss": policy + single,
        "out.rev_kl_k3_estimate": kl_estimate(samples.log_old, samples.log_p, kind="k3") * mask,
        "out.adv_trl": _discounted_from_the_start(samples, config["gamma"], config["length_norm"]),
        "grad.student_logits": samples.gradient(policy + single),
        "grad.student_logits.pg": samples.gradient(policy),
        "grad.student_logits.reg": samples.gradient(single),
    }


def _discounted_from_the_start(samples: _Samples, discount: float, normalized: bool) -> Tensor:
    """TRL's returns: discounts count from the sequence's beginning, which cancels where they are normalised."""
    gap, mask = samples.log_p - samples.log_old, samples.mask
    returns = reward_to_go(gap, mask, discount=discount)
    if normalized:
        # Padding counts a ten-thousandth of a token there.
        return returns / reward_to_go(mask.double().clamp(min=1e-4), torch.ones_like(mask), discount=discount)
    return returns * discount ** torch.arange(mask.shape[1], dtype=torch.float64)


def _grouped(case: Case) -> dict[str, Tensor]:
    rewards = case.input("rewards")
    groups = torch.arange(len(rewards)).unsqueeze(-1).expand_as(rewards)
    found = group_statistics(
        rewards.flatten(), groups.flatten(), eps=case.config["adv_eps"], unbiased=case.config["adv_std_ddof"] == 1
    )
    return {"reward": rewards.flatten(), "advantage": found.advantage, "group_best": found.best}


@replays("KDRL joint GRPO + reverse-KL distillation")
def kdrl(case: Case) -> dict[str, Tensor]:
    config, samples, grouped = case.config, _Samples(case), _grouped(case)
    where = Progress(config["step"], 10**6, 1)
    clip = config["clip_eps"]
    scheduled = build_method(
        "kdrl", beta=config["beta_init"], anneal=config["delta"], beta_floor=config["beta_min"], clip=clip
    )
    beta = weight_at(scheduled.weights["kd"], where)
    used = beta * config["beta_scale_in_this_golden"]
    batch, mask = samples.batch(**grouped), samples.mask.bool()
    policy = -term(scheduled, "policy", batch, **samples.signals).mean()
    unclipped = policy_surrogate(samples.log_q, [(samples.log_old, 1.0)], grouped["advantage"], clip=None)
    log_q, log_p = samples.log_q, samples.log_p
    exact = reverse_kl(*(samples.signals[r].logits.detach().log_softmax(-1) for r in ("teacher", "student")))
    results = {
        "out.advantages": grouped["advantage"],
        "out.ratio": unclipped.ratio,
        **{f"out.{kind}": kl_estimate(log_q, log_p, kind=kind) * mask for kind in ("k1", "k2", "k3")},
        "out.full_reverse_kl": exact.sum(-1) * mask,
        "out.J_grpo": policy,
        "out.J_grpo_unclipped": unclipped.objective[mask].mean(),
        "out.beta": torch.tensor(beta, dtype=torch.float64),
        "out.beta_used": torch.tensor(used, dtype=torch.float64),
        "out.mask_response": (grouped["reward"] <= 0).double(),
        "out.mask_group": (grouped["group_best"] <= 0).double(),
    }
    for estimator, short in (("k2", "k2"), ("k3", "k3"), ("exact", "full")):
        for keep, title in (("all", "none"), ("wrong", "response"), ("unsolved_group", "group")):
            method = build_method("kdrl", beta=used, estimator=estimator, keep=keep, clip=clip)
            terms = {n: term(method, n, batch, **samples.signals).mean() for n in ("policy", "kd")}
            loss = terms["policy"] + used * terms["kd"]
            results[f"out.loss.{short}.{title}"] = loss
            results[f"grad.student_logits.{short}.{title}"] = samples.gradient(loss)
    shaped = build_method("kdrl", beta=used, placement="advantage", clip=clip)
    assert isinstance(shaped, KDRL)
    loss = term(shaped, "policy", batch, **samples.signals).mean()
    return results | {"out.loss.k1_in_advantage": loss, "grad.student_logits.k1_in_advantage": samples.gradient(loss)}


@replays("RLAD / TRRD objective")
def rlad(case: Case) -> dict[str, Tensor]:
    config, samples, grouped = case.config, _Samples(case), _grouped(case)
    everywhere = torch.ones_like(samples.mask)
    reference = token_log_probabilities(Signals(logits=case.input("ref_logits")), samples.tokens, everywhere)
    batch = samples.batch(reference_logprobs=reference, **grouped)

    def loss(alpha: float, average: str) -> Tensor:
        method = build_method(
            "rlad", alpha=alpha, clip=config["clip_eps"], reference_weight=config["kl_coef"], average=average
        )
        total = term(method, "policy", batch, **samples.signals).mean()
        if config["kl_coef"]:
            total = total + config["kl_coef"] * term(method, "reference", batch, **samples.signals).mean()
        return total

    anchors = [(samples.log_old, config["alpha"]), (samples.log_p, 1 - config["alpha"])]
    surrogate = policy_surrogate(samples.log_q, anchors, grouped["advantage"], clip=config["clip_eps"])
    penalty = config["kl_coef"] * kl_estimate(samples.log_q, reference, kind="k3")
    losses = {
        "seq": loss(config["alpha"], "sequence_mean"),
        "tok": loss(config["alpha"], "token_mean"),
        "grpo": loss(1.0, "sequence_mean"),
    }
    return {
        "out.advantages": grouped["advantage"],
        "out.ratio": surrogate.ratio,
        "out.objective": (surrogate.objective - penalty) * samples.mask,
        "out.clipped": (surrogate.clipped & samples.mask.bool()).double(),
        **{f"out.loss_{name}": value for name, value in losses.items()},
        **{f"grad.student_logits.{name}": samples.gradient(value) for name, value in losses.items()},
    }
