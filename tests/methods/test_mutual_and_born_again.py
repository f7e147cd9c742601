from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.functional import confidence_weights, kl
from limbeck.methods import Setup
from limbeck.methods.base import build_method
from limbeck.signals import Batch, Signals, as_term


def _batch(rows: int = 6, classes: int = 5, epoch: int = 0) -> Batch:
    return Batch(index=torch.arange(rows), labels=torch.arange(rows) % classes, epoch=epoch)


def _logits(rows: int = 6, classes: int = 5) -> torch.Tensor:
    return (2 * torch.randn(rows, classes)).requires_grad_()


def test_mutual_learners_follow_each_other_and_backpropagate_into_themselves() -> None:
    student, peer = _logits(), _logits()
    method = build_method("dml", temperature=2.0)
    terms = method(_batch(), student=Signals(logits=student), peer=Signals(logits=peer))
    torch.testing.assert_close(as_term(terms["kl"]).mean(), kl(student, peer, temperature=2.0))
    torch.testing.assert_close(as_term(terms["peer_kl"]).mean(), kl(peer, student, temperature=2.0))
    for own, other, names in ((student, peer, ("ce", "kl")), (peer, student, ("peer_ce", "peer_kl"))):
        loss = torch.stack([as_term(terms[name]).mean() for name in names]).sum()
        gradients = torch.autograd.grad(loss, [own, other], allow_unused=True, retain_graph=True)
        assert gradients[0].abs().max() > 0
        assert gradients[1] is None


def test_each_mutual_learner_has_its_own_optimizer_and_terms() -> None:
    learners = {"student": nn.Linear(2, 3), "peer": nn.Linear(2, 3)}
    players = build_method("dml").players(learners)
    assert players["student"] == (list(learners["student"].parameters()), frozenset({"ce", "kl"}))
    assert players["peer"] == (list(learners["peer"].parameters()), frozenset({"peer_ce", "peer_kl"}))


def test_confidence_weighted_variant_is_coupled_and_drops_what_the_teacher_doubts() -> None:
    student, teacher = _logits(), _logits().detach()
    method = build_method("born_again", variant="cwtm")
    assert method.batch_coupled
    assert not build_method("born_again").batch_coupled
    terms = method(_batch(), student=Signals(logits=student), teacher=Signals(logits=teacher))
    rows = torch.nn.functional.cross_entropy(student, _batch()["labels"], reduction="none")
    torch.testing.assert_close(as_term(terms["ce"]).mean(), (confidence_weights(teacher) * rows).sum())


def test_permutations_come_from_seed_epoch_and_sample() -> None:
    student, teacher = _logits(40), _logits(40).detach()

    def losses(seed: int, epoch: int, rows: slice = slice(None)) -> torch.Tensor:
        method = build_method("born_again", variant="dkpp")
        method.build(Setup(signals={}, models={}, seed=seed))
        batch = Batch(_batch(40, epoch=epoch).map(lambda t: t[rows]))
        terms = method(batch, student=Signals(logits=student[rows]), teacher=Signals(logits=teacher[rows]))
        return as_term(terms["soft_ce"]).values

    torch.testing.assert_close(losses(1, 0)[10:20], losses(1, 0, slice(10, 20)))
    assert not torch.allclose(losses(1, 0), losses(1, 1))
    assert not torch.allclose(losses(1, 0), losses(2, 0))


@pytest.mark.parametrize("classes", [2, 5])
def test_permuted_targets_are_probabilities(classes: int) -> None:
    teacher = _logits(8, classes).detach()
    method = build_method("born_again", variant="dkpp")
    zero = torch.zeros(8, classes)
    terms = method(_batch(8, classes), student=Signals(logits=zero), teacher=Signals(logits=teacher))
    torch.testing.assert_close(as_term(terms["soft_ce"]).values, torch.full((8,), float(classes)).log())
