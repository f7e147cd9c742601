"""DPO against its definition, as a stage after others, and as the preparation of a teacher."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from language.spoken import V, loss_of, numbers, projected, ragged, said, spoken, tokens
from limbeck.errors import RecipeError
from limbeck.methods.base import build_method
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import reopen, run_recipe
from limbeck.signals import Signals

SHAPE = {"name": "llama", "layers": 2, "width": 32, "heads": 4}


def pairs(**entries):
    """A batch of two answers each, of other lengths and other tokens."""
    other = tokens(ragged().flip(0))
    labels = other["labels"].flip(-1)
    return tokens(rejected_labels=labels, rejected_mask=labels >= 0, **entries)


def log_likelihoods(logits, labels):
    """[B], summed token by token."""
    table = logits.log_softmax(-1)
    return torch.stack([
        sum(table[row, place, label] for place, label in enumerate(line) if label >= 0)
        for row, line in enumerate(labels.tolist())
    ])  # fmt: skip


@pytest.mark.parametrize(("beta", "noise"), [(0.1, 0.0), (0.5, 0.2)])
def test_value_and_gradient_are_those_of_the_definition(beta, noise):
    batch = pairs()
    chosen, rejected = said(1).requires_grad_(), said(2).requires_grad_()
    reference = said(3).requires_grad_(), said(4).requires_grad_()
    method = build_method("dpo", beta=beta, label_smoothing=noise)
    loss = loss_of(
        method,
        batch,
        student=spoken(chosen, views={"rejected": spoken(rejected)}),
        reference=spoken(reference[0], views={"rejected": spoken(reference[1])}),
    )
    found = torch.autograd.grad(loss, [chosen, rejected, *reference], allow_unused=True)
    assert found[2:] == (None, None)

    ours = log_likelihoods(chosen, batch["labels"]) - log_likelihoods(rejected, batch["rejected_labels"])
    theirs = log_likelihoods(reference[0], batch["labels"]) - log_likelihoods(reference[1], batch["rejected_labels"])
    margin = beta * (ours - theirs.detach())
    known = (-(1 - noise) * logsigmoid(margin) - noise * logsigmoid(-margin)).mean()
    torch.testing.assert_close(loss, known, rtol=1e-9, atol=0)
    for mine, right in zip(found, torch.autograd.grad(known, [chosen, rejected])):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)


def test_hidden_states_and_a_server_that_scores_tokens_say_the_same():
    batch = pairs()
    (first, logits, _), (second, others, _) = projected(5), projected(9)
    known = log_likelihoods(logits, batch["labels"]), log_likelihoods(others, batch["rejected_labels"])
    given = [torch.where(m, numbers(*m.shape, seed=n), torch.nan) for n, m in
             ((20, batch["mask"]), (21, batch["rejected_mask"]))]  # fmt: skip
    reference = Signals(logprobs=given[0], views={"rejected": Signals(logprobs=given[1])})
    student = Signals(hidden=first.hidden, views={"rejected": second})
    margin = 0.1 * (known[0] - given[0].nansum(-1) - known[1] + given[1].nansum(-1))
    torch.testing.assert_close(
        loss_of("dpo", batch, student=student, reference=reference), -logsigmoid(margin).mean(), rtol=1e-9, atol=0
    )


def test_a_student_that_is_its_reference_is_undecided_and_moves_both_answers_alike():
    batch = pairs()
    chosen, rejected = said(1).requires_grad_(), said(2).requires_grad_()
    views = {"rejected": spoken(rejected)}
    loss = loss_of("dpo", batch, student=spoken(chosen, views=views), reference=spoken(chosen, views=views))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    gradients = torch.autograd.grad(loss, [chosen, rejected])
    likelihoods = log_likelihoods(chosen, batch["labels"]), log_likelihoods(rejected, batch["rejected_labels"])
    expected = torch.autograd.grad(-0.5 * 0.1 * (likelihoods[0] - likelihoods[1]).mean(), [chosen, rejected])
    for ours, known in zip(gradients, expected):
        torch.testing.assert_close(ours, known)


def test_a_pair_without_a_token_on_a_side_counts_for_nothing():
    batch, logits = pairs(), said(1)
    whole = loss_of("dpo", batch, student=spoken(logits, views={"rejected": spoken(said(2))}),
                    reference=spoken(said(3), views={"rejected": spoken(said(4))}))  # fmt: skip
    batch["rejected_mask"][0] = False
    signals = {"student": spoken(logits, views={"rejected": spoken(said(2))}),
               "reference": spoken(said(3), views={"rejected": spoken(said(4))})}  # fmt: skip
    without = build_method("dpo")(batch, **signals)["preference"]
    assert without.mask.tolist() == [False, True, True]
    assert without.mean() != whole
    assert V > 0


@pytest.fixture
def chain(tmp_path):
    """Fine-tuning, alignment of what it left, and distillation of the aligned model."""
    rows = [{"prompt": f"{n}?", "chosen": "yes" + "!" * (n % 3), "rejected": f"no {n}"} for n in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "causal-lm",
        "data": {
            "name": "jsonl",
            "path": str(tmp_path / "pairs.jsonl"),
            "options": {"tokenizer": "bytes", "context": 24, "test": 0.2},
        },
        "train": {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 0.003},
        "stages": [
            {"name": "tuning", "method": "sft", "roles": {"student": {"model": SHAPE}}},
            {
                "name": "alignment",
                "method": {"name": "dpo", "beta": 0.5},
                "roles": {"student": {"model": SHAPE}, "reference": {"from": "student"}},
            },
            {
                "name": "advantage",
                "method": "adpa",
                "roles": {
                    "student": {"model": SHAPE, "fresh": True},
                    "teacher": {"from_stage": "alignment"},
                    "reference": {"from_stage": "tuning"},
                },
            },
        ],
        "evaluate": ["token_loss"],
    }


def test_the_reference_is_what_the_stage_before_left_and_the_aligned_model_teaches(chain, tmp_path):
    finished = run_recipe(chain, out=tmp_path / "run")
    records = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    aligned = [r for r in records if r.get("stage") == "alignment"]
    assert math.log(2) > aligned[0]["terms"]["preference"] > aligned[-1]["terms"]["preference"]
    recipe, last = reopen(finished.folder)
    left = {name: finished.folder / "stages" / name for name in ("tuning", "alignment")}
    assert all((path / "done").exists() for path in left.values())
    second = build_stage(
        recipe, recipe.stages[1], earlier=lambda name, model: _load(left[name] / "student.safetensors", model)
    )
    known = _load(left["tuning"] / "student.safetensors", second.stage.student())
    for ours, reference in zip(known.parameters(), second.roles["reference"].model.parameters()):
        assert torch.equal(ours, reference)
    # Both start at the same weights, where no answer is preferred.
    first = second.stage.terms(second.stage.first_batch())["preference"]
    assert float(first.mean().detach()) == pytest.approx(math.log(2), abs=1e-5)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(last.roles["teacher"].model.parameters(), last.roles["reference"].model.parameters())
    )


def _load(path, model):
    from limbeck.students.loading import load_weights

    load_weights(model, path)
    return model


def test_a_copy_of_a_learner_cannot_be_made_where_the_stage_before_is_not_there(chain):
    recipe = load_recipe(chain)
    with pytest.raises(RecipeError, match="a copy of 'student' as the stage 'tuning' leaves it"):
        build_stage(recipe, recipe.stages[1])
