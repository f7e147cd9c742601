"""Losses of language models do not depend on how a batch is divided."""

from __future__ import annotations

import copy

import pytest
import torch

from language.corpus import source, tiny
from limbeck.data.text import TextLoader
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.methods.base import build_method
from limbeck.tasks.causal_lm import CausalLM


def stage_of(method, micro_batches, packed=False):
    loader = TextLoader(source(packed=packed, count=12), batch_size=4, seed=2)
    student = copy.deepcopy(tiny(1)).train()
    roles = {"student": Role(model=student), "teacher": Role(model=tiny(2))}
    settings = TrainSettings(epochs=1, batch_size=4, micro_batches=micro_batches, lr=0.1, optimizer="sgd", momentum=0)
    return Stage(
        method=build_method(method), roles=roles, task=CausalLM(vocabulary=257), loader=loader, settings=settings,
        num_classes=257,
    )  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", ["sft", "word_kd"])
def test_gradients_are_those_of_the_whole_batch(method, packed):
    """Row 2: rows have different numbers of tokens, so a mean of means would differ."""
    found = []
    for parts in (1, 2, 4):
        stage = stage_of(method, parts, packed)
        stage.rehearse(stage.first_batch())
        found.append([p.grad.clone() for p in stage.learners["student"].parameters()])
    counts = stage.first_batch()["mask"].sum(-1)
    assert counts.unique().numel() > 1
    for other in found[1:]:
        for one, two in zip(found[0], other):
            torch.testing.assert_close(one, two, rtol=2e-4, atol=1e-6)


def test_a_frozen_teacher_is_left_as_it_was():
    """Row 34: no gradient, no optimizer state, no change."""
    stage = stage_of("word_kd", 1)
    teacher = stage.observers["teacher"].model
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    stage.run()
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    trained = {id(p) for optimizer in stage.optimizers.values() for g in optimizer.param_groups for p in g["params"]}
    assert not trained & {id(p) for p in teacher.parameters()}


def test_a_batch_without_a_token_to_learn_gives_zero_gradients():
    """Row 30."""
    stage = stage_of("word_kd", 1)
    batch = stage.first_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    batch["mask"] = torch.zeros_like(batch["mask"])
    stage.rehearse(batch)
    gradients = [p.grad for p in stage.learners["student"].parameters() if p.grad is not None]
    assert gradients
    assert all((g == 0).all() for g in gradients)
