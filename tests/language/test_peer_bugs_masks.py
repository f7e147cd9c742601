"""Mistakes that other tools made in which tokens are predicted and learnt: none of them here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from language.corpus import tiny, tokenizer
from language.spoken import numbers
from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.generation import end_tokens
from limbeck.methods.base import Method, build_method
from limbeck.signals import Batch, Signals, as_term
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.live import FrozenTeacher
from limbeck.transforms import build_transform

PROMPTS = (2, 5, 3)
ANSWERS = (4, 2, 6)


def pairs() -> TextSource:
    """Prompts and answers of different lengths; nothing is equal to another."""
    rows = [
        Encoded(np.arange(prompt + answer) + 20 * n, np.arange(prompt + answer) >= prompt, prompt)
        for n, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS), 1)
    ]
    return TextSource("pairs", rows, tokenizer(), context=32)


def first(data: TextSource) -> Batch:
    return next(TextLoader(data, batch_size=len(data), shuffle=False).epoch(0))


def moving_places(method: Method, batch: Batch) -> list[list[int]]:
    """Where a change of the student's logits changes a method's loss, by row."""
    shape = (*batch["labels"].shape, 257)
    student, teacher = numbers(*shape, seed=1).requires_grad_(), numbers(*shape, seed=2)
    roles = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    terms = method(batch, **{role: roles[role] for role in method.roles()})
    loss = torch.stack([as_term(term).mean() for term in terms.values()]).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    return [row.nonzero().squeeze(1).tolist() for row in gradient.abs().sum(-1) > 0]


@pytest.mark.parametrize("name", ["sft", "word_kd", "gkd", "tsd_kd", "ddk", "taid", "distillm", "imitkd"])
def test_bug_25_the_loss_moves_from_the_prompts_last_place_to_the_one_before_the_end(name: str) -> None:
    """Elsewhere the mask is not shifted: the answer's first token is lost, and what follows the end is kept."""
    expected = [list(range(prompt - 1, prompt + answer - 1)) for prompt, answer in zip(PROMPTS, ANSWERS)]
    assert moving_places(build_method(name), first(pairs())) == expected


def test_bug_26_ragged_prompts_lose_no_token_of_theirs_and_none_of_the_answer() -> None:
    """Elsewhere sequences are cut at the width of the longest prompt, which drops real tokens of the others."""
    data = pairs()
    for batch in (first(data), rolled(data, policy="data")):
        for row, sequence in enumerate(data.sequences):
            seen = batch["inputs"]["attention_mask"][row].bool()
            assert batch["inputs"]["input_ids"][row, seen].tolist() == sequence.ids[:-1].tolist()
            assert batch["labels"][row, batch["mask"][row]].tolist() == sequence.ids[PROMPTS[row] :].tolist()
    model, together = tiny(), first(data)
    said = CausalLM().run(model, together["inputs"], frozenset({"logits"})).logits
    for row in range(len(data)):
        alone = TextLoader(data, batch_size=1, shuffle=False).batch(np.array([row]), 0)
        own = CausalLM().run(model, alone["inputs"], frozenset({"logits"})).logits[0]
        count = len(data.sequences[row]) - 1
        torch.testing.assert_close(said[row, :count], own[:count], rtol=1e-4, atol=1e-5)


def rolled(data: TextSource, **options: Any) -> Batch:
    """The first batch after rollouts."""
    change = build_transform({"name": "rollout", "max_new_tokens": 6, **options}, seed=1, num_classes=257)
    model = FrozenTeacher("student", tiny(4, context=64), CausalLM(vocabulary=257), wanted=frozenset({"logits"}))
    loader = TextLoader(data, batch_size=len(data), shuffle=False)
    change.bind({"student": model, "teacher": model}, loader)
    return change(next(loader.epoch(0)))


@pytest.mark.parametrize("pads_with_end", [True, False])
def test_bug_27_the_token_that_ends_an_answer_is_learnt_whatever_pads(pads_with_end: bool) -> None:
    """Elsewhere all tokens with the padding's id are masked, the real end and those within a prompt among them."""
    tokens = tokenizer()
    end = tokens.eos_id
    if pads_with_end:
        tokens.backend.pad_token = tokens.backend.eos_token
    else:
        tokens.backend.pad_token = tokens.backend.convert_ids_to_tokens(7)
    assert (tokens.pad_id == end) is pads_with_end
    pad = tokens.pad_id
    ids = [
        np.array([65, pad, 66, 67, 68, end]),
        np.array([pad, pad, 65, 66, 67, 68, end]),
        np.array([1, 2, 3, pad, end]),
    ]
    rows = [Encoded(i, np.arange(len(i)) >= p, p) for i, p in zip(ids, PROMPTS)]
    data = TextSource("ends", rows, tokens, context=32)
    batch = first(data)
    for row, sequence in enumerate(data.sequences):
        learnt = batch["labels"][row, batch["mask"][row]].tolist()
        assert learnt == sequence.ids[PROMPTS[row] :].tolist()
        assert learnt[-1] == end
        assert int(batch["inputs"]["attention_mask"][row].sum()) == len(sequence) - 1
    assert end in end_tokens(None, tokens)


def test_bug_28_of_a_rollout_the_tokens_of_the_prompt_are_never_learnt() -> None:
    """Elsewhere labels of what the student wrote also hold the prompt before it."""
    data = pairs()
    batch = rolled(data)
    assert bool(batch["on_policy"].all())
    for row, sequence in enumerate(data.sequences):
        prompt = PROMPTS[row]
        ids, mask, labels = batch["inputs"]["input_ids"][row], batch["mask"][row], batch["labels"][row]
        assert ids[:prompt].tolist() == sequence.ids[:prompt].tolist()
        assert int(mask.nonzero()[0]) == prompt - 1
        assert (labels[: prompt - 1] == -100).all()
        length = int(mask.sum())
        assert mask[prompt - 1 : prompt - 1 + length].all()
        assert labels[prompt - 1 : prompt + length - 2].tolist() == ids[prompt : prompt + length - 1].tolist()
        assert (batch["sampler_logprobs"][row][~mask] == 0).all()
        assert (batch["sampler_logprobs"][row][mask] < 0).all()


def test_bug_28_what_a_rollout_says_of_its_tokens_is_what_the_model_says_of_them() -> None:
    """The audit of labels above would not see labels that are shifted by one with everything else."""
    batch = rolled(pairs())
    logits = CausalLM(vocabulary=257).run(tiny(4, context=64), batch["inputs"], frozenset({"logits"})).logits
    chosen = logits.log_softmax(-1).gather(-1, batch["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    mask = batch["mask"]
    torch.testing.assert_close(batch["sampler_logprobs"][mask], chosen[mask], rtol=1e-3, atol=1e-4)
