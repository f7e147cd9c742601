"""Adapters of the methods whose effect is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional import kernel_self_distillation as ridge
from limbeck.functional import meta_distillation as meta
from limbeck.methods.base import build_method
from limbeck.signals import Signals


@replays("even-your-teacher")
def even_your_teacher(case: Case) -> dict[str, Any]:
    config = case.config
    inputs, targets, held, held_targets = (case.input(name) for name in ("X", "Y", "Xv", "Yv"))
    kernel = ridge.rbf_kernel(inputs, inputs, gamma=config["rbf_gamma"])
    queries = ridge.rbf_kernel(held, inputs, gamma=config["rbf_gamma"])
    strength, alpha, steps = config["ridge"], config["alpha"], config["steps"]

    def path(weights: list[float]) -> ridge.SelfDistillationPath:
        return ridge.self_distillation_path(kernel, targets, ridge=strength, weights=weights, queries=queries)

    fixed, scheduled = path([alpha] * steps), path(case.input("alphas").tolist())
    limit = ridge.self_distillation_limit(kernel, targets, ridge=strength, weight=alpha, queries=queries)
    eigenvalues = torch.linalg.eigvalsh(kernel)
    best = ridge.greedy_weights(
        kernel, targets, ridge=strength, generations=steps, queries=queries, held_out=held_targets, clip=False
    )
    return {
        "out.fixed_train": fixed.train,
        "out.fixed_val": fixed.queries,
        "out.zero_train": path([0.0] * steps).train,
        "out.sched_train": scheduled.train,
        "out.sched_val": scheduled.queries,
        "out.eig": eigenvalues,
        "out.b": ridge.constant_weight_spectrum(eigenvalues, ridge=strength, weight=alpha, generations=steps),
        "out.b_limit": ridge.spectrum_limit(eigenvalues, ridge=strength, weight=alpha),
        "out.limit_train": limit.train[0],
        "out.limit_val": limit.queries[0],
        "out.alpha_star": best.weights,
        "out.val_mse_star": best.errors,
        **_network_loss(case, alpha),
    }


def _network_loss(case: Case, alpha: float) -> dict[str, Tensor]:
    logits = case.input("logits", requires_grad=True)
    method = build_method("weighted_self_distillation", alpha=alpha)
    # The file gives the teacher's probabilities, whose logarithms are logits of the same distribution.
    teacher = Signals(logits=case.input("teacher_prob").log())
    batch = batch_of(case.input("onehot"))
    loss = total(method, method(batch, student=Signals(logits=logits), teacher=teacher))
    return {"out.dl_loss": loss, **gradients(loss, {"logits": logits})}


@replays("anchored recursive meta-distillation operators", "recursive-meta-distillation")
def recursive_meta_distillation(case: Case) -> dict[str, Any]:
    config = case.config
    base, weights, initial = case.input("base").log(), case.input("weights"), case.input("initial").log()
    anchor, generations = config["anchor_lambda"], config["generations"]
    results: dict[str, Any] = {}
    for kind in ("linear", "geometric"):
        mixture = meta.mix_log_probabilities(base, weights, kind=kind)
        chain = meta.meta_distillation_chain(initial, mixture, anchor=anchor, generations=generations, kind=kind)
        results |= {
            f"out.anchor_{kind}": mixture.exp(),
            f"out.{kind}": chain.log_probabilities.exp(),
            f"out.kl_{kind}": chain.divergence,
            f"out.kl_reverse_{kind}": chain.reverse,
        }
    bias, temperature = case.input("student_bias"), config["temperature"]
    mixture = meta.mix_log_probabilities(base, weights)

    def biased(weight: float) -> meta.Chain:
        return meta.meta_distillation_chain(
            initial,
            mixture,
            anchor=weight,
            generations=config["imperfect_generations"],
            student=lambda log_p: torch.log_softmax(log_p + bias, -1),
        )

    anchored = biased(anchor)
    assert float(anchored.divergence[1:].max()) <= -math.log(anchor) + 1e-12
    tempered = meta.meta_distillation_chain(
        initial,
        mixture,
        anchor=0.0,
        generations=generations,
        student=lambda log_p: torch.log_softmax(log_p / temperature, -1),
    )
    return {
        **results,
        "out.imperfect_last": anchored.log_probabilities[-1].exp(),
        "out.kl_imperfect": anchored.divergence,
        "out.kl_unanchored": biased(0.0).divergence,
        "out.temperature_only": tempered.log_probabilities.exp(),
    }
