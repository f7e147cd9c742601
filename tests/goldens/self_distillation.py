"""Adapters of the methods in which a network teaches itself."""

from __future__ import annotations

from typing import Any

import torch

from goldens.replay import Case, gradients, replays
from limbeck.functional.classification import cross_entropy
from limbeck.functional.self_supervised import class_scores, hierarchical_self_supervised, joint_labels, rotations
from limbeck.methods.base import Setup, build_method
from limbeck.methods.self_distillation.lsskd import LSSKD
from limbeck.schedules import Progress
from limbeck.signals import Signals, as_term


@replays("lsskd", "LSSKD layered self-supervised distillation (SAD auxiliary heads, layered one-to-one transfer)")
def layered(case: Case) -> dict[str, Any]:
    """What final head and branches say is given, as are the predictions of the epoch before."""
    config, labels = case.config, case.input("y")
    turns, classes = config["num_transforms"], config["num_classes"]
    final = case.input("final", requires_grad=True)
    joint, features = case.numbered("aux", requires_grad=True), case.numbered("feat", requires_grad=True)
    weights = config.get("weights", [1.0, 1.0, 1.0, 0.1])
    method = build_method(
        "lsskd",
        temperature=config["temperature"],
        softening=config["alpha_T"],
        feature_weight=weights[3],
        orientations=turns,
    )
    assert isinstance(method, LSSKD)
    stages = tuple(torch.zeros(2, 4, 4, 4) for _ in joint)
    said = Signals(logits=torch.zeros(2, classes), features={"stages": stages, "pooled": (torch.zeros(2, 4),)})
    method.build(Setup(signals={"student": said}, models={}, labels=labels))
    method.double()
    index, rows = torch.arange(len(labels)), len(labels)
    method.last_logits.copy_(case.input("prev_final"))
    earlier = [case.input(f"prev_{name}").view(rows, turns, -1) for name in joint]
    method.last_joint_logits.copy_(torch.stack(earlier, dim=1))
    method.last_epoch.fill_(config["epoch"] - 1)
    method.after_step(Progress(config["epoch"], 1, config["epochs"]))
    terms = method.losses(index, labels, final, list(joint.values()), list(features.values()), case.input("feat_deep"))
    means = {name: as_term(value).mean() for name, value in terms.items()}
    loss = torch.stack([w * mean for w, mean in zip(weights, means.values())]).sum()
    hsakd = hierarchical_self_supervised(
        final,
        list(joint.values()),
        case.input("teacher_final"),
        [case.input(f"teacher_{name}") for name in joint],
        labels,
        temperature=config["temperature"],
        count=turns,
    )
    turned = joint_labels(labels, count=turns)
    leaves = {"final": final, **joint, **features}
    return {
        "out.x_rot": rotations(case.input("x"), count=turns),
        "out.joint_labels": turned,
        "out.loss_hsakd": hsakd,
        "out.loss_sad_hard": torch.stack([cross_entropy(own, turned) for own in joint.values()]).sum(),
        "out.alpha": method.share,
        "out.loss_task": means["task"],
        "out.loss_sad": means["sad"],
        "out.loss_layer_kl": means["layers"],
        "out.loss_feature": means["features"],
        "out.loss": loss,
        "out.class_from_joint": class_scores(list(joint.values())[-1], count=turns),
        **gradients(hsakd, {"final": final, **joint}, "_hsakd"),
        **gradients(loss, leaves),
    }
