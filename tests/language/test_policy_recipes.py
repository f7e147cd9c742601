"""Rewards and privileged prompts at work: small policies get better, and what the papers say of their losses holds."""

from __future__ import annotations

import copy

import pytest
import torch

from language.corpus import tokenizer
from limbeck.data.text import TextLoader, load_text
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.functional.policy import group_statistics
from limbeck.methods.base import build_method
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.signals import Batch, Signals, as_term
from limbeck.students.language import build_language_model
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.provider import Observer
from limbeck.transforms import build_transform

OWN = [
    "lm_kdrl",
    "lm_kdrl_advantage",
    "lm_rlad",
    "lm_opsd",
    "lm_context_distillation",
    "lm_unified_opd",
]


@pytest.mark.parametrize("name", OWN)
def test_every_stage_of_a_recipe_builds_and_steps(name):
    recipe = load_recipe(name, ["data.options.count=40", "train.batch_size=8"])
    for spec in recipe.stages:
        built = build_stage(recipe, spec, earlier=lambda *_: None)
        batch = built.stage.first_batch()
        built.stage.rehearse(batch)
        assert all(torch.isfinite(as_term(t).mean()) for t in built.stage.terms(batch).values())


def sums(**options):
    text = load_text({"name": "arithmetic", **options}, tokenizer(), context=16, test=0.0)
    return TextLoader(text, batch_size=20, seed=1)


def llama(seed=0, width=48):
    torch.manual_seed(seed)
    return build_language_model({"name": "llama", "layers": 1, "width": width, "heads": 4}, vocabulary=257, context=16)


def stage(method, student, batches, *, epochs, lr=0.003, transforms=(), teacher=None):
    changes = [build_transform(entry, seed=0, num_classes=257) for entry in transforms]
    roles = {"student": Role(model=student)} | ({} if teacher is None else {"teacher": Role(model=teacher)})
    settings = TrainSettings(epochs=epochs, batch_size=20, optimizer="adamw", lr=lr, clip_norm=1.0, schedule="constant")
    return Stage(
        method=method, roles=roles, task=CausalLM(vocabulary=257), loader=batches, settings=settings, transforms=changes
    )


def expected_reward(student, batches, draws=8):
    """Mean reward of fresh samples of every prompt."""
    probe = build_transform(
        {"name": "rollout", "samples": draws, "max_new_tokens": 3, "reward": "exact_answer"}, seed=99, num_classes=257
    )
    task = CausalLM(vocabulary=257)
    probe.bind({"student": Observer("student", student, task)}, batches)
    return torch.cat([probe(batch)["reward"] for batch in batches.epoch(0)]).mean().item()


def test_rewards_alone_make_a_warm_student_better():
    batches, student = sums(largest=5), llama()
    stage(build_method("sft"), student, batches, epochs=30, lr=0.005).run()
    before = expected_reward(student, batches)
    rollout = {"name": "rollout", "samples": 8, "max_new_tokens": 3, "reward": "exact_answer"}
    teacher = copy.deepcopy(student)
    stage(
        build_method("kdrl", beta=0.0), student, batches, epochs=24, lr=0.006, transforms=[rollout], teacher=teacher
    ).run()
    after = expected_reward(student, batches)
    assert 0.05 < before < 0.9
    assert after > before + 0.08


def tokens(rows=6, length=4, vocabulary=7, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=numbers, dtype=torch.float64)  # noqa: E731
    labels = torch.randint(0, vocabulary, (rows, length), generator=numbers)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, 2:] = False
    student, teacher = draw(rows, length, vocabulary).requires_grad_(), draw(rows, length, vocabulary)
    batch = Batch(
        index=torch.arange(rows), labels=labels, mask=mask, advantage=draw(rows), reward=torch.ones(rows).double()
    )
    batch["group_best"] = batch["reward"]
    return batch, student, teacher


def gradient(name, batch, student, teacher, **options):
    method = build_method(name, **options)
    terms = method(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))
    weights = {n: w if isinstance(w, float) else 1.0 for n, w in method.weights.items()}
    return torch.autograd.grad(sum(weights[n] * as_term(t).mean() for n, t in terms.items()), student)[0]


def test_without_imitation_all_of_them_are_grpo():
    batch, student, teacher = tokens()
    grpo = gradient("kdrl", batch, student, teacher, beta=0.0)
    torch.testing.assert_close(gradient("rlad", batch, student, teacher, alpha=1.0, average="token_mean"), grpo)
    assert grpo.abs().max() > 0


def test_right_answers_are_not_imitated_where_only_wrong_ones_are_to_be():
    batch, student, teacher = tokens()
    alone = gradient("kdrl", batch, student, teacher, beta=0.0)
    for keep in ("wrong", "unsolved_group"):
        torch.testing.assert_close(gradient("kdrl", batch, student, teacher, beta=1.0, keep=keep), alone)
    assert not torch.allclose(gradient("kdrl", batch, student, teacher, beta=1.0), alone)


def test_equal_rewards_teach_rlad_nothing():
    batch, student, teacher = tokens()
    batch["advantage"] = group_statistics(torch.ones(6).double(), torch.tensor([0, 0, 0, 1, 1, 1])).advantage
    assert gradient("rlad", batch, student, teacher).abs().max() == 0
    assert gradient("kdrl", batch, student, teacher, beta=1.0).abs().max() > 0


def test_a_far_teacher_stays_finite_and_only_advantages_have_a_direction():
    batch, student, teacher = tokens()
    far = teacher.clone()
    far.scatter_(-1, batch["labels"].unsqueeze(-1), -60.0)
    found = gradient("rlad", batch, student, far)
    assert torch.isfinite(found).all()
    # The gradient of a token's own logit has the sign of minus its advantage, or is zero where it is clipped.
    own = found.gather(-1, batch["labels"].unsqueeze(-1)).squeeze(-1)
    assert ((own * batch["advantage"].unsqueeze(-1))[batch["mask"]] <= 0).all()
    assert (own[~batch["mask"]] == 0).all()
