"""The compiled loss of methods for text is the plain one, in value and in gradient."""

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


def trained(method, *, compiled, **options):
    """Terms, and the gradients of a step on a batch of ragged rows."""
    stage = Stage(
        method=build_method(method, **options),
        roles={
            "student": Role(model=copy.deepcopy(tiny(1, layers=1)).train()),
            "teacher": Role(model=tiny(2, layers=1)),
        },
        task=CausalLM(vocabulary=257),
        loader=TextLoader(source(count=8), batch_size=4, seed=2),
        settings=TrainSettings(
            epochs=1, batch_size=4, lr=1e-12, optimizer="sgd", momentum=0, weight_decay=0, compile_loss=compiled
        ),
        num_classes=257,
    )
    found = []
    # Batches of two widths: what was compiled for the first must serve the second.
    for batch in stage.loader.epoch(0):
        stage.rehearse(batch)
        student = stage.learners["student"]
        found.append((stage.metrics.summary(1), [p.grad.clone() for p in student.parameters() if p.grad is not None]))
    return found


@pytest.mark.parametrize(("method", "options"), [("word_kd", {"kd_ratio": 0.5}), ("gkd", {"beta": 0.5})])
def test_values_and_gradients_of_both_are_equal(method, options):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (trained(method, compiled=flag, **options) for flag in (False, True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert len(plain) == 2
    for (told, gradients), (other, others) in zip(plain, compiled):
        assert told["terms"] == pytest.approx(other["terms"], rel=1e-5)
        assert gradients
        for one, two in zip(gradients, others, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
