"""Adapters of the relation methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from goldens.drive import batch_of, built, signals_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.token_graph import graph_divergence
from limbeck.functional.tokens import sampled_rows
from limbeck.methods.base import Method, build_method
from limbeck.methods.relation.crd import CRD
from limbeck.methods.relation.trg import TRG
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, as_term

_TOKENS = ("student_tokens", "teacher_tokens")


def _features(case: Case) -> tuple[Tensor, Tensor]:
    return case.input("student_feat", requires_grad=True), case.input("teacher_feat")


def _batch(features: Tensor) -> Batch:
    return batch_of(torch.zeros(len(features), dtype=torch.long))


def _one_term(method: Method, term: str, student: Signals, teacher: Signals) -> Tensor:
    features = next(iter(student.features.values()))[0]
    return as_term(method(_batch(features), student=student, teacher=teacher)[term]).mean()


@replays("sp")
def sp(case: Case) -> dict[str, Tensor]:
    student, teacher = _features(case)
    loss = _one_term(build_method("sp"), "sp", signals_of(student), signals_of(teacher))
    return {
        "out.loss": loss,
        "out.loss_weighted": case.config["feat_weight"] * loss,
        **gradients(loss, {"student_feat": student}),
    }


@replays("rkd")
def rkd(case: Case) -> dict[str, Tensor]:
    student, teacher = _features(case)
    method = build_method("rkd", squared=case.config["squared"], eps=case.config["eps"])
    method.weights.update(distance=case.config["distance_weight"], angle=case.config["angle_weight"])
    terms = method(_batch(student), student=signals_of(student), teacher=signals_of(teacher))
    loss = total(method, terms, ("distance", "angle"))
    return {
        "out.loss": loss,
        "out.loss_distance": as_term(terms["distance"]).mean(),
        "out.loss_angle": as_term(terms["angle"]).mean(),
        **gradients(loss, {"student_feat": student}),
    }


@replays("pkt")
def pkt(case: Case) -> dict[str, Tensor]:
    student, teacher = _features(case)
    method = build_method("pkt", eps=case.config["eps"])
    loss = _one_term(method, "pkt", signals_of(student), signals_of(teacher))
    return {
        "out.loss": loss,
        "out.loss_weighted": case.config["feat_weight"] * loss,
        **gradients(loss, {"student_feat": student}),
    }


@replays("cc")
def cc(case: Case) -> dict[str, Tensor]:
    student, teacher = _features(case)
    signals = {"student": signals_of(student), "teacher": signals_of(teacher)}
    benchmark = built(build_method("cc", form="repdistiller", embedding=student.shape[1]), signals)
    # The file's features are embedded already, so the method's own embeddings are the identity here.
    with torch.no_grad():
        for layer in benchmark.embed.values():
            layer.weight.copy_(torch.eye(student.shape[1]))
            layer.bias.zero_()
    loss = _one_term(benchmark, "cc", **signals)
    kernel = build_method("cc", gamma=case.config["gamma"], order=case.config["order"])
    paper = _one_term(kernel, "cc", **signals)
    leaves = {"student_feat": student}
    return {
        "out.loss": loss,
        "out.loss_paper_rbf": paper,
        **gradients(loss, leaves),
        **gradients(paper, leaves, "__paper_rbf"),
    }


@replays("crd")
def crd(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = _features(case)
    method = build_method(
        "crd",
        embedding=config["feat_dim"],
        negatives=config["nce_k"],
        temperature=config["nce_t"],
        momentum=config["momentum"],
        eps=config["eps"],
    )
    assert isinstance(method, CRD)
    labels = torch.arange(config["n_data"]) % 2
    built(method, {"student": signals_of(student), "teacher": signals_of(teacher)}, labels=labels)
    slots = {"embed_s": "embed.student", "embed_t": "embed.teacher"}
    names = {f"{ours}.{p}": f"{slot}.{p}" for ours, slot in slots.items() for p in ("weight", "bias")}
    parameters = case.load_into(method, {**names, "memory_v1": "memory_student", "memory_v2": "memory_teacher"})

    batch = batch_of(labels[: len(student)], index=case.input("idx"), contrast_index=case.input("contrast_idx"))
    means = _step(method, batch, student, teacher)
    loss = means["crd_student"] + means["crd_teacher"]
    first = gradients(loss, {"student_feat": student, **parameters})
    method.after_step(Progress(1, 1, 1))
    after = method.memory_student.clone(), method.memory_teacher.clone(), method.log_z.exp()
    second = _step(method, batch, student.detach() * 0.7 + 0.1, teacher)
    return {
        "out.loss": loss,
        "out.loss_s": means["crd_student"],
        "out.loss_t": means["crd_teacher"],
        "out.Z_v1": after[2][0],
        "out.Z_v2": after[2][1],
        "out.memory_v1_after": after[0],
        "out.memory_v2_after": after[1],
        "out.loss_second_step": second["crd_student"] + second["crd_teacher"],
        **first,
    }


def _step(method: Method, batch: Batch, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    terms = method(batch, student=signals_of(student), teacher=signals_of(teacher))
    return {name: as_term(value).mean() for name, value in terms.items()}


def _as_map(tokens: Tensor) -> Tensor:
    """Tokens ``[B, N, D]`` as a map of one row, so that their number need be no square."""
    return tokens.transpose(1, 2).unsqueeze(2)


@replays("trg")
def trg(case: Case) -> dict[str, Any]:
    """The file's losses are sums over the sampled tokens; the temperature is that of the moment."""
    config = case.config
    tokens = {name: case.input(name, requires_grad=name == "student_tokens") for name in _TOKENS}
    sides = {
        role: Signals(logits=torch.zeros(len(t), 2, dtype=torch.float64), features={"stages": (_as_map(t),)})
        for role, t in zip(("student", "teacher"), tokens.values())
    }
    options = {"neighbours": config["k"], "bandwidth": config["sigma"], "reduction": "sum"}
    method = build_method("trg", **options, start_temperature=config["tau_g"], end_temperature=config["tau_g"])
    assert isinstance(method, TRG)
    built(method, sides)
    parameters = case.load_into(method, {f"proj.{p}": f"projection.{p}" for p in ("weight", "bias")})
    nodes = case.input("sample_index")
    labels = torch.zeros(len(tokens["student_tokens"]), dtype=torch.long)
    method.weights.update(
        {
            name: config[key]
            for name, key in (("inner", "alpha_inner"), ("local", "beta_local"), ("global", "gamma_global"))
        }
    )
    terms = method(batch_of(labels, token_index=nodes), **sides)
    loss = total(method, terms, ("inner", "local", "global"))
    graphs = [method.graph(sampled_rows(t, nodes)) for t in tokens.values()]
    return {
        **{f"out.loss_{name}": as_term(terms[name]).mean() for name in ("inner", "local", "global")},
        "out.loss_local_student_first": graph_divergence(*graphs, student_first=True, reduction="sum"),
        "out.loss_total": loss,
        "out.adjacency_student": graphs[0].adjacency(),
        "out.adjacency_teacher": graphs[1].adjacency(),
        **gradients(loss, {"student_tokens": tokens["student_tokens"], **parameters}),
    }
