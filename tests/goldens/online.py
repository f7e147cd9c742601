"""Adapters of the methods whose models learn together, and of those that learn how to weigh samples."""

from __future__ import annotations

from typing import Any

from torch import nn

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.balanced_divergences import certainty_weights, entropy
from limbeck.functional.divergences import kl
from limbeck.methods.base import build_method
from limbeck.signals import Signals, as_term

Results = dict[str, Any]


@replays("bd-kd")
def balanced_divergences(case: Case) -> Results:
    """The teacher of the file is the peer."""
    config = case.config
    leaves = {name: case.input(name, requires_grad=True) for name in ("student_logits", "teacher_logits")}
    student, peer = leaves.values()
    temperature = config["temperature"]
    method = build_method(
        "bd_kd", temperature=temperature, imbalance=config["nu"], alpha=config["alpha"], beta=config["beta_teacher"]
    )
    terms = method(batch_of(case.input("labels")), student=Signals(logits=student), peer=Signals(logits=peer))
    players = method.players({"student": nn.Identity(), "peer": nn.Identity()})
    losses = [total(method, terms, sorted(own or ())) for _, own in players.values()]
    weights = certainty_weights(student, peer, temperature=temperature, imbalance=config["nu"])
    entropies = [entropy(logits, temperature=temperature) for logits in (student, peer)]
    forward, reverse = (
        kl(student, peer, temperature=temperature, scale_by_t2=False, reverse=flipped, reduction="none")
        for flipped in (False, True)
    )
    return {
        "out.kl_forward_rows": forward,
        "out.kl_reverse_rows": reverse,
        "out.entropy_student": entropies[0],
        "out.entropy_teacher": entropies[1],
        "out.delta": entropies[1] - entropies[0],
        "out.w_forward": weights.forward,
        "out.w_reverse": weights.reverse,
        "out.loss_student": losses[0],
        "out.loss_teacher": losses[1],
        "out.teacher_kl_rows": as_term(terms["peer_kl"]).values / temperature**2,
        **gradients(losses[0], {"student_logits": student}),
        **gradients(losses[1], {"teacher_logits": peer}),
    }
