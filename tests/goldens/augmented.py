"""Adapters of methods that change what the models see: mixup in KD, learned augmentation, data from the web."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.functional.affine_warp import reparameterised, warp, warp_matrices
from limbeck.functional.web_images import confident_samples, disagreement_weights, mix_distributions, teacher_share
from limbeck.methods.base import build_method
from limbeck.methods.feature.kd3 import KD3
from limbeck.methods.feature.simkd import ReusedClassifier
from limbeck.signals import Signals, as_term
from limbeck.transforms.learnt_augmentation import augmentor_is_next, augmentor_loss
from limbeck.transforms.partial_mixup import blend, leave_unmixed


@replays("Mixup in KD: partial mixup (PMU) and std-rescaled logits (adaptive per-sample temperature)")
def mix_kd(case: Case) -> dict[str, Tensor]:
    inputs, labels = case.input("x"), case.input("labels")
    first, second, shares = case.input("perm1"), case.input("perm2"), case.input("lam")
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    kept = leave_unmixed(shares, case.input("ridx"))
    mixed = blend(one_hot(labels, student.shape[1]).double(), kept, second, first)
    method = build_method("mix_kd", gamma=case.config["gamma"], alpha=case.config["alpha"])
    terms = method(batch_of(mixed), student=Signals(logits=student), teacher=Signals(logits=teacher))
    return {
        "out.x_mix": blend(inputs, kept, second, first),
        "out.y_mix": mixed,
        "out.x_mix_full": blend(inputs, shares, second, first),
        "out.lam_effective": kept,
        "out.loss_cls": total(method, terms, ("ce",)),
        "out.loss_kd": total(method, terms, ("kd",)),
        **gradients(total(method, terms), {"student_logits": student}),
    }


@replays("HARD: adversarially learned augmentation (affine augmentor) for distillation")
def hard(case: Case) -> dict[str, Tensor]:
    config = case.config
    inputs, noise = case.input("x"), case.input("eps")
    leaves = {name: case.input(name, requires_grad=True) for name in ("mu", "rho", "W_s")}
    student_bias, teacher_weight, teacher_bias = (case.input(name) for name in ("b_s", "W_t", "b_t"))

    def student(images: Tensor) -> Tensor:
        return images.flatten(1) @ leaves["W_s"].T + student_bias

    def teacher(images: Tensor) -> Tensor:
        return images.flatten(1) @ teacher_weight.T + teacher_bias

    theta = warp_matrices(reparameterised(leaves["mu"], leaves["rho"], noise))
    augmented = warp(inputs, theta)
    loss, disagreement, drift = augmentor_loss(
        student(augmented),
        teacher(augmented),
        teacher(inputs),
        temperature=config["temperature"],
        disagreement=config["lambda_s"],
        drift=config["lambda_t"],
    )
    method = build_method("hard", temperature=config["temperature"])
    hard_inputs = augmented.detach()
    terms = method(
        batch_of(torch.zeros(len(inputs), dtype=torch.long)),
        student=Signals(logits=student(inputs), views={"hard": Signals(logits=student(hard_inputs))}),
        teacher=Signals(logits=teacher(inputs), views={"hard": Signals(logits=teacher(hard_inputs))}),
    )
    student_loss = as_term(terms["hard"]).mean()
    return {
        "out.theta": theta,
        "out.x_aug": augmented,
        "out.disagreement": disagreement,
        "out.teacher_shift": drift,
        "out.augmentor_loss": loss,
        "out.student_loss": student_loss,
        "out.phase": torch.tensor(_phases(case.input("disagreement_seq").tolist(), config)),
        **gradients(loss, {name: leaves[name] for name in ("mu", "rho")}),
        **gradients(student_loss, {"W_s": leaves["W_s"]}),
    }


def _phases(disagreements: list[float], config: dict[str, float]) -> list[int]:
    """1 where the augmentor trains, from a sequence of disagreements."""
    training, found = True, []
    for disagreement in disagreements:
        found.append(int(training))
        training = augmentor_is_next(training, disagreement, config["loss_min"], config["loss_max"])
    return found


@replays("KD^3: dynamic instance selection, weighted feature alignment, MixDistribution, contrastive alignment")
def kd3(case: Case) -> dict[str, Tensor]:
    config = case.config
    share = teacher_share(config["epoch"], period=config["schedule_period"], last=config["max_epoch"])
    chosen = confident_samples(
        case.input("pool_logits_s"), case.input("pool_logits_t"), share=share, cutoff=config["p_cutoff"]
    )
    leaves = {name: case.input(name, requires_grad=True) for name in ("feat_s", "emb", "emb_aug")}
    theirs = case.input("feat_t")
    method = _kd3_without_projection(case, leaves["emb"].shape[1])
    style = Signals(features={"pooled": (leaves["emb_aug"],)})
    student = Signals(features={"stages": (leaves["feat_s"],), "pooled": (leaves["emb"],)}, views={"mixed": style})
    teacher = Signals(features={"stages": (theirs,), "pooled": (leaves["emb"],)}, views={"mixed": style})
    terms = method(batch_of(torch.zeros(len(theirs), dtype=torch.long)), student=student, teacher=teacher)
    loss = total(method, terms, ("feature", "contrast"))
    logits = [maps.mean((2, 3)) @ case.input("cls_w").T + case.input("cls_b") for maps in (leaves["feat_s"], theirs)]
    contrast = as_term(terms["contrast"]).mean()
    feature = as_term(terms["feature"]).mean()
    found = {
        "out.alpha": torch.tensor(share, dtype=torch.float64),
        "out.max_prob": chosen.confidence,
        "out.pred": chosen.predicted,
        "out.class_threshold": chosen.thresholds,
        "out.selected": chosen.selected.nonzero().squeeze(1),
        "out.sample_weight": disagreement_weights(*logits, eps=_PAIRWISE_EPS),
        "out.loss_feat": feature,
        "out.x_mixdist": mix_distributions(
            case.input("x"), case.input("perm"), case.input("lam").flatten(), eps=config["eps"]
        ),
        "out.loss_contrast": contrast,
        "out.total": loss,
    }
    return {
        **found,
        **gradients(feature, {"feat_s": leaves["feat_s"]}),
        **gradients(contrast, {name: leaves[name] for name in ("emb", "emb_aug")}),
    }


_PAIRWISE_EPS = 1e-6
"""PyTorch's ``PairwiseDistance`` adds it to every difference."""


def _kd3_without_projection(case: Case, embedding: int) -> KD3:
    """The method as though its projector and both heads were the identity, which the file's arrays come from."""
    method = build_method(
        "kd3", mix_weight=case.config["mix_weight"], temperature=case.config["temp"], distance_eps=_PAIRWISE_EPS
    )
    assert isinstance(method, KD3)
    classes, channels = case.input("cls_w").shape
    projector, head = nn.Conv2d(channels, channels, 1, bias=False), nn.Linear(channels, classes)
    method.head, method.teacher_head = (nn.Linear(embedding, embedding) for _ in range(2))
    method.classifier = ReusedClassifier(projector, head, tuple(case.input("feat_t").shape[2:]))
    method.double()
    with torch.no_grad():
        projector.weight.copy_(torch.eye(channels).view(channels, channels, 1, 1))
        method.classifier.head.weight.copy_(case.input("cls_w"))
        method.classifier.head.bias.copy_(case.input("cls_b"))
        for own in (method.head, method.teacher_head):
            own.weight.copy_(torch.eye(embedding))
            own.bias.zero_()
    return method
