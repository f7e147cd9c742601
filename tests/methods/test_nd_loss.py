"""Norm and direction: the two regimes of the loss, class means and the projector."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.functional.feature_direction import norm_and_direction
from limbeck.methods.class_means import class_means
from limbeck.signals import as_term
from methods.workbench import all_labels, bench

SHORT, LONG = 0.5, 4.0


def _case(scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student features ``scale`` times as long as the teacher's, the teacher's, class means, labels."""
    teacher = torch.randn(7, 5, dtype=torch.float64)
    student = torch.randn_like(teacher)
    length = lambda rows: rows.norm(dim=1, keepdim=True)  # noqa: E731
    student = student / length(student) * length(teacher) * scale
    return student.requires_grad_(), teacher, torch.randn(4, 5, dtype=torch.float64), torch.arange(7) % 4


def _rows(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return norm_and_direction(student, teacher, means, labels, reduction="none", **options)


def test_a_shorter_feature_is_pulled_along_its_class() -> None:
    student, teacher, means, labels = _case(SHORT)
    rows, doubled = _rows(student, teacher, means, labels), _rows(2 * student, teacher, means, labels)
    torch.testing.assert_close(1 - doubled, 2 * (1 - rows))  # linear in the scale
    (gradient,) = torch.autograd.grad(rows.sum(), student)
    direction = -means[labels] / means[labels].norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch.nn.functional.normalize(gradient), direction)


def test_a_longer_feature_is_only_turned() -> None:
    student, teacher, means, labels = _case(LONG)
    rows = _rows(student, teacher, means, labels)
    torch.testing.assert_close(_rows(3 * student, teacher, means, labels), rows)
    (gradient,) = torch.autograd.grad(rows.sum(), student)
    assert (gradient * student).sum(1).abs().max() < 1e-12


def test_the_loss_is_continuous_where_the_lengths_are_equal() -> None:
    student, teacher, means, labels = _case(1.0)
    below, above = (_rows(student * s, teacher, means, labels) for s in (1 - 1e-9, 1 + 1e-9))
    torch.testing.assert_close(below, above, rtol=0, atol=1e-8)


@pytest.mark.parametrize("scale", [SHORT, LONG])
def test_lengths_of_means_and_rotations_do_not_matter(scale: float) -> None:
    student, teacher, means, labels = _case(scale)
    rows = _rows(student, teacher, means, labels)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    torch.testing.assert_close(_rows(student, teacher, 7 * means, labels), rows)
    torch.testing.assert_close(_rows(student @ rotation, teacher, means @ rotation, labels), rows)
    assert ((rows >= 0) & (rows <= 2)).all()


def test_zero_is_reached_along_the_class_at_the_teachers_length() -> None:
    _, teacher, means, labels = _case(1.0)
    ideal = means[labels] / means[labels].norm(dim=1, keepdim=True) * teacher.norm(dim=1, keepdim=True) * 1.01
    assert _rows(ideal, teacher, means, labels).abs().max() < 1e-12


def test_masked_samples_and_zero_features_are_harmless() -> None:
    student, teacher, means, labels = _case(1.0)
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    spoilt = student.detach().clone()
    spoilt[~mask] = torch.nan
    spoilt.requires_grad_()
    loss = norm_and_direction(spoilt, teacher, means, labels.masked_fill(~mask, -100), mask=mask)
    torch.testing.assert_close(loss, _rows(student, teacher, means, labels)[mask].mean())
    assert torch.isfinite(torch.autograd.grad(loss, spoilt)[0]).all()
    zero = torch.zeros_like(teacher).requires_grad_()
    rows = _rows(zero, torch.zeros_like(teacher), means, labels)
    assert rows.tolist() == [1.0] * 7
    assert torch.isfinite(torch.autograd.grad(rows.sum(), zero)[0]).all()


def test_wrong_shapes_are_refused() -> None:
    student, teacher, means, labels = _case(1.0)
    with pytest.raises(ValueError, match="equally wide, not 5 and 3"):
        norm_and_direction(student, teacher, means[:, :3], labels)
    with pytest.raises(ValueError, match="labels"):
        norm_and_direction(student, teacher, means, labels[:3])


def test_class_means_are_those_of_the_teacher_over_the_whole_data() -> None:
    built = bench("nd_loss")
    rows = torch.cat([built.signals(built.bench_batch(s))["teacher"].feature("pooled") for s in range(4)])
    for number, mean in enumerate(built.method.class_means):
        torch.testing.assert_close(mean, rows[all_labels() == number].mean(0))


def test_means_of_mixed_labels_go_to_the_larger_share() -> None:
    built = bench("nd_loss")
    batch = built.batch()
    soft = torch.nn.functional.one_hot(batch["labels"], 5) * 0.6 + 0.08
    passes = lambda labels: iter([(type(batch)({**batch, "labels": labels}), built.signals(batch))])  # noqa: E731
    pick = lambda signals: signals["teacher"].feature("pooled")  # noqa: E731
    torch.testing.assert_close(class_means(passes(soft), pick, 5), class_means(passes(batch["labels"]), pick, 5))


def test_dropout_follows_sample_and_epoch_and_ends_with_training() -> None:
    built = bench("nd_loss", {"dropout": 0.5})
    batch = built.batch()

    def losses(**changes: Any) -> Tensor:
        return as_term(built.terms(type(batch)({**batch, **changes}))["nd"]).values.detach()

    assert torch.equal(losses(), losses())
    assert not torch.equal(losses(), losses(epoch=1))
    scale = built.method._dropout_scale(batch, torch.zeros(6, 4000))
    assert set(scale.unique().tolist()) == {0.0, 2.0}
    assert math.isclose(scale.mean().item(), 1.0, abs_tol=0.05)
    built.method.eval()
    assert torch.equal(losses(), losses(epoch=1))


def test_equal_widths_need_no_projector() -> None:
    assert bench("nd_loss").method.projector is not None
    from limbeck.methods.base import Setup, build_method
    from limbeck.signals import Signals

    side = Signals(logits=torch.zeros(4, 3), features={"pooled": (torch.zeros(4, 6),)})
    method = build_method("nd_loss")
    method.build(Setup(signals={"student": side, "teacher": side}, models={}))
    assert method.projector is None
    assert not list(method.parameters())
