"""Adapters of pretraining from stored teacher outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.sparse_labels import spread_rest
from limbeck.methods.base import build_method
from limbeck.methods.logit.tinyvit import TinyViT
from limbeck.signals import Signals
from limbeck.teachers.cache.tinyvit_records import decode, encode
from limbeck.transforms.pair_mixing import draw_pair_mix, mix_pairs


@replays("TinyViT sparse teacher logits: encode, decode, loss; replayed pair mixup", "tinyvit")
def tinyvit(case: Case) -> dict[str, Any]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    seeds, k = case.input("seeds").numpy(), config["topk"]
    rows = encode(torch.softmax(teacher, -1), seeds, k=k)
    assert rows.shape[1] == config["bytes_per_sample"]
    read = decode(rows, k=k)
    probabilities = read.probabilities.double()

    method = build_method("tinyvit", k=k, half_precision=True)
    assert isinstance(method, TinyViT)
    kept, indices = method.target(teacher)
    assert torch.equal(indices, read.indices)
    assert torch.equal(kept, probabilities)
    batch = batch_of(torch.zeros(len(student), dtype=torch.long))
    loss = total(method, method(batch, student=Signals(logits=student), teacher=Signals(logits=teacher)))
    classes = teacher.shape[1]
    return {
        "out.loss": loss,
        "out.index": read.indices,
        "out.prob": probabilities,
        "out.rest": (1 - probabilities.sum(1)) / (classes - k) if k < classes else torch.zeros(len(kept)),
        "out.dense": spread_rest(read.indices, probabilities, classes),
        "out.records": rows,
        "out.decoded_seeds": read.seeds,
        **_pairs(case, seeds),
        **gradients(loss, {"student_logits": student}),
    }


def _pairs(case: Case, seeds: np.ndarray) -> dict[str, Any]:
    images, config = case.input("images"), case.config
    options = {name: config[name] for name in ("mixup_alpha", "cutmix_alpha")}
    options |= {"p": config["mixup_prob"], "switch": config["switch_prob"]}
    size = (images.shape[2], images.shape[3])
    together = list(zip(seeds[::2].tolist(), seeds[1::2].tolist()))
    pairs = [draw_pair_mix(a, b, size, **options) for a, b in together]
    draws = [np.random.Generator(np.random.PCG64(a ^ b)).random() for a, b in together]
    return {
        "out.pair_seed": np.asarray([a ^ b for a, b in together]),
        "out.pair_first_draw": np.asarray(draws),
        # The authors keep the shares in single precision.
        "out.lam": np.repeat([pair.share for pair in pairs], 2).astype(np.float32),
        "out.mixed": mix_pairs(images, pairs),
    }
