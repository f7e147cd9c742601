"""Adapters of attacks and of robust distillation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional import cross_entropy
from limbeck.functional.attacks import dlr, fgsm, margin, pgd
from limbeck.functional.balancing import soft_divergence
from limbeck.methods.base import build_method
from limbeck.schedules import Progress
from limbeck.signals import Signals, as_term


@replays("adv-attacks", "L_inf evaluation attacks FGSM / PGD / CW-inf / DLR")
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


@replays(
    "mtard",
    "MTARD / B-MTARD: adversarial two-teacher distillation with entropy-based temperature balance and normalised loss"
    " balance",
)
def mtard(case: Case) -> dict[str, Tensor]:
    config = case.config
    method = build_method(
        "mtard",
        weight_rate=config["weight_lr"],
        temperature_rate=config["temp_lr"],
        lowest_temperature=config["temp_min"],
        highest_temperature=config["temp_max"],
        loss_scale=config["loss_scale"],
        log_eps=config["log_eps"],
    ).double()
    names = ("student_adv", "student_nat", "teacher_adv", "teacher_nat")
    trajectory: dict[str, list[Tensor]] = {}
    last: dict[str, Tensor] = {}
    for logits in zip(*(case.input(name) for name in names)):
        adversarial, natural, robust, clean = logits
        last = {
            "student_adv": adversarial.clone().requires_grad_(),
            "student_nat": natural.clone().requires_grad_(),
        }
        # The entropies are those of the temperatures before the step.
        entropies = [
            -soft_divergence(teacher, teacher, temperature=float(temperature), log_eps=config["log_eps"])[1].mean()
            for teacher, temperature in ((robust, method.robust_temperature), (clean, method.clean_temperature))
        ]
        student = Signals(logits=last["student_nat"], views={"adversarial": Signals(logits=last["student_adv"])})
        terms = method(
            batch_of(torch.zeros(len(natural), dtype=torch.long)),
            student=student,
            robust_teacher=Signals(logits=robust),
            clean_teacher=Signals(logits=clean),
        )
        loss = total(method, terms, progress=Progress(step=0, steps_per_epoch=1, epochs=10**6))
        method.after_step(Progress(step=1, steps_per_epoch=1, epochs=10**6))
        reached = {
            "kl_adv": as_term(terms["robust"]).mean(),
            "kl_nat": as_term(terms["clean"]).mean(),
            "temp_adv": method.robust_temperature,
            "temp_nat": method.clean_temperature,
            "w_adv": method.share,
            "w_nat": 1 - method.share,
            "total": loss,
            "ent_adv": entropies[0],
            "ent_nat": entropies[1],
        }
        for name, value in reached.items():
            trajectory.setdefault(f"out.{name}", []).append(value.detach().clone())
    return {
        **{name: torch.stack(values) for name, values in trajectory.items()},
        **gradients(loss, last, "_last"),
    }
