"""Adapters of methods that change what the models see: mixup in KD, learned augmentation, data from the web."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

from goldens.drive import batch_of, total
from goldens.replay import Case, gradients, replays
from limbeck.methods.base import build_method
from limbeck.signals import Signals
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
