"""Adapters of selective state-space students."""

from __future__ import annotations

from typing import Any

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.selective_scan import combined_logits, selective_scan
from limbeck.methods.base import build_method
from limbeck.signals import Signals, as_term


@replays(
    "Mamba-PKD: selective state-space scan (student block core) and staged distillation of weak learners", "mamba-pkd"
)
def mamba_pkd(case: Case) -> dict[str, Any]:
    config = case.config
    leaves = {n: case.input(n, requires_grad=True) for n in ("u", "dt", "A_log", "B", "C", "D", "z", "dt_bias")}
    y, state = selective_scan(
        *(leaves[n] for n in ("u", "dt", "A_log", "B", "C", "D")), gate=leaves["z"], dt_bias=leaves["dt_bias"]
    )
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    ensemble = combined_logits(case.input("previous_logits"), student, combine=config["combine"])
    method = build_method("mamba_pkd", alpha=config["alpha"], temperature=config["tau"])
    batch = batch_of(case.input("labels"))
    terms = method(batch, student=Signals(logits=ensemble), teacher=Signals(logits=teacher))
    loss = total(method, terms)
    return {
        "out.y": y,
        "out.final_state": state,
        "out.hard": as_term(terms["ce"]).mean(),
        "out.soft": as_term(terms["kd"]).mean(),
        "out.stage_loss": loss,
        **gradients(y.square().mean(), leaves),
        **gradients(loss, {"student_logits": student}),
    }
