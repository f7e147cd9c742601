"""Adapters of methods between models with different tokenizers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from goldens.drive import built, total
from goldens.replay import Case, gradients, replays
from goldens.sequence import token_batch
from limbeck.functional.sequences import next_tokens
from limbeck.functional.spans import common_spans
from limbeck.methods.base import build_method
from limbeck.methods.projectors import project
from limbeck.methods.sequence.dskd import DSKD, embedded
from limbeck.methods.sequence.gold import GOLD
from limbeck.signals import Batch, Head, Hidden, Signals, as_term


def _two_sided(labels: Tensor, teacher_labels: Tensor) -> Batch:
    """A batch whose two sides predict labels of their own; nothing says yet which stand for the same text."""
    none = [torch.full_like(side, -1) for side in (labels, teacher_labels)]
    return token_batch(
        labels, spans=none[0], teacher_labels=teacher_labels, teacher_mask=teacher_labels != -100,
        teacher_spans=none[1],
    )  # fmt: skip


@replays("Universal Logit Distillation (cross-tokenizer, sorted L1)")
def uld(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    labels, teacher_labels = (next_tokens(case.input(f"{side}_labels"))[0] for side in ("student", "teacher"))
    method = build_method(
        "uld", distill=config["distillation_weight"], alignment="order", average="sequence_mean",
        student_temperature=config["student_temperature"], teacher_temperature=config["teacher_temperature"],
        skip_student_end=config["skip_student_eos"], skip_teacher_end=config["skip_teacher_eos"],
    )  # fmt: skip
    method.weights["ce"] = config["crossentropy_weight"]
    terms = method(_two_sided(labels, teacher_labels), Signals(logits=student[:, :-1]), Signals(logits=teacher[:, :-1]))
    loss = total(method, terms)
    distance = as_term(terms["uld"])
    return {
        "out.uld_per_sample": distance.values,
        "out.uld": distance.mean(),
        "out.ce": as_term(terms["ce"]).mean(),
        "out.loss": loss,
        **gradients(loss, {"student_logits": student}),
    }


@replays("GOLD / extended ULD: byte-offset alignment, token merging, hybrid matched+sorted loss")
def gold(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    batch = _gold_batch(case)
    # The file's `observed` reads the distribution at the place of a token itself, one after that which predicts it.
    late = config["token_merge_strategy"] == "observed"
    sides = [Signals(logits=logits if late else logits[:, :-1]) for logits in (student, teacher)]
    mapped = torch.full((teacher.shape[-1],), -1)
    if config["use_hybrid_loss"]:
        mapped[case.input("teacher_matched_ids")] = case.input("student_matched_ids")
    method = build_method(
        "gold", beta=config["beta"], open="first" if late else "last",
        shared_weight=config["hybrid_matched_weight"] if config["use_hybrid_loss"] else 0.0,
        rest_weight=config["hybrid_unmatched_weight"] if config["use_hybrid_loss"] else 1.0,
        student_temperature=config["student_temperature"], teacher_temperature=config["teacher_temperature"],
        average="sequence_mean",
    )  # fmt: skip
    assert isinstance(method, GOLD)
    built(method, {"student": sides[0], "teacher": sides[1]}, token_map=mapped)
    terms = method(batch if late else _one_earlier(batch), *sides)
    shared, rest = (as_term(terms[name]).mean() for name in ("shared", "rest"))
    ce = _shifted_ce(student, case.input("student_labels"))
    loss = config["crossentropy_weight"] * ce
    loss = loss + config["distillation_weight"] * (method.weights["shared"] * shared + method.weights["rest"] * rest)
    merged = [
        _merged(case, batch, side, late=late, temperature=config[f"{side}_temperature"])
        for side in ("student", "teacher")
    ]
    return {
        "out.student_groups": _groups(batch["spans"], batch["mask"]),
        "out.teacher_groups": _groups(batch["teacher_spans"], batch["teacher_mask"]),
        "out.student_merged": merged[0],
        "out.teacher_merged": merged[1],
        "out.matched_loss": shared,
        "out.unmatched_loss": rest,
        "out.ce": ce if config["crossentropy_weight"] else torch.zeros(()),
        "out.loss": loss,
        **gradients(loss, {"student_logits": student}),
    }


def _shifted_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of the file, whose labels stand at the tokens themselves."""
    method = build_method("sft")
    return as_term(method(token_batch(next_tokens(labels)[0]), Signals(logits=logits[:, :-1]))["ce"]).mean()


def _gold_batch(case: Case) -> Batch:
    """Labels and spans of both sides at the places of the tokens themselves."""
    labels = {side: case.input(f"{side}_labels") for side in ("student", "teacher")}
    batch = _two_sided(labels["student"], labels["teacher"])
    for row in range(len(labels["student"])):
        chosen = {side: labels[side][row] != -100 for side in labels}
        ends = {side: case.input(f"{side}_bytes")[row][chosen[side]][:, 1].numpy() for side in labels}
        if not case.config["use_extended_uld"]:
            size = min(map(len, ends.values()))
            found = [np.where(np.arange(len(e)) < size, np.arange(len(e)), -1) for e in ends.values()]
        else:
            found = list(common_spans(*ends.values())[:2])
        batch["spans"][row, chosen["student"]] = torch.from_numpy(found[0])
        batch["teacher_spans"][row, chosen["teacher"]] = torch.from_numpy(found[1])
    return batch


def _one_earlier(batch: Batch) -> Batch:
    """The same where labels stand at what predicts them."""
    per_token = {"labels", "mask", "spans", "teacher_labels", "teacher_mask", "teacher_spans"}
    return Batch((key, value[:, 1:] if key in per_token else value) for key, value in batch.items())


def _groups(spans: Tensor, mask: Tensor) -> Tensor:
    """The places within the answer of each span's tokens, filled up with -1."""
    inside = spans[0][mask[0]]
    groups = [(inside == number).nonzero()[:, 0].tolist() for number in range(int(inside.max()) + 1)]
    width = max(map(len, groups))
    return torch.tensor([group + [-1] * (width - len(group)) for group in groups])


def _merged(case: Case, batch: Batch, side: str, *, late: bool, temperature: float) -> Tensor:
    """The distributions of spans with one token left open, from probabilities: what the losses compare."""
    prefix = "" if side == "student" else "teacher_"
    mask, spans = batch[f"{prefix}mask"][0], batch[f"{prefix}spans"][0]
    logits = case.input(f"{side}_logits")[0] / temperature
    places = mask.nonzero()[:, 0]
    probabilities = dict(zip(places.tolist(), logits[places if late else places - 1].softmax(-1)))
    ids = case.input(f"{side}_ids")[0]
    merged = []
    for number in range(int(spans.max()) + 1):
        tokens = (spans == number).nonzero()[:, 0].tolist()
        base = tokens[0] if late else tokens[-1]
        product = probabilities[base].clone()
        for token in tokens:
            if token != base:
                product = product * probabilities[token][ids[token]]
        merged.append(product)
    return torch.stack(merged)


_OBJECTIVES = {
    "skewed_forward_kl": "skew_kl", "skewed_reverse_kl": "skew_rkl", "js_divergence": "jsd",
    "adaptive_kl": "adaptive_kl",
}  # fmt: skip


@replays(
    "Dual-Space KD: dual_space_kd (same tokenizer, positions aligned one to one)",
    "Dual-Space KD: dual_space_kd_with_cma (different tokenizers, cross-model attention)",
    "Dual-Space KD: dual_space_kd_with_cross_model_attention",
)
def dskd(case: Case) -> dict[str, Tensor]:
    config = case.config
    leaves = {name: case.input(name, requires_grad=True) for name in ("student_hidden", "student_head")}
    own = [name for name in case.input_names() if name.endswith(("_weight", "_bias"))]
    labels, teacher_labels = case.input("labels"), case.input("teacher_labels")
    batch = _two_sided(labels, teacher_labels)
    attends = any(name.startswith("q") for name in own)
    objective = config["kd_objective"]
    method = build_method(
        "dskd", kd_ratio=config["kd_rate"], divergence=_OBJECTIVES.get(objective, objective),
        temperature=config["kd_temperature"], teacher_temperature=config["teacher_temperature"],
        scale="batch",
    )  # fmt: skip
    assert isinstance(method, DSKD)
    teacher = Hidden(case.input("teacher_hidden"), Head(case.input("teacher_head")))
    student = Hidden(leaves["student_hidden"], Head(leaves["student_head"]))
    shown = [replace(h, table=h.states.reshape(-1, h.states.shape[-1])) for h in (student, teacher)]
    built(
        method,
        {"student": Signals(hidden=shown[0]), "teacher": Signals(hidden=shown[1])},
        batch=batch if attends else None,
    )
    places = {name: name.replace("_", ".") for name in own}
    leaves |= case.load_into(method, {n: "query" + p[p.index(".") :] if n[0] == "q" else p for n, p in places.items()})
    if attends:
        tokens = [_token_vectors(case, side) for side in ("student", "teacher")]
        method.carried = lambda batch, ours, theirs, pair: method.attended(  # type: ignore[method-assign]
            tokens[0], tokens[1], theirs.states, project(method.s2t, ours.states), pair.mask, pair.teacher_mask
        )
    else:
        batch = Batch((k, v) for k, v in batch.items() if "spans" not in k and "teacher" not in k)
    terms = {k: as_term(v) for k, v in method(batch, Signals(hidden=student), Signals(hidden=teacher)).items()}
    sums = {name: term.total() for name, term in terms.items()}
    loss = torch.stack([method.weights[name] * value for name, value in sums.items()]).sum() / config["batch_denom"]
    return {**{f"out.{name}": value for name, value in sums.items()}, "out.loss": loss, **gradients(loss, leaves)}


def _token_vectors(case: Case, side: str) -> tuple[Tensor, Tensor]:
    """The vectors of what a side reads and of what comes next: as the file gives them, or by its tables."""
    names = [name for name in case.input_names() if name.startswith((side, side[:3])) and "emb" in name]
    given = {kind: [n for n in names if kind in n.removeprefix(side)] for kind in ("input", "target")}
    if given["input"] and given["target"]:
        return case.input(given["input"][0]), case.input(given["target"][0])
    labels = case.input("labels" if side == "student" else "teacher_labels")
    ids = next(case.input(n) for n in case.input_names(side) if n.endswith("ids"))
    return embedded(case.input(names[0]), ids, labels, labels != -100)
