"""Mistakes that other tools made with the few largest tokens of a teacher: none of them here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from language.corpus import loader, tiny, tokenizer
from language.spoken import V, loss_of, numbers, ragged, said, spoken, tokens
from limbeck.errors import NeedsError
from limbeck.functional.sparse_targets import top_k
from limbeck.methods.base import build_method
from limbeck.signals import Batch, Sampled, Signals, TopK
from limbeck.teachers.remote import Client, Endpoint, RemoteTeacher
from limbeck.teachers.server import Scorer, TeacherServer

K = 3


def truncated(teacher: Tensor, k: int = K) -> Signals:
    """What a cache or a server gives of a teacher."""
    kept = top_k(teacher, k)
    return Signals(topk=TopK(kept.logprobs, kept.indices, kept.tail, V, kept.logsumexp))


def kd(student: Tensor, teacher: Signals, divergence: str = "forward_kl", **options: Any) -> Tensor:
    method = build_method("word_kd", divergence=divergence, **options)
    return loss_of(method, tokens(), "kd", student=spoken(student), teacher=teacher)


def moved_outside(teacher: Tensor, amount: float) -> Tensor:
    """A student that gives tokens beyond the teacher's largest so much more."""
    kept = top_k(teacher, K)
    return (teacher + amount).scatter(-1, kept.indices, teacher.gather(-1, kept.indices))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_bug_14_the_loss_rises_as_the_student_moves_mass_beyond_the_kept_tokens(divergence: str) -> None:
    """Elsewhere both sides are renormalised over the kept tokens, and nothing sees what happens outside."""
    teacher = said(1)
    found = [float(kd(moved_outside(teacher, amount), truncated(teacher), divergence)) for amount in (0, 2, 4, 8)]
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert all(b > a + 0.01 for a, b in itertools.pairwise(found))
    # The published reading is still to be had, and is as blind as it was.
    blind = float(kd(moved_outside(teacher, 8.0), truncated(teacher), divergence, sparse="both_renormalized"))
    assert blind == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 6, V])
def test_bug_15_a_truncated_divergence_is_never_negative_and_below_the_whole_one(k: int) -> None:
    """Elsewhere the kept tokens' terms are summed alone, which falls below zero and is then cut off."""
    for seed in range(20):
        student, teacher = said(seed), said(seed + 100)
        everywhere = tokens(torch.ones_like(ragged()))
        for divergence in ("forward_kl", "reverse_kl", "jsd"):
            method = build_method("word_kd", divergence=divergence)
            known, whole = (
                method(everywhere, student=spoken(student), teacher=role)["kd"].values
                for role in (truncated(teacher, k), spoken(teacher))
            )
            assert (known >= 0).all()
            assert (known <= whole + 1e-9).all()
            if k == V:
                torch.testing.assert_close(known, whole)


def test_bug_16_reverse_kl_is_not_made_small_by_leaving_the_kept_tokens() -> None:
    """Elsewhere a student that puts all its mass outside is rewarded with a loss that goes to zero or below."""
    teacher = said(1)
    inside, outside = said(0), moved_outside(teacher, 30.0)
    assert float(kd(outside, truncated(teacher), "reverse_kl")) > float(kd(inside, truncated(teacher), "reverse_kl"))
    student = inside.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        kd(student, truncated(teacher), "reverse_kl").backward()
        optimizer.step()
    kept = top_k(teacher, K)
    ours = student.detach().softmax(-1).gather(-1, kept.indices).sum(-1)[ragged()]
    torch.testing.assert_close(ours, kept.logprobs.exp().sum(-1)[ragged()], rtol=0.02, atol=0.02)
    for reading in ("raw", "teacher_renormalized"):
        with pytest.raises(NeedsError, match="reading 'tail'"):
            kd(inside, truncated(teacher), "reverse_kl", sparse=reading)


def test_bug_20_another_temperature_than_the_stored_one_is_refused() -> None:
    """Elsewhere the tail's mass is raised to 1/T as if it were one token, and a model is at a distance from itself."""
    teacher = said(1)
    for temperature in (2.0, 4.0):
        with pytest.raises(NeedsError, match="store them at that temperature"):
            kd(teacher, truncated(teacher), temperature=temperature)
        whole = float(kd(teacher, spoken(teacher), temperature=temperature))
        assert whole == pytest.approx(0.0, abs=1e-12)
    kept = top_k(teacher, K)
    drawn = Signals(sampled=Sampled(kept.indices, kept.logprobs.softmax(-1), V))
    with pytest.raises(NeedsError, match="temperature 1"):
        kd(teacher, drawn, temperature=2.0)


@pytest.mark.parametrize("reading", ["tail", "both_renormalized"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_bug_21_a_student_that_agrees_gets_neither_loss_nor_gradient(divergence: str, reading: str) -> None:
    """Elsewhere tokens that were not kept count as probability zero, which pushes an equal student away."""
    teacher = said(1)
    student = (teacher + 5.0).requires_grad_()
    loss = kd(student, truncated(teacher), divergence, sparse=reading)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Signals, Batch]]:
    """What a server says of rows of different lengths, whose model is as good as certain of many tokens."""
    teacher = tiny(7, context=128, tied=False)
    with torch.no_grad():
        teacher.get_output_embeddings().weight.mul_(40.0)
    batch = next(loader().epoch(0))
    with TeacherServer(Scorer(teacher, tokenizer(), most=50), "tiny") as server:
        client = Client(Endpoint(server.url, "tiny"), tmp_path_factory.mktemp("journal"))
        yield RemoteTeacher(client, tokenizer(), top=8)(batch), batch


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_bug_31_ragged_rows_and_certain_places_of_a_server_give_finite_gradients(
    served: tuple[Signals, Batch], divergence: str
) -> None:
    """Elsewhere what is missing is filled with minus infinity, and reverse KL turns it into NaN."""
    signals, batch = served
    assert signals.topk is not None
    mask = batch["mask"]
    assert mask.sum(-1).unique().numel() > 1
    assert signals.topk.logprobs[mask][:, 0].max() > -1e-6
    student = numbers(*mask.shape, 257, seed=1).requires_grad_()
    loss = loss_of(build_method("word_kd", divergence=divergence), batch, student=spoken(student), teacher=signals)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask].abs().sum(-1) > 0).all()
