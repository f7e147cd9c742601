"""Adapters of methods that choose the text to learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from goldens.drive import total
from goldens.replay import Case, gradients, replays
from goldens.sequence import token_batch
from limbeck.functional.domain_weights import largest_remainder
from limbeck.functional.sequences import sequence_means
from limbeck.methods.base import build_method
from limbeck.selection import PoolSignals, build_selector
from limbeck.signals import Signals, as_term


@replays("MiniPLM difference sampling")
def miniplm(case: Case) -> dict[str, Tensor]:
    mask = case.input("mask")
    method = build_method("miniplm")
    losses = {
        role: sequence_means(-case.input(f"{name}_token_logprobs"), mask)
        for role, name in (("teacher", "teacher"), ("reference", "ref"))
    }
    pool = PoolSignals(index=torch.arange(len(mask)), loss=losses, tokens=mask.sum(-1))
    assert method.selection is not None
    found = {}
    for normalized in (True, False):
        options = {"name": method.selection, "ratio": case.config["ratio"], "normalized": normalized}
        found[normalized] = build_selector(options, "documents")(pool)
    everything = build_selector({"name": method.selection, "ratio": 1.0}, "documents")(pool)
    assert everything.order is not None
    return {
        "out.teacher_nll": losses["teacher"],
        "out.ref_nll": losses["reference"],
        "out.difference": found[True].scores,
        "out.order": everything.order,
        "out.kept": found[True].chosen.nonzero().squeeze(1),
        "out.difference_sum": found[False].scores,
        "out.kept_sum": found[False].chosen.nonzero().squeeze(1),
    }


@replays("DDK domain discrepancy factors and loss")
def ddk(case: Case) -> dict[str, Tensor]:
    config = case.config
    method = build_method("ddk", gamma=config["gamma"], temperature=config["temperature"])
    assert method.selection is not None
    selector = build_selector({"name": method.selection, "smoothing": config["alpha"]}, "domains")
    teacher_losses, ratios, factors, grown = case.input("teacher_ce"), [], [], []
    share = None
    for losses in case.input("student_ce"):
        found = selector(PoolSignals(loss={"student": losses, "teacher": teacher_losses}, share=share))
        if share is not None:
            grown.append(share * found.scores.exp())
        share = found.share
        ratios.append(found.scores)
        factors.append(share)
    student = case.input("student_logits", requires_grad=True)
    signals = {"student": Signals(logits=student), "teacher": Signals(logits=case.input("teacher_logits"))}
    terms = method(token_batch(case.input("labels")), **signals)
    loss = total(method, terms)
    return {
        "out.ppl_ratio": torch.stack(ratios),
        "out.factors": torch.stack(factors),
        "out.psi": torch.stack(grown),
        "out.allocation": largest_remainder(factors[-1], config["allocation_total"]),
        "out.ce": as_term(terms["ce"]).mean(),
        "out.kl": as_term(terms["kd"]).mean(),
        "out.loss": loss,
        **gradients(loss, {"student_logits": student}),
    }
