"""Adapters of the logit methods, of mutual learning and of born-again networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from goldens.drive import at_epoch, batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional import cross_entropy, standardize
from limbeck.functional.dark_knowledge import permuted_dark_knowledge
from limbeck.functional.plackett_luce import label_first_order, plackett_luce
from limbeck.functional.sinkhorn import sinkhorn_plan
from limbeck.methods.base import LogitMethod, build_method
from limbeck.signals import Signals, as_term


def _logits(case: Case) -> tuple[Tensor, Tensor]:
    return case.input("student_logits", requires_grad=True), case.input("teacher_logits")


@replays("kd")
def kd(case: Case) -> dict[str, Tensor]:
    student, teacher = _logits(case)
    method = build_method("kd", temperature=case.config["temperature"])
    method.weights.update(ce=case.config["ce_weight"], kd=case.config["kd_weight"])
    terms = method(batch_of(case.input("labels")), student=Signals(logits=student), teacher=Signals(logits=teacher))
    ce, distilled = as_term(terms["ce"]).mean(), as_term(terms["kd"]).mean()
    loss = total(method, terms)
    leaves = {"student_logits": student}
    return {
        "out.loss_kd": distilled,
        "out.loss_ce": ce,
        "out.loss_total": loss,
        **gradients(loss, leaves),
        **gradients(distilled, leaves, "__loss_kd_only"),
    }


@replays("dkd")
def dkd(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = _logits(case)
    method = build_method(
        "dkd",
        alpha=config["alpha"],
        beta=config["beta"],
        temperature=config["temperature"],
        warmup_epochs=config["warmup_epochs"],
    )
    terms = method(batch_of(case.input("labels")), student=Signals(logits=student), teacher=Signals(logits=teacher))
    parts = ("tckd", "nckd")
    loss = total(method, terms, parts)
    now = at_epoch(config["epoch"])
    unit = build_method("dkd", alpha=1.0, warmup_epochs=config["warmup_epochs"]).weights["tckd"]
    assert callable(unit)
    return {
        "out.loss": loss,
        "out.tckd": as_term(terms["tckd"]).mean(),
        "out.nckd": as_term(terms["nckd"]).mean(),
        "out.warmup_factor": torch.tensor(unit(now), dtype=torch.float64),
        "out.loss_warm": total(method, terms, parts, now),
        **gradients(loss, {"student_logits": student}),
    }


@replays("dist")
def dist(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = _logits(case)
    method = build_method(
        "dist", beta=config["beta"], gamma=config["gamma"], temperature=config["tau"], eps=config["eps"]
    )
    labels = torch.zeros(len(student), dtype=torch.long)
    terms = method(batch_of(labels), student=Signals(logits=student), teacher=Signals(logits=teacher))
    loss = total(method, terms, ("inter", "intra"))
    # The file gives both parts before they are multiplied by the squared temperature.
    return {
        "out.loss": loss,
        "out.inter": as_term(terms["inter"]).mean() / config["tau"] ** 2,
        "out.intra": as_term(terms["intra"]).mean() / config["tau"] ** 2,
        **gradients(loss, {"student_logits": student}),
    }


@replays("mlkd")
def mlkd(case: Case) -> dict[str, Tensor]:
    leaves = {f"student_logits_{view}": case.input(f"student_logits_{view}", True) for view in ("weak", "strong")}
    student = _two_views(leaves["student_logits_weak"], leaves["student_logits_strong"])
    teacher = _two_views(case.input("teacher_logits_weak"), case.input("teacher_logits_strong"))
    batch = batch_of(case.input("labels"))
    options: dict[str, Any] = {name: case.config[name] for name in ("temperature", "extra_temperatures", "percentile")}
    weights = {"ce": case.config["ce_weight"], **dict.fromkeys(("kd", "bc", "cc"), case.config["kd_weight"])}

    released = build_method("mlkd", **options, released_code=True)
    released.weights.update(weights)
    terms = released(batch, student=student, teacher=teacher)
    loss = total(released, terms)
    samples, classes = released.masks(teacher.logits)

    intended = build_method("mlkd", **options)
    intended.weights.update(weights)
    return {
        "out.loss_total": loss,
        **{f"out.loss_{name}": total(released, terms, (name,)) for name in ("ce", "kd", "cc", "bc")},
        "out.conf_mask": samples,
        "out.class_mask": classes,
        "out.loss_kd_masked_as_intended": total(intended, intended(batch, student=student, teacher=teacher), ("kd",)),
        **gradients(loss, leaves),
    }


def _two_views(weak: Tensor, strong: Tensor) -> Signals:
    return Signals(logits=weak, views={"strong": Signals(logits=strong)})


@replays("logit-standardization")
def logit_standardization(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = _logits(case)
    batch = batch_of(case.input("labels"))
    transform = partial(standardize, eps=config["eps"])
    weight, temperature = config["kd_weight"], config["base_temp"]

    def run(name: str, change: Callable[[Tensor], Tensor] | None, **options: Any) -> tuple[LogitMethod, Any]:
        method = build_method(name, temperature=temperature, **options)
        assert isinstance(method, LogitMethod)
        if change is not None:
            method.logit_transform = change
        return method, method(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))

    _, terms = run("kd", transform)
    _, plain = run("kd", None)
    decoupled, parts = run("dkd", transform, alpha=config["dkd_alpha"] * weight, beta=config["dkd_beta"] * weight)
    rows = as_term(terms["kd"]).values
    loss, loss_dkd = rows.mean(), total(decoupled, parts, ("tckd", "nckd"))
    leaves = {"student_logits": student}
    return {
        "out.loss_kd": loss,
        "out.loss_kd_weighted": weight * loss,
        "out.loss_kd_rows": rows,
        "out.loss_dkd": loss_dkd,
        "out.loss_kd_without_standardisation": as_term(plain["kd"]).mean(),
        "out.standardised_student": transform(student),
        **gradients(loss, leaves),
        **gradients(loss_dkd, leaves, "__dkd"),
    }


def label_sets(case: Case) -> dict[str, Tensor]:
    """Labels by the suffix of their results: ``_soft_labels`` for soft ones beside hard ones, else none."""
    names = [name for name in case.input_names() if "label" in name]
    return {"" if name == "labels" or len(names) == 1 else "_soft_labels": case.input(name) for name in names}


def suffixed(results: dict[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """Appends a suffix to the names of results; gradients have it after one and after two underscores."""
    named = {name + suffix: value for name, value in results.items()}
    return named | {f"{name}_{suffix}": value for name, value in results.items() if suffix and name.startswith("grad.")}


@replays("nkd")
def nkd(case: Case) -> dict[str, Tensor]:
    student, teacher = _logits(case)
    method = build_method("nkd", gamma=case.config["gamma"], temperature=case.config["temp"])
    results: dict[str, Tensor] = {}
    for suffix, labels in label_sets(case).items():
        terms = method(batch_of(labels), student=Signals(logits=student), teacher=Signals(logits=teacher))
        loss = total(method, terms, ("target", "nontarget"))
        found = {
            "out.loss": loss,
            "out.loss_target": total(method, terms, ("target",)),
            "out.loss_nontarget": total(method, terms, ("nontarget",)),
            **gradients(loss, {"student_logits": student}),
        }
        results |= suffixed(found, suffix)
    return results


@replays("pld")
def pld(case: Case) -> dict[str, Tensor]:
    student, teacher = _logits(case)
    batch = batch_of(case.input("labels"))

    def rows(**options: Any) -> Tensor:
        terms = build_method("pld", **options)(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))
        return as_term(terms["pld"]).values

    values = rows(teacher_temperature=case.config["tau_teacher"])
    order = label_first_order(teacher, batch["labels"])
    first = torch.zeros_like(teacher).index_fill_(1, torch.tensor(0), 1.0)
    return {
        "out.loss": values.mean(),
        "out.loss_rows": values,
        "out.loss_uniform_weights": rows(places="uniform").mean(),
        "out.loss_first_only_equals_ce": plackett_luce(student, order, weights=first),
        **gradients(values.mean(), {"student_logits": student}),
    }


@replays("sinkd")
def sinkd(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = _logits(case)
    options = {"temperature": config["temperature"], "epsilon": config["epsilon"], "iterations": config["n_iters"]}
    method = build_method("sinkd", **options, kd_temperature=config["temperature"])
    batch = batch_of(torch.zeros(len(student), dtype=torch.long))
    terms = method(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))
    # The file sums over the batch.
    loss = as_term(terms["sinkhorn"]).total()
    ours, theirs = (torch.softmax(z / config["temperature"], 1) for z in (student, teacher))
    cost = torch.cdist(ours, theirs, p=1.0)
    plan = sinkhorn_plan(cost, epsilon=config["epsilon"], iterations=config["n_iters"])
    return {
        "out.loss_sinkhorn": loss,
        "out.loss_scaled": config["scale"] * loss,
        "out.plan": plan,
        "out.cost": cost,
        "out.loss_soft_ce": as_term(terms["kd"]).mean(),
        "out.identity_mass": plan.sum(),
        **gradients(loss, {"student_logits": student}),
    }


@replays("torchdistill KDLoss conventions")
def torchdistill_kdloss(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = _logits(case)
    labels = case.input("labels")
    alpha, reduction = config["alpha"] or 0.0, config["reduction"]
    beta = 1 - alpha if config["beta"] is None else config["beta"]
    ce = cross_entropy(
        student,
        labels,
        mask=labels != config["ignore_index"],
        reduction="mean" if reduction == "batchmean" else reduction,
    )
    # torchdistill hands ``reduction`` to an elementwise loss, so its "mean" also divides by the classes.
    count = {"batchmean": len(student), "mean": student.numel(), "sum": 1}[reduction]

    def distilled(scale_by_t2: bool) -> Tensor:
        method = build_method("kd", temperature=config["temperature"], scale_by_t2=scale_by_t2)
        assert isinstance(method, LogitMethod)
        return as_term(method.distill(student, teacher, labels)["kd"]).values.sum() / count

    bare = distilled(False)
    loss = alpha * ce + beta * distilled(True) if alpha else bare
    return {
        "out.loss": loss,
        "out.ce": ce,
        "out.kl": bare,
        "out.alpha_zero": bare,
        **gradients(loss, {"student_logits": student}),
    }


@replays("mutual-ban")
def mutual_and_born_again(case: Case) -> dict[str, Tensor]:
    members, labels = case.input("logits", requires_grad=True), case.input("labels")
    batch = batch_of(labels)
    losses = torch.stack([_mutual_loss(case, batch, list(members.unbind()), m) for m in range(len(members))])
    dml_gradients = [torch.autograd.grad(loss, members, retain_graph=True)[0] for loss in losses]
    return {
        "out.dml": losses,
        "grad.dml": torch.stack(dml_gradients).sum(0),
        "out.ensemble": torch.softmax(members, -1).mean(0),
        **_born_again(case, batch, members[0].detach()),
    }


def _mutual_loss(case: Case, batch: Any, members: list[Tensor], member: int) -> Tensor:
    """Loss of one member: with more than two, the mean of its divergences from each of the others."""
    method = build_method("dml", temperature=case.config["temperature"])
    me = Signals(logits=members[member])
    others = [Signals(logits=logits) for number, logits in enumerate(members) if number != member]
    pairs = [method(batch, student=me, peer=other) for other in others]
    mimicry = torch.stack([total(method, terms, ("kl",)) for terms in pairs]).mean()
    return total(method, pairs[0], ("ce",)) + mimicry


def _born_again(case: Case, batch: Any, teacher: Tensor) -> dict[str, Tensor]:
    """Losses of the three variants; the file permutes by reversing the order of the other classes."""
    results: dict[str, Tensor] = {}
    order = torch.arange(teacher.shape[1] - 2, -1, -1).expand(len(teacher), -1)
    for variant in ("ban", "cwtm", "dkpp"):
        student = case.input("ban_student", requires_grad=True)
        method = build_method("born_again", variant=variant)
        given = type(batch)({**batch, "dark_order": order})
        loss = total(method, method(given, student=Signals(logits=student), teacher=Signals(logits=teacher)))
        results[f"out.{variant}"] = loss
        results.update(gradients(loss, {variant: student}))
    results["out.dkpp_targets"] = permuted_dark_knowledge(teacher, order)
    return results
