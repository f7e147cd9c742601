"""Adapters of the methods whose models learn together, and of those that learn how to weigh samples."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.balanced_divergences import certainty_weights, entropy
from limbeck.functional.classification import cross_entropy
from limbeck.functional.divergences import kl
from limbeck.functional.influence import hessian_vector_product, influence_weights
from limbeck.functional.trilateral import trilateral_features
from limbeck.methods.base import Passes, Setup, build_method
from limbeck.methods.logit.kd_aif import KDAIF
from limbeck.methods.logit.tgeo_kd import TGeoKD
from limbeck.schedules import Progress
from limbeck.signals import Signals, as_term
from limbeck.tasks.classification import Classification
from limbeck.teachers.provider import Observer

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


@replays("kd-aif")
def influence(case: Case) -> Results:
    """A linear student without bias, whose features are its inputs."""
    config, weight = case.config, case.input("student_weight")
    teacher, held = case.input("teacher_logits"), case.input("labels_val")
    train, val = ({"inputs": case.input(name)} for name in ("x_train", "x_val"))
    classes, width = weight.shape
    student = _linear(weight)
    said = {
        part: Signals(logits=entry["inputs"] @ weight.T, features={"pooled": (entry["inputs"],)})
        for part, entry in (("train", train), ("val", val))
    }
    method = build_method("kd_aif", temperature=config["temperature"], damping=config["damping"])
    assert isinstance(method, KDAIF)
    labels = torch.arange(len(teacher)) % classes
    method.build(Setup(signals={}, models={"student": student}, labels=labels))
    method.double()
    batch = batch_of(labels)
    signals = {"student": said["train"], "teacher": Signals(logits=teacher)}
    passes = Passes(lambda: iter([(batch, signals)]), lambda: iter([(batch_of(held), {"student": said["val"]})]))
    method.refresh(Progress(1, 1, 1), passes)
    scores = method.helpfulness

    rows = lambda w: kl(train["inputs"] @ w.T, teacher, temperature=config["temperature"], reduction="none")  # noqa: E731
    unit = torch.eye(classes * width, dtype=torch.float64).unflatten(1, (classes, width))
    products = [hessian_vector_product(lambda w: rows(w).mean(), [weight], [v])[0].flatten() for v in unit]
    free = weight.clone().requires_grad_()
    each = [torch.autograd.grad(row, free, retain_graph=True)[0].flatten() for row in rows(free)]
    held_loss = cross_entropy(val["inputs"] @ free.T, held)
    return {
        "out.hessian": torch.stack(products),
        "out.grad_val": torch.autograd.grad(held_loss, free)[0].flatten(),
        "out.grads_train": torch.stack(each),
        "out.influence_up_loss": -scores,
        "out.helpfulness": scores,
        "out.weights_exp_minmax": method.sample_weights,
        "out.weights_sigmoid_z": influence_weights(scores, form="sigmoid"),
        "out.weights_exp_minmax_raw_sign": influence_weights(-scores),
        "out.loss_weighted": total(method, method(batch, **signals)),
    }


def _linear(weight: Tensor) -> nn.Module:
    """A linear model without bias that says where its classifier is."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        head.weight.copy_(weight)
    return nn.Sequential(OrderedDict(head=head))


@replays("tgeo-kd")
def trilateral_geometry(case: Case) -> Results:
    """A linear student without bias; the class means are those of the file's own samples."""
    config, labels, teacher = case.config, case.input("labels_train"), case.input("teacher_logits")
    model = _linear(case.input("student.weight"))
    weight = model.get_parameter("head.weight")
    method = build_method("tgeo_kd", temperature=config["temperature"], step_size=config["inner_lr"])
    assert isinstance(method, TGeoKD)
    signals = {"teacher": Signals(logits=teacher)}
    method.build(Setup(signals=signals, models={}))
    for layer in method.controller:
        if isinstance(layer, nn.LeakyReLU):
            layer.negative_slope = config.get("leaky_relu_slope", 0.01)
    layers = {f"fc{number}": f"controller.{2 * number - 2}" for number in (1, 2, 3)}
    names = {f"controller.{fc}.{part}": f"{ours}.{part}" for fc, ours in layers.items() for part in ("weight", "bias")}
    parameters = case.load_into(method, names)
    batch = batch_of(labels, inputs=case.input("x_train"))
    batch["holdout"] = batch_of(case.input("labels_val"), inputs=case.input("x_val"))
    method.prepare(lambda: iter([(batch, signals)]))
    observer = Observer("student", model, Classification())
    said = method.observe(batch, {"student": observer, "teacher": lambda _: signals["teacher"]})
    terms = method(batch, **said)
    lower, upper = total(method, terms, ("kd", "ce")), total(method, terms, ("held_out",))
    alpha = method.alpha(batch, said["student"], said["teacher"])
    student = said["student"].logits
    assert student is not None
    distilled = kl(student, teacher, temperature=config["temperature"], reduction="none")
    # The authors' script gives probabilities to a cross-entropy that expects logits.
    twice = cross_entropy(torch.softmax(student, 1), labels, reduction="none")
    slope = gradients(lower, {"student.weight": weight})
    return {
        "out.features": trilateral_features(student, teacher, method.class_probabilities, labels),
        "out.teacher_class_mean": method.class_probabilities[labels],
        "out.alpha": alpha,
        "out.loss_lower": lower,
        "out.loss_lower_as_released": (alpha * distilled + (1 - alpha) * twice).mean(),
        "out.loss_outer": upper,
        "out.student_weight_after_inner": weight - config["inner_lr"] * slope["grad.student.weight"],
        **slope,
        **gradients(upper, parameters, "__outer"),
    }
