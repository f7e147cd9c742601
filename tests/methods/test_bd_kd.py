"""Balanced divergences: who is weighed by what, and who learns from what."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from limbeck.functional import kl
from limbeck.functional.balanced_divergences import certainty_weights, entropy
from limbeck.methods.base import build_method
from limbeck.signals import Batch, Signals, Terms, as_term


def _logits(rows: int = 6, classes: int = 5) -> Tensor:
    return (2 * torch.randn(rows, classes, dtype=torch.float64)).requires_grad_()


def _terms(student: Tensor, peer: Tensor, **config: object) -> Terms:
    batch = Batch(index=torch.arange(len(student)), labels=torch.arange(len(student)) % student.shape[1])
    return build_method("bd_kd", **config)(batch, student=Signals(logits=student), peer=Signals(logits=peer))


def test_entropy_is_that_of_the_probabilities() -> None:
    logits = _logits().detach()
    p = torch.softmax(logits / 3, -1)
    torch.testing.assert_close(entropy(logits, temperature=3.0), -(p * p.log()).sum(-1))
    torch.testing.assert_close(entropy(torch.zeros(2, 8)), torch.full((2,), math.log(8)))
    assert entropy(torch.tensor([[6e4, -6e4]], dtype=torch.float16)).item() == 0


def test_a_student_more_certain_than_its_peer_gets_the_forward_divergence() -> None:
    peer = _logits().detach()
    assert certainty_weights(3 * peer, peer, imbalance=4.0).forward.tolist() == [4.0] * 6
    assert certainty_weights(3 * peer, peer, imbalance=4.0).reverse.tolist() == [1.0] * 6
    assert certainty_weights(peer / 3, peer, imbalance=4.0).reverse.tolist() == [4.0] * 6
    smooth = certainty_weights(3 * peer, peer, sharpness=2.0)
    assert (smooth.forward > 1).all()
    torch.testing.assert_close(smooth.forward + smooth.reverse, torch.full((6,), 2.0, dtype=torch.float64))


def test_an_imbalance_of_one_is_symmetric() -> None:
    student, peer = _logits(), _logits()
    here, there = _terms(student, peer, imbalance=1.0), _terms(peer, student, imbalance=1.0)
    both = [sum(as_term(terms[n]).mean() for n in ("forward", "reverse")) for terms in (here, there)]
    torch.testing.assert_close(both[0], both[1])


def test_equal_logits_have_no_divergence_and_no_gradient() -> None:
    student = _logits()
    terms = _terms(student, student.detach().clone())
    loss = torch.stack([as_term(terms[n]).mean() for n in ("forward", "reverse", "peer_kl")]).sum()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-14


def test_the_peers_divergence_has_its_own_distribution_first() -> None:
    student, peer = _logits(), _logits()
    expected = kl(student.detach(), peer, temperature=4.0, reduction="none").detach()
    torch.testing.assert_close(as_term(_terms(student, peer)["peer_kl"]).values.detach(), expected)


def test_neither_learns_from_the_others_loss() -> None:
    student, peer = _logits(), _logits()
    terms = _terms(student, peer)
    players = build_method("bd_kd").players({"student": nn.Linear(2, 3), "peer": nn.Linear(2, 3)})
    for own, other, (_, names) in zip((student, peer), (peer, student), players.values()):
        loss = torch.stack([as_term(terms[name]).mean() for name in sorted(names or ())]).sum()
        gradients = torch.autograd.grad(loss, [own, other], allow_unused=True, retain_graph=True)
        assert gradients[0].abs().max() > 0
        assert gradients[1] is None
