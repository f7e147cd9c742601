"""Hyperparameters of methods for text at values that the reference files do not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from language.spoken import V, loss_of, numbers, ragged, said, spoken, tokens
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.divergence_registry import divergence
from limbeck.functional.sequences import sequence_means
from limbeck.functional.sparse_targets import top_k
from limbeck.methods.base import build_method
from limbeck.methods.sequence.adpa import advantage_loss
from limbeck.methods.sequence.first import calibrated
from limbeck.signals import Batch, Signals, TopK, as_term


@pytest.mark.parametrize(
    ("name", "options"),
    [("taid", {"start": 0.8, "end": 0.5}), ("swing", {"lowest": 9.0})],
)
def test_a_range_that_is_upside_down_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"'{name}'.*should not be above"):
        build_method(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kdrl", {"placement": "advantage", "estimator": "exact"}),
        ("opsd", {"objective": "sampled_token", "clip": 0.05}),
        ("opsd", {"objective": "sampled_token", "top_k": 50}),
    ],
)
def test_what_would_have_no_part_in_the_loss_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"'{name}'.*(leave the estimator out|belong to objective: divergence)"):
        build_method(name, **options)


def test_each_half_of_distillm2_has_its_own_skew() -> None:
    mask = ragged()
    ours, theirs = said(1), said(2)
    batch = tokens(mask)
    batch |= {"generated_labels": batch["labels"], "generated_mask": mask}
    signals = {role: spoken(x, views={"generated": spoken(x)}) for role, x in (("student", ours), ("teacher", theirs))}
    terms = build_method("distillm2", skew=0.2, generated_skew=0.6)(batch, **signals)
    log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
    for name, alpha in (("skew_kl", 0.2), ("skew_rkl", 0.6)):
        expected = sequence_means(divergence(name, alpha=alpha)(log_p, log_q), mask)
        torch.testing.assert_close(as_term(terms[name]).values, expected)


@pytest.mark.parametrize("sparse", ["teacher", "reference"])
def test_an_advantage_of_one_cached_and_one_live_model_is_refused(sparse: str) -> None:
    kept = top_k(said(3), 4)
    largest = TopK(kept.logprobs, kept.indices, kept.tail, V, kept.logsumexp)
    roles = {name: Signals(topk=largest) if name == sparse else spoken(said(4)) for name in ("teacher", "reference")}
    with pytest.raises(NeedsError, match=f"'{sparse}' gives its largest classes"):
        advantage_loss(**roles)


def test_an_answer_without_tokens_does_not_dilute_the_others() -> None:
    """Where a question fills the context, nothing of its answer is left."""

    def loss(rows: slice, mask: Tensor) -> Tensor:
        batch = tokens(mask)
        other = {"rejected_labels": batch["labels"][rows], "rejected_mask": mask[rows]}
        student = spoken(said(1)[rows], views={"rejected": spoken(said(2)[rows])})
        return loss_of("redi", Batch(**{k: v[rows] for k, v in batch.items()}, **other), student=student)

    mask = ragged()
    mask[2] = False
    torch.testing.assert_close(loss(slice(None), mask), loss(slice(0, 2), mask))


def test_smoothing_leaves_the_first_class_what_eps_has_no_part_in() -> None:
    logprobs = torch.tensor([[0.05, 0.04, 0.03]], dtype=torch.float64).log()
    options: dict[str, Any] = {"temperature": 1.0, "smoothing": 0.1}
    found = calibrated(logprobs, "label_smoothing", eps=0.01, **options)
    torch.testing.assert_close(found, torch.tensor([[1e-6, 0.09, 0.08]], dtype=torch.float64) / (0.17 + 1e-6))


def test_rewards_to_go_count_the_positions_in_between() -> None:
    """Between two answers of a conversation there are tokens that do not count, but time goes by."""
    mask = torch.tensor([[True, False, False, True]])
    batch = tokens(mask, sampler_logprobs=numbers(1, 4, seed=7))
    theirs = numbers(1, 4, seed=8)
    method = build_method("on_policy_distillation", discount=0.5)
    student = spoken(numbers(1, 4, 13, seed=9).requires_grad_())
    log_q = method.label_log_probabilities(student, batch["labels"], mask).detach()  # type: ignore[attr-defined]
    values = as_term(method(batch, student=student, teacher=spoken(None, logprobs=theirs))["policy"]).values
    gap = (theirs - batch["sampler_logprobs"])[0]
    ratio = (log_q - batch["sampler_logprobs"])[0].exp()
    torch.testing.assert_close(values[0, 0], -ratio[0] * (gap[0] + 0.5**3 * gap[3]))
    torch.testing.assert_close(values[0, 3], -ratio[3] * gap[3])
