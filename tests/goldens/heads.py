"""Adapters of the methods that train a classifier beside the student's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from goldens.drive import batch_of, built, total
from goldens.logit import label_sets, suffixed
from goldens.replay import Case, gradients, replays
from limbeck.engine.alignment import Alignment
from limbeck.functional.head_mixture import mixed_log_probabilities
from limbeck.functional.self_labels import zipf_labels
from limbeck.functional.subclasses import SubclassProjections, class_log_probabilities, subclass_log_targets
from limbeck.methods.base import Method, Passes, build_method
from limbeck.methods.logit.dho import DHO
from limbeck.methods.self_distillation.uskd import USKD
from limbeck.schedules import Progress
from limbeck.signals import UNLABELLED, Signals, Terms, as_term

START = Progress(0, 1, 1)


class _Student(nn.Module):
    """A hidden layer with ReLU and a linear classifier."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(inputs, hidden, bias=False)
        self.head_ce = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Signals:
        features = torch.relu(self.backbone(inputs))
        return Signals(logits=self.head_ce(features), features={"pooled": (features,)})


@replays("dhkd")
def dhkd(case: Case) -> dict[str, Tensor]:
    config, inputs, teacher = case.config, case.input("x"), Signals(logits=case.input("teacher_logits"))
    hidden, width = case.input("backbone.weight").shape
    student = _Student(width, hidden, case.input("head_ce.bias").shape[0])
    own = ("backbone.weight", "head_ce.weight", "head_ce.bias")
    parameters = case.load_into(student, {name: name for name in own})
    options = {name: config[name] for name in ("alpha", "gamma", "temperature")}

    def run(**further: Any) -> tuple[Method, Terms, Tensor]:
        method = build_method("dhkd", **options, eps=config["clamp_eps"], **further)
        said = student(inputs)
        built(method, {"student": said, "teacher": teacher})
        parameters.update(case.load_into(method, {f"head_kd.{p}": f"head.{p}" for p in ("weight", "bias")}))
        batch = batch_of(case.input("labels"))
        return method, method(batch, student=said, teacher=teacher), said.feature("pooled")

    _, plain, _ = run(loss="binary_kl")
    method, terms, features = run(gradients="aligned")
    logits = method.get_submodule("head")(features)
    distance = as_term(method(batch_of(case.input("labels")), student=student(inputs), teacher=teacher)["logit"])
    apart = {n: gradients(total(method, terms, (t,)), parameters, f"__{n}") for n, t in (("ce", "ce"), ("kd", "logit"))}
    product = sum((a * b).sum() for a, b in zip(apart["ce"].values(), apart["kd"].values()))
    alignment = Alignment(list(parameters.values()), method.yielding())
    alignment.add({name: as_term(term).mean() for name, term in terms.items()}, method.weights, START)
    alignment.merge()
    return {
        "out.head_ce_logits": student(inputs).logits,
        "out.head_kd_logits": logits,
        "out.loss_ce": as_term(terms["ce"]).mean(),
        "out.loss_binary_kl_norm": distance.mean(),
        "out.loss_binary_kl": as_term(plain["logit"]).mean(),
        "out.grad_dot": product,
        "out.conflict": (product < 0).double(),
        **_of_auxiliary_logits(method, case, logits, teacher),
        **apart["ce"],
        **apart["kd"],
        **{f"grad.{name}__aligned": p.grad for name, p in parameters.items() if p.grad is not None},
    }


def _of_auxiliary_logits(method: Method, case: Case, logits: Tensor, teacher: Signals) -> dict[str, Tensor]:
    """Gradient of the unweighted loss, with the auxiliary classifier replaced by the identity."""
    leaf = logits.detach().requires_grad_()
    single = build_method("dhkd", heads="single", temperature=case.config["temperature"], eps=case.config["clamp_eps"])
    terms = single(batch_of(case.input("labels")), student=Signals(logits=leaf), teacher=teacher)
    return gradients(as_term(terms["logit"]).mean(), {"head_kd_logits": leaf})


@replays("uskd")
def uskd(case: Case) -> dict[str, Tensor]:
    leaves = {name: case.input(name, requires_grad=True) for name in ("student_logits", "mid_feature")}
    student, middle = leaves.values()
    said = Signals(logits=student, features={"stages": (middle, middle)})
    results: dict[str, Tensor] = {}
    for suffix, labels in label_sets(case).items():
        for rank, released in (("", True), ("_paper_rank", False)):
            method = build_method(
                "uskd", **{n: case.config[n] for n in ("alpha", "beta", "mu", "smoothing")},
                released_code=released, eps=1e-6,
            )  # fmt: skip
            built(method, {"student": said})
            assert isinstance(method, USKD)
            weak = case.load_into(method, {f"fc.{p}": f"weak.{p}" for p in ("weight", "bias")})
            terms = method(batch_of(labels), student=said)
            loss = total(method, terms, ("target", "nontarget", "weak"))
            left_out = method.left_out(labels, student.shape[1]).double()
            zipf = zipf_labels(student, method.weak(middle), left_out, eps=1e-6, released_code=released)
            found = {
                f"out.loss{rank}": loss,
                f"out.nontarget_soft_labels{rank}": zipf,
                **{f"out.loss_{name}{rank}": _part(name, method, terms) for name in ("target", "nontarget", "weak")},
                **gradients(loss, {**leaves, **weak}, rank and f"_{rank}"),
            }
            results |= suffixed(found, suffix)
            if rank and suffix:  # a file may have both ends of a name in either order
                results |= {f"{name.removesuffix(rank)}{suffix}{rank}": value for name, value in found.items()}
    return results


def _part(name: str, method: Method, terms: Terms) -> Tensor:
    """A term as the authors' code has it: the weak classifier's with its weight, the others without."""
    return total(method, terms, (name,)) if name == "weak" else as_term(terms[name]).mean()


@replays("lelp")
def lelp(case: Case) -> dict[str, Tensor]:
    config, embeddings, labels = case.config, case.input("teacher_emb"), case.input("labels")
    scores = case.input("student_sub_logits", requires_grad=True)
    classes, rows = config["num_classes"], len(scores)
    teacher = nn.Sequential(nn.Linear(embeddings.shape[1], classes))
    case.load_into(teacher, {f"teacher_head.{p}": f"0.{p}" for p in ("weight", "bias")})
    method = build_method("lelp", subclasses=config["S"], sharpness=config["beta"], temperature=config["temperature"])
    said = Signals(logits=teacher(embeddings).detach(), features={"pooled": (embeddings,)})
    student = nn.Sequential(nn.Linear(scores.shape[1], classes)).double()
    ours = Signals(logits=student(scores), features={"pooled": (scores,)})
    built(method, {"student": ours, "teacher": said}, models={"student": student, "teacher": teacher})
    case.load_into(method, {"rotation": "rotation"})
    as_identity(method.get_submodule("head"))
    method.prepare(lambda: iter([(batch_of(labels), {"student": ours, "teacher": said})]))
    first = said.map(lambda tensor: tensor[:rows])
    loss = total(method, method(batch_of(labels[:rows]), student=ours, teacher=first))
    fitted = {n: getattr(method, n) for n in ("means", "directions", "scale")}
    target = subclass_log_targets(
        first.logits, first.feature("pooled"), SubclassProjections(**fitted),
        temperature=config["temperature"], sharpness=config["beta"],
    )  # fmt: skip
    return {
        "out.class_means": fitted["means"],
        "out.directions": fitted["directions"],
        "out.scale": fitted["scale"],
        "out.target": target.exp(),
        "out.loss": loss,
        "out.student_class_probs": class_log_probabilities(scores, classes).exp(),
        **gradients(loss, {"student_sub_logits": scores}),
    }


def as_identity(head: nn.Module) -> None:
    """Makes a square linear classifier give what it reads."""
    with torch.no_grad():
        head.weight.copy_(torch.eye(len(head.weight)))
        head.bias.zero_()


@replays("dho")
def dho(case: Case) -> dict[str, Any]:
    config = case.config
    leaves = {n: case.input(n, True) for n in ("labeled_ce_logits", "labeled_kd_logits", "unlabeled_kd_logits")}
    own, second, third = leaves.values()
    labels = torch.cat([case.input("labels"), torch.full((len(third),), UNLABELLED)])
    batch = batch_of(labels, labelled_mask=labels != UNLABELLED, unlabelled_mask=labels == UNLABELLED)
    student = _said(torch.cat([own, torch.zeros_like(third)]), torch.cat([second, third]))
    teacher = Signals(logits=torch.cat([case.input(f"teacher_logits_{kind}") for kind in ("labeled", "unlabeled")]))
    method = build_method("dho", label_weight=config["lambda_ce"], temperature=config["temperature"], search=True)
    assert isinstance(method, DHO)
    # The student's own classifier reads the logits of the second, from which the dry run can make its scores.
    model = nn.Sequential(nn.Linear(own.shape[1], own.shape[1])).double()
    dry = _said(model(student.feature("pooled")), student.feature("pooled"))
    built(method, {"student": dry, "teacher": teacher}, models={"student": model}, batch=batch)
    as_identity(method.get_submodule("head"))
    terms = method(batch, student=student, teacher=teacher)
    loss = total(method, terms)
    ce, kd, labels = (case.input(f"val_{name}") for name in ("ce_logits", "kd_logits", "labels"))
    held_out = batch_of(labels), {"student": _said(ce, kd)}
    method.refresh(START, Passes(lambda: iter(()), lambda: iter([held_out])))
    alpha, beta = method.mixture
    mixed = mixed_log_probabilities(ce, kd, alpha=config["infer_alpha"], beta=config["infer_beta"])
    chosen = mixed_log_probabilities(ce, kd, alpha=float(alpha), beta=float(beta)).argmax(1)
    return {
        "out.loss": loss,
        "out.loss_ce": as_term(terms["ce"]).mean(),
        "out.loss_kd_labeled": as_term(terms["kd"]).mean(),
        "out.loss_kd_unlabeled": as_term(terms["kd_unlabelled"]).mean(),
        "out.infer_probs": mixed.exp(),
        "out.best_val_acc": 100 * (chosen == labels).double().mean(),
        "out.best_alpha": alpha,
        "out.best_beta": beta,
        **gradients(loss, leaves),
    }


def _said(logits: Tensor, pooled: Tensor) -> Signals:
    return Signals(logits=logits, features={"pooled": (pooled,)})
