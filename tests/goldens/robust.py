"""Adapters of attacks and of robust distillation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from goldens.replay import Case, replays
from limbeck.functional import cross_entropy
from limbeck.functional.attacks import dlr, fgsm, margin, pgd


@replays("L_inf evaluation attacks FGSM / PGD / CW-inf / DLR")
def attacks(case: Case) -> dict[str, Tensor]:
    eps, step, steps = (case.config[name] for name in ("eps", "step", "steps"))
    x, y = case.input("x"), case.input("y")
    first, first_bias, second, second_bias = (case.input(name) for name in ("W1", "b1", "W2", "b2"))

    def classify(inputs: Tensor) -> Tensor:
        return torch.tanh(inputs.flatten(1) @ first.T + first_bias) @ second.T + second_bias

    entropy = partial(cross_entropy, labels=y, reduction="none")
    walk = partial(pgd, classify, inputs=x, eps=eps, step_size=step, steps=steps)
    uniform = (x + case.input("noise_uniform")).clamp(0, 1)
    found = {
        "fgsm": fgsm(classify, entropy, x, eps=eps),
        "pgd_uniform": walk(entropy, start=uniform),
        "pgd_gauss": walk(entropy, start=x + case.input("noise_gauss")),
        "cw_inf": walk(partial(margin, labels=y, reduction="none"), start=uniform),
    }
    correct = {name: (classify(points).argmax(1) == y).double().mean() for name, points in found.items()}
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy(classify(leaf)).mean(), leaf)
    logits = classify(x)
    return {
        "out.logits": logits,
        **{f"out.{name}": points for name, points in found.items()},
        "out.cw_margin": margin(logits, y, reduction="none"),
        "out.dlr": dlr(logits, y, reduction="none"),
        "out.acc_clean": (logits.argmax(1) == y).double().mean(),
        "out.acc_fgsm": correct["fgsm"],
        "out.acc_pgd": correct["pgd_uniform"],
        "out.acc_cw": correct["cw_inf"],
        "grad.x_ce": gradient,
    }
