from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.functional.self_labels import (
    left_out_classes,
    nontarget_cross_entropy,
    self_target_loss,
    target_values,
    zipf_labels,
)
from limbeck.methods.base import Setup, build_method
from limbeck.signals import Batch, Signals, as_term


def _case(rows: int = 8, classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    student, weak = (2 * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), weak, torch.randint(classes, (rows,))


def _mixed(rows: int = 8, classes: int = 6) -> Tensor:
    first = torch.nn.functional.one_hot(torch.arange(rows) % classes, classes)
    return (0.7 * first + 0.3 * first.roll(1, 1)).double()


def test_weights_of_the_target_average_to_one_and_follow_the_confidence() -> None:
    student, _, labels = _case()
    losses = self_target_loss(student, target_values(labels, 6), reduction="none")
    log_p = torch.log_softmax(student, 1).gather(1, labels[:, None])[:, 0]
    weights = (-losses / log_p).detach()
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0, dtype=torch.float64))
    assert weights.argsort().tolist() == log_p.argsort().tolist()
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    by_hand = torch.autograd.grad(
        (-weights * torch.log_softmax(student, 1).gather(1, labels[:, None])[:, 0]).sum(), student
    )[0]
    torch.testing.assert_close(gradient, by_hand)


def test_mixed_labels_have_two_weighted_targets() -> None:
    student, _, _ = _case()
    labels = _mixed()
    values, classes = labels.topk(2, 1)
    p = torch.softmax(student, 1).gather(1, classes)
    expected = -((values + p**2 - (p**2).mean(0)).detach() * p.log()).sum(1)
    torch.testing.assert_close(self_target_loss(student, target_values(labels, 6), reduction="none"), expected)


def test_soft_labels_that_hold_one_class_are_that_class() -> None:
    student, weak, labels = _case()
    soft = torch.nn.functional.one_hot(labels, 6).double()
    assert torch.equal(target_values(soft, 6).float(), target_values(labels, 6))
    loss = [self_target_loss(student, target_values(y, 6).double()) for y in (soft, labels)]
    assert torch.equal(*loss)
    assert torch.equal(*(zipf_labels(student, weak, target_values(y, 6).double()) for y in (soft, labels)))


def test_rows_with_one_target_do_not_count_in_the_mean_of_second_targets() -> None:
    student, _, _ = _case()
    labels = _mixed()
    labels[:3] = labels[:3].round()
    values, classes = labels[3:].topk(2, 1)
    p = torch.softmax(student, 1)
    second = p[3:].gather(1, classes[:, 1:]).square()
    weights = (values[:, 1:] + second - second.mean(0)).detach()
    every = self_target_loss(student, target_values(labels, 6), reduction="none")
    first = self_target_loss(student, target_values(labels.argmax(1), 6).double(), reduction="none")
    less = labels.amax(1) - 1  # what mixing takes off the weight of the first target
    expected = -(less * p.gather(1, labels.argmax(1)[:, None])[:, 0].log())
    expected[3:] -= (weights * p[3:].gather(1, classes[:, 1:]).log())[:, 0]
    torch.testing.assert_close(every - first, expected)


def test_the_released_code_always_takes_two_classes_of_mixed_labels() -> None:
    """Step by step as the paper's repository has it, with rows that hold one class."""
    student, weak, _ = _case()
    labels = _mixed()
    labels[:3] = labels[:3].round()
    value, label = (t[:, :2] for t in labels.sort(dim=1, descending=True, stable=True))
    p, log_p, w = torch.softmax(student, 1), torch.log_softmax(student, 1), torch.softmax(weak, 1)
    own = p.gather(1, label).square()
    weights = torch.where(value == 0, 0.0, own + value - own.mean(0)).detach()
    target = -(weights * log_p.gather(1, label)).sum(1)
    score = w / (1 - w.gather(1, label).sum(1, True)) + log_p / (1 - log_p.gather(1, label).sum(1, True))
    zipf = (1.0 / torch.arange(1, 7)).double().expand(8, -1).gather(1, score.argsort(descending=True).argsort())
    kept = torch.ones_like(p).scatter(1, label, 0.0).bool()
    rest = zipf[kept].view(8, 4)
    nontarget = -(rest / rest.sum(1, True) * torch.log_softmax(student[kept].view(8, 4), 1)).sum(1)

    method = build_method("uskd", released_code=True)
    said = Signals(logits=student, features={"stages": (weak, weak)})
    method.build(Setup(signals={"student": said.detach()}, models={}))
    head = method.double().get_submodule("weak")
    with torch.no_grad():
        head.weight.copy_(torch.eye(6))
        head.bias.zero_()
    terms = method(Batch(index=torch.arange(8), labels=labels), student=said)
    torch.testing.assert_close(as_term(terms["target"]).values, target)
    torch.testing.assert_close(as_term(terms["nontarget"]).values, nontarget)
    assert torch.equal(left_out_classes(labels.argmax(1), 6), target_values(labels.argmax(1), 6))


@pytest.mark.parametrize("released_code", [False, True])
def test_zipf_labels_are_a_distribution_over_the_other_classes(released_code: bool) -> None:
    student, weak, labels = _case()
    z = zipf_labels(student, weak, target_values(labels, 6).double(), released_code=released_code)
    assert not z.requires_grad
    assert (z >= 0).all()
    assert (z.gather(1, labels[:, None]) == 0).all()
    torch.testing.assert_close(z.sum(1), torch.ones(8, dtype=torch.float64))
    for row in z:
        shares = row[row > 0].sort(descending=True).values
        ranks = (1 / (shares / shares[0])).round(decimals=6)
        first = next(k for k in (1, 2) if torch.allclose((ranks * k).round(), ranks * k, atol=1e-4))
        assert set((ranks * first).round().int().tolist()) <= set(range(1, 7))


def test_ranking_by_hand_with_and_without_epsilon() -> None:
    student, weak, labels = _case()
    targets = target_values(labels, 6).double()
    p, w = torch.softmax(student.detach(), 1), torch.softmax(weak, 1)
    p_y, w_y = (q.gather(1, labels[:, None]) for q in (p, w))
    order = (w / (1 - w_y) + p / (1 - p_y)).argsort(1, descending=True)
    expected = torch.zeros_like(p).scatter(1, order, 1 / torch.arange(1.0, 7).double().expand(8, 6))
    expected = expected.scatter(1, labels[:, None], 0.0)
    expected = expected / expected.sum(1, keepdim=True)
    for eps in (0.0, 1e-6):
        torch.testing.assert_close(zipf_labels(student, weak, targets, eps=eps), expected)


def test_a_sure_student_still_ranks_the_other_classes() -> None:
    """Where 1 - p_y rounds to zero the ratios of the other classes do not."""
    student = torch.tensor([[200.0, 3.0, 1.0, 2.0]])
    z = zipf_labels(student, torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert z[0].argsort(descending=True).tolist() == [1, 3, 2, 0]


def test_permuting_the_classes_permutes_everything() -> None:
    student, weak, labels = _case()
    targets, order = target_values(labels, 6).double(), torch.randperm(6)
    z = zipf_labels(student, weak, targets)
    torch.testing.assert_close(zipf_labels(student[:, order], weak[:, order], targets[:, order]), z[:, order])


def test_nontarget_cross_entropy_spares_the_target() -> None:
    student, weak, labels = _case()
    targets = target_values(labels, 6).double()
    z = zipf_labels(student, weak, targets)
    loss = nontarget_cross_entropy(student, z, targets, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert (gradient.gather(1, labels[:, None]) == 0).all()
    rows = torch.arange(8)
    for row in rows:
        others = [c for c in range(6) if c != labels[row]]
        expected = -(z[row, others] * torch.log_softmax(student[row, others], 0)).sum()
        torch.testing.assert_close(loss[row], expected)


def test_rows_of_targets_only_cost_nothing() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    targets = torch.tensor([[0.6, 0.4]])
    loss = nontarget_cross_entropy(student, zipf_labels(student, student, targets), targets)
    assert loss == 0
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()
