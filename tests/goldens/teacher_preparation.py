"""Adapters of the methods that prepare a teacher."""

from __future__ import annotations

from typing import Any

import torch

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.conditional_information import conditional_mutual_information
from limbeck.methods.base import Setup, build_method
from limbeck.signals import Signals, as_term


@replays("mcmi")
def conditional_information(case: Case) -> dict[str, Any]:
    """Centroids come from the whole data set in two passes' worth of batches; the loss is of a part of it."""
    logits, labels = case.input("all_logits"), case.input("all_labels")
    ours = case.input("batch_logits", requires_grad=True)
    batch = batch_of(case.input("batch_labels"))
    method = build_method("mcmi", weight=case.config["lambda_cmi"])
    method.build(Setup(signals={"student": Signals(logits=logits)}, models={}))
    method.double()
    halves = [slice(0, len(labels) // 2), slice(len(labels) // 2, None)]
    method.prepare(lambda: iter([(batch_of(labels[h]), {"student": Signals(logits=logits[h])}) for h in halves]))
    terms = method(batch, student=Signals(logits=ours))
    loss = total(method, terms)
    assert isinstance(method.log_centroids, torch.Tensor)
    return {
        "out.centroids": method.log_centroids.exp(),
        "out.loss": loss,
        "out.loss_ce": as_term(terms["ce"]).mean(),
        "out.cmi_batch": -as_term(terms["negative_cmi"]).mean(),
        "out.cmi_dataset": conditional_mutual_information(logits, labels, method.log_centroids),
        **gradients(loss, {"batch_logits": ours}),
    }
