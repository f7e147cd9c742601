"""Adapters of imbalanced, cross-validated classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.focal import average_logits, average_probabilities, focal_cross_entropy
from limbeck.methods.base import build_method
from limbeck.methods.logit.focal import Focal
from limbeck.signals import Signals, as_term


@replays("KD-OCT: distillation loss, teacher focal loss, TTA/ensemble averaging", "kd-oct")
def kd_oct(case: Case) -> dict[str, Any]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    batch = batch_of(case.input("labels"))
    method = build_method("kd", temperature=config["temperature"])
    method.weights.update(ce=config["beta_hard"], kd=config["alpha_soft"])
    terms = method(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))
    loss, views = total(method, terms), case.input("views")
    weights = (
        case.input("class_weights")
        if "class_weights" in case
        else torch.tensor(config["class_weights"], dtype=torch.float64)
    )

    focal = build_method("focal", gamma=config["focal_gamma"], balanced=False, weighted_focus=True)
    assert isinstance(focal, Focal)
    focal.class_weights = weights
    released = total(focal, focal(batch, student=Signals(logits=student)))
    leaves = {"student_logits": student}
    focal_gradient: dict[str, Tensor] = gradients(released, leaves)
    return {
        "out.loss": loss,
        "out.hard": as_term(terms["ce"]).mean(),
        "out.soft": as_term(terms["kd"]).mean(),
        "out.focal": released,
        "out.focal_textbook": focal_cross_entropy(
            student, case.input("labels"), gamma=config["focal_gamma"], class_weights=weights
        ),
        "out.tta_logits": average_logits(views),
        "out.ens_probs": average_probabilities(views),
        **gradients(loss, leaves),
        "grad.focal_student_logits": focal_gradient["grad.student_logits"],
    }
