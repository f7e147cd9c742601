"""Mistakes that other tools made with samples of the student: none of them here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from language.spoken import LENGTH, ROWS, V, loss_of, numbers, ragged, said, spoken, tokens
from limbeck.errors import RecipeError
from limbeck.functional.log_divergences import reverse_kl
from limbeck.functional.policy import kl_estimate
from limbeck.methods.base import build_method, methods
from limbeck.methods.sequence.base import SequenceMethod
from limbeck.signals import Batch, Signals, as_term


def every_token() -> tuple[Tensor, Tensor, Batch]:
    """A student and a teacher of one position, and a batch that samples each token once."""
    student, teacher = numbers(2, V, seed=4, scale=1.0)
    labels = torch.arange(V).unsqueeze(-1)
    mask = torch.ones(V, 1, dtype=torch.bool)
    return student.requires_grad_(), teacher, Batch(index=torch.arange(V), labels=labels, mask=mask)


def expected_gradient(name: str, term: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Sum over all tokens of their probability times the gradient of a term, and the gradient of reverse KL."""
    student, teacher, batch = every_token()
    batch |= {"advantage": torch.zeros(V, dtype=torch.float64), "on_policy": torch.ones(V)}
    method = build_method(name, **options)
    rows = student.expand(V, 1, V)
    values = as_term(method(batch, student=spoken(rows), teacher=spoken(teacher.expand(V, 1, V)))[term]).values
    loss = (student.softmax(-1).detach() * values[:, 0]).sum()
    (ours,) = torch.autograd.grad(loss, student)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    (exact,) = torch.autograd.grad(reverse_kl(log_p, log_q).sum(), student)
    return ours, exact


@pytest.mark.parametrize(
    ("name", "term", "options"),
    [
        ("on_policy_distillation", "policy", {}),
        ("on_policy_distillation", "policy", {"discount": 1.0}),
        ("kdrl", "kd", {"estimator": "k2"}),
        ("opsd", "distill", {"objective": "sampled_token", "temperature": 1.0}),
    ],
    ids=str,
)
def test_bug_17_the_samples_teach_reverse_kl(name: str, term: str, options: dict[str, Any]) -> None:
    """Elsewhere a divergence over the vocabulary is every token's advantage alike, whose gradient is nothing."""
    ours, exact = expected_gradient(name, term, **options)
    assert exact.norm() > 0.1
    torch.testing.assert_close(ours, exact)


def test_bug_18_the_estimate_that_teaches_nothing_is_no_choice() -> None:
    """Elsewhere k1 is differentiated: right as a number, but its expected gradient is zero."""
    student, teacher, _ = every_token()
    log_q = student.log_softmax(-1)
    values = kl_estimate(log_q, teacher.log_softmax(-1), kind="k1")
    (gradient,) = torch.autograd.grad((log_q.exp().detach() * values).sum(), student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)
    with pytest.raises(RecipeError, match="estimator"):
        build_method("kdrl", estimator="k1")


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_bug_19_a_limit_is_on_tokens_and_leaves_no_loss_below_zero(beta: float) -> None:
    """Elsewhere the contributions of single vocabulary entries are cut, and what is left of their sum is negative."""
    student, teacher = said(0), said(1)
    everywhere = tokens(torch.ones(ROWS, LENGTH, dtype=torch.bool))

    def values(**options: Any) -> Tensor:
        method = build_method("opsd", beta=beta, temperature=1.0, **options)
        return as_term(method(everywhere, student=spoken(student), teacher=spoken(teacher))["distill"]).values

    whole, cut = values(), values(clip=0.05)
    assert (cut >= 0).all()
    torch.testing.assert_close(cut, whole.clamp(max=0.05))
    assert (cut == 0.05).any()
    # The published way can still be had. Entries of a true mixture are never negative; those of the ends are.
    assert bool((values(clip=0.05, clip_per="entry") < 0).any()) == (beta in (0.0, 1.0))


def mixing_labels() -> list[str]:
    """Methods for sequences that learn from labels and from a teacher at once."""
    found = []
    for entry in methods.entries():
        method = entry.part() if issubclass(entry.part, SequenceMethod) else None
        if method is not None and {"ce"} < set(method.weights) and method.needs.batch == {"labels", "mask"}:
            found.append(entry.name)
    return found


def test_bug_35_is_asked_of_the_methods_that_mix_both() -> None:
    assert {"word_kd", "ddk", "taid", "tsd_kd"} & set(mixing_labels())


@pytest.mark.parametrize("name", mixing_labels())
def test_bug_35_the_students_own_words_are_no_labels(name: str) -> None:
    """Elsewhere the cross-entropy of a mixed loss also learns from what the student sampled, right or wrong."""
    method = build_method(name)
    student = said(0).requires_grad_()
    flags = torch.tensor([True, False, True])
    terms = method(tokens(on_policy=flags), student=spoken(student), teacher=spoken(said(1)))
    (gradient,) = torch.autograd.grad(as_term(terms["ce"]).mean(), student)
    assert (gradient[flags] == 0).all()
    assert (gradient[~flags][ragged()[~flags]].abs().sum(-1) > 0).all()
    none = method(tokens(on_policy=torch.ones(ROWS)), student=spoken(student), teacher=spoken(said(1)))
    assert float(as_term(none["ce"]).mean().detach()) == 0.0


@pytest.mark.parametrize("name", ["gkd", "word_kd", "sft", "taid", "tsd_kd", "ddk", "distillm", "first", "imitkd"])
def test_bug_30_a_batch_without_a_token_that_counts_has_a_loss_of_zero_with_a_graph(name: str) -> None:
    """Elsewhere it is a constant without a graph, on which backward fails, or 0/0."""
    method = build_method(name)
    student = said(0).requires_grad_()
    roles: dict[str, Signals] = {"student": spoken(student), "teacher": spoken(said(1))}
    batch = tokens(torch.zeros(ROWS, LENGTH, dtype=torch.bool))
    loss = loss_of(method, batch, **{role: roles[role] for role in method.roles()})
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert student.grad is not None
    assert (student.grad == 0).all()
