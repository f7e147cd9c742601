"""Mistakes that other tools made in what a loss is divided by: none of them here."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from language.corpus import sequences, source, tiny, tokenizer
from language.spoken import loss_of, ragged, said, spoken, tokens
from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.methods.base import build_method
from limbeck.signals import Batch, as_term
from limbeck.tasks.causal_lm import CausalLM
from limbeck.transforms import build_transform


def stage(method: dict[str, Any], data: TextSource, *, micro_batches: int = 1, rollout: bool = False) -> Stage:
    options = dict(method)
    size = 4
    # Many tokens end a completion, so that completions have different lengths.
    written = {"name": "rollout", "max_new_tokens": 9, "end_tokens": list(range(60))}
    changes = [build_transform(written, seed=5, num_classes=257)] if rollout else []
    return Stage(
        method=build_method(options.pop("name"), **options),
        roles={"student": Role(model=copy.deepcopy(tiny(1)).train()), "teacher": Role(model=tiny(2))},
        task=CausalLM(vocabulary=257),
        loader=TextLoader(data, batch_size=size, seed=2),
        settings=TrainSettings(
            epochs=1, batch_size=size, micro_batches=micro_batches, lr=0.1, optimizer="sgd", momentum=0
        ),
        num_classes=257,
        transforms=changes,
    )


def gradients(made: Stage) -> list[torch.Tensor]:
    made.rehearse(made.first_batch())
    return [p.grad.clone() for p in made.learners["student"].parameters() if p.grad is not None]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert one
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gkd", "on_policy_distillation", "word_kd"])
def test_bug_01_the_length_of_the_datas_answers_does_not_scale_a_loss_on_samples(name: str) -> None:
    """Elsewhere the loss on what the student wrote is divided by the number of tokens of the answer in the data."""
    found = []
    for length in (2, 20):
        prompts = sequences(4, low=6, high=10)
        rows = [Encoded(np.concatenate([s.ids[:2], np.arange(length)]), np.arange(length + 2) >= 2, 2) for s in prompts]
        data = TextSource("answers", rows, tokenizer(), context=32)
        made = stage({"name": name}, data, rollout=True)
        batch = made.first_batch()
        assert bool(batch["on_policy"].all())
        found.append((batch["mask"].sum(), gradients(made)))
    assert found[0][0] == found[1][0]
    same(found[0][1], found[1][1])


ACCUMULATED: list[dict[str, Any]] = [
    {"name": "sft"},
    {"name": "word_kd", "average": "sequence_mean"},
    {"name": "word_kd", "tokens": "surer_teacher"},
    {"name": "word_kd", "tokens": {"name": "uncertain_tokens", "fraction": 0.4}, "average": "sequence_mean"},
    {"name": "gkd", "beta": 0.3},
    {"name": "distillm"},
    {"name": "taid"},
    {"name": "tsd_kd"},
    {"name": "ddk"},
]


@pytest.mark.parametrize("method", ACCUMULATED, ids=str)
def test_bug_02_gradients_are_the_same_for_every_division_into_micro_batches(method: dict[str, Any]) -> None:
    """Elsewhere they are means of means, in which a token of a short row counts more."""
    found = []
    for parts in (1, 2, 4):
        made = stage(method, source(count=8), micro_batches=parts)
        assert made.first_batch()["mask"].sum(-1).unique().numel() > 1
        found.append(gradients(made))
    same(found[0], found[1])
    same(found[0], found[2])


@pytest.mark.parametrize("rollout", [False, True])
@pytest.mark.parametrize("name", ["uld", "gold"])
def test_bug_03_losses_across_tokenizers_are_divided_once_too(name: str, rollout: bool) -> None:
    """Elsewhere the path for other tokenizers forgets the number of tokens of the whole batch."""
    found = []
    for parts in (1, 4):
        made = stage({"name": name}, source(count=8), micro_batches=parts, rollout=rollout)
        assert made.first_batch()["mask"].sum(-1).unique().numel() > 1
        found.append(gradients(made))
    same(found[0], found[1])


def test_bug_22_kl_is_summed_over_the_vocabulary_and_averaged_over_tokens() -> None:
    """Elsewhere the default reduction divides by the size of the vocabulary as well, 150,000 times too small."""
    student, teacher, mask = said(0), said(1), ragged()
    exact = rel_entr(teacher.softmax(-1).numpy(), student.softmax(-1).numpy()).sum(-1)[mask.numpy()].mean()
    for name, only in (("word_kd", "kd"), ("ddk", "kd"), ("gkd", None)):
        method = build_method(name, **({"beta": 0.0} if name == "gkd" else {}))
        found = loss_of(method, tokens(), only, student=spoken(student), teacher=spoken(teacher))
        assert float(found) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("average", ["token_mean", "sequence_mean"])
def test_bug_23_twice_the_same_sequences_are_worth_what_once_is(average: str) -> None:
    """Elsewhere the loss is divided by the number of tokens twice, so larger batches teach less."""
    student, teacher = said(0).requires_grad_(), said(1)
    once = tokens()
    twice = Batch({key: torch.cat([value, value]) for key, value in once.items()})
    for name in ("word_kd", "sft"):
        method = build_method(name, average=average)
        found = []
        for batch, copies in ((once, 1), (twice, 2)):
            said_by = {"student": student, "teacher": teacher}
            roles = {r: spoken(torch.cat([said_by[r]] * copies)) for r in method.roles()}
            terms = method(batch, **roles)
            loss = loss_of(method, batch, **roles)
            found.append((loss.detach(), *torch.autograd.grad(loss, student)))
            count = int(batch["mask"].sum()) if average == "token_mean" else len(batch["mask"])
            ce = as_term(terms["ce"])
            torch.testing.assert_close(ce.total() / count, ce.mean())
        torch.testing.assert_close(found[0], found[1])


def test_bug_34_a_teacher_costs_no_gradient_and_no_optimizer_state() -> None:
    """Elsewhere it is in the optimizer, or its gradients are kept, which doubles the memory."""
    made = stage({"name": "word_kd"}, source(count=8))
    teacher = made.observers["teacher"].model  # type: ignore[attr-defined]
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert not made.observers["teacher"](made.first_batch()).hidden.states.requires_grad
    made.run()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    owned = {id(p) for o in made.optimizers.values() for group in o.param_groups for p in group["params"]}
    assert owned == {id(p) for p in made.learners["student"].parameters()}
    assert sum(len(o.state) for o in made.optimizers.values()) <= len(owned)
