"""Adapters of methods that change what the models see: mixup in KD, learned augmentation, data from the web."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.affine_warp import reparameterised, warp, warp_matrices
from limbeck.methods.base import build_method
from limbeck.signals import Signals, as_term
from limbeck.transforms.hard import augmentor_is_next, augmentor_loss
from limbeck.transforms.partial_mixup import blend, leave_unmixed


@replays("Mixup in KD: partial mixup (PMU) and std-rescaled logits (adaptive per-sample temperature)")
def mix_kd(case: Case) -> dict[str, Tensor]:
    inputs, labels = case.input("x"), case.input("labels")
    first, second, shares = case.input("perm1"), case.input("perm2"), case.input("lam")
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    kept = leave_unmixed(shares, case.input("ridx"))
    mixed = blend(one_hot(labels, student.shape[1]).double(), kept, second, first)
    method = build_method("mix_kd", gamma=case.config["gamma"], alpha=case.config["alpha"])
    terms = method(batch_of(mixed), student=Signals(logits=student), teacher=Signals(logits=teacher))
    return {
        "out.x_mix": blend(inputs, kept, second, first),
        "out.y_mix": mixed,
        "out.x_mix_full": blend(inputs, shares, second, first),
        "out.lam_effective": kept,
        "out.loss_cls": total(method, terms, ("ce",)),
        "out.loss_kd": total(method, terms, ("kd",)),
        **gradients(total(method, terms), {"student_logits": student}),
    }


@replays("HARD: adversarially learned augmentation (affine augmentor) for distillation")
def hard(case: Case) -> dict[str, Tensor]:
    config = case.config
    inputs, noise = case.input("x"), case.input("eps")
    leaves = {name: case.input(name, requires_grad=True) for name in ("mu", "rho", "W_s")}
    student_bias, teacher_weight, teacher_bias = (case.input(name) for name in ("b_s", "W_t", "b_t"))

    def student(images: Tensor) -> Tensor:
        return images.flatten(1) @ leaves["W_s"].T + student_bias

    def teacher(images: Tensor) -> Tensor:
        return images.flatten(1) @ teacher_weight.T + teacher_bias

    theta = warp_matrices(reparameterised(leaves["mu"], leaves["rho"], noise))
    augmented = warp(inputs, theta)
    loss, disagreement, drift = augmentor_loss(
        student(augmented),
        teacher(augmented),
        teacher(inputs),
        temperature=config["temperature"],
        disagreement=config["lambda_s"],
        drift=config["lambda_t"],
    )
    method = build_method("hard", temperature=config["temperature"])
    hard_inputs = augmented.detach()
    terms = method(
        batch_of(torch.zeros(len(inputs), dtype=torch.long)),
        student=Signals(logits=student(inputs), views={"hard": Signals(logits=student(hard_inputs))}),
        teacher=Signals(logits=teacher(inputs), views={"hard": Signals(logits=teacher(hard_inputs))}),
    )
    student_loss = as_term(terms["hard"]).mean()
    return {
        "out.theta": theta,
        "out.x_aug": augmented,
        "out.disagreement": disagreement,
        "out.teacher_shift": drift,
        "out.augmentor_loss": loss,
        "out.student_loss": student_loss,
        "out.phase": torch.tensor(_phases(case.input("disagreement_seq").tolist(), config)),
        **gradients(loss, {name: leaves[name] for name in ("mu", "rho")}),
        **gradients(student_loss, {"W_s": leaves["W_s"]}),
    }


def _phases(disagreements: list[float], config: dict[str, float]) -> list[int]:
    """1 where the augmentor trains, from a sequence of disagreements."""
    training, found = True, []
    for disagreement in disagreements:
        found.append(int(training))
        training = augmentor_is_next(training, disagreement, config["loss_min"], config["loss_max"])
    return found
