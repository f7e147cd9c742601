"""LSSKD: orientations, branches, and the memory of the epoch before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck import distill
from limbeck.errors import NeedsError
from limbeck.functional import cross_entropy
from limbeck.methods.base import Setup, build_method
from limbeck.methods.self_distillation.lsskd import LSSKD
from limbeck.schedules import Progress
from limbeck.signals import Signals, as_term
from limbeck.students.cost import count_macs
from methods.networks import small_student
from methods.workbench import ROWS, SAMPLES, Bench, bench, make_batch


def _means(built: Bench) -> dict[str, torch.Tensor]:
    return {name: as_term(value).values.detach() for name, value in built.terms().items()}


def test_the_student_sees_all_orientations_in_one_pass() -> None:
    built = bench("lsskd")
    logits = built.signals(built.batch())["student"].logits
    assert logits.shape[0] == 4 * ROWS
    torch.testing.assert_close(logits[::4], built.learners["student"](built.batch()["inputs"]))
    assert built.batch()["inputs"].shape[0] == ROWS


def test_the_first_epoch_learns_from_hard_labels() -> None:
    built = bench("lsskd")
    batch = built.batch()
    built.method.last_logits.normal_()
    terms = _means(built)
    logits = built.signals(batch)["student"].logits[::4]
    torch.testing.assert_close(terms["task"], cross_entropy(logits, batch["labels"], reduction="none").detach())


def test_labels_are_softened_by_the_epoch_before_and_by_no_other() -> None:
    built = bench("lsskd")
    method, first = built.method, built.batch()
    hard = _means(built)
    said = built.signals(first)["student"].logits.detach()[::4]
    method.after_step(Progress(1, 2, 12))  # still epoch 0
    assert torch.equal(method.last_logits[:ROWS], said)
    assert method.last_epoch.tolist() == [0] * ROWS + [-1] * (SAMPLES - ROWS)
    method.after_step(Progress(2, 2, 12))
    assert method.share.item() == pytest.approx(0.8 / 12)
    soft = _means(built)
    assert (soft["task"] - hard["task"]).abs().min() > 0
    assert (soft["sad"] - hard["sad"]).abs().min() > 0
    method.after_step(Progress(4, 2, 12))  # epoch 2: what was said in epoch 1 is there ...
    assert (_means(built)["task"] - hard["task"]).abs().min() > 0
    method._pending = None
    method.after_step(Progress(8, 2, 12))  # ... but nothing of epoch 3
    torch.testing.assert_close(_means(built)["task"], hard["task"])


def test_memory_is_by_sample_and_in_half_precision() -> None:
    method = build_method("lsskd")
    assert isinstance(method, LSSKD)
    stages = (torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2))
    said = Signals(logits=torch.zeros(2, 3), features={"stages": stages, "pooled": (torch.zeros(2, 4),)})
    method.build(Setup(signals={"student": said}, models={}, labels=torch.zeros(9, dtype=torch.long)))
    assert method.last_logits.dtype == method.last_joint_logits.dtype == torch.float16
    assert method.last_joint_logits.shape == (9, 2, 4, 12)
    joint = torch.randn(8, 2, 12)
    method._pending = (torch.tensor([7, 1]), 1e6 * torch.ones(2, 3), joint)
    method.after_step(Progress(1, 1, 3))
    assert torch.isfinite(method.last_logits).all()
    torch.testing.assert_close(method.last_joint_logits[1, 1, 2], joint[4 + 2, 1].half())


def test_the_deepest_branch_is_a_constant_target() -> None:
    built = bench("lsskd")
    terms = built.terms()
    parts = [list(branch.parameters()) for branch in built.method.branches]
    for name, deepest_learns in (("layers", False), ("sad", True), ("features", True)):
        found = torch.autograd.grad(as_term(terms[name]).mean(), parts[-1], allow_unused=True, retain_graph=True)
        assert any(g is not None and g.abs().max() > 0 for g in found) == deepest_learns, name
    shallow = torch.autograd.grad(as_term(terms["layers"]).mean(), parts[0], retain_graph=True, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in shallow)


def test_nothing_of_it_is_left_in_the_student() -> None:
    labels, inputs = torch.arange(24) % 5, make_batch(24)["inputs"].float()
    student = small_student(batch_norm=True)
    names, size = list(student.state_dict()), sum(p.numel() for p in student.parameters())
    work = count_macs(student, (3, 8, 8))
    done = distill(None, student, (inputs, labels), method="lsskd", epochs=2, batch_size=12, lr=0.01)
    assert list(done.student.state_dict()) == names
    assert sum(p.numel() for p in done.student.parameters()) == size
    assert count_macs(done.student, (3, 8, 8)) == work


def test_what_it_cannot_work_with_is_refused() -> None:
    labels = torch.arange(24) % 5
    with pytest.raises(NeedsError, match=r"right angle.*square"):
        distill(None, small_student(), (torch.randn(24, 3, 8, 6), labels), method="lsskd", epochs=1, batch_size=12)
    single = Signals(
        logits=torch.zeros(2, 3), features={"stages": (torch.zeros(2, 4, 2, 2),), "pooled": (torch.zeros(2, 4),)}
    )
    with pytest.raises(NeedsError, match="has one; name more taps"):
        build_method("lsskd").build(
            Setup(signals={"student": single}, models={"student": nn.Identity()}, labels=labels)
        )
