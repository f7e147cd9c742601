from __future__ import annotations

import pytest
import torch

from language.corpus import loader, tiny
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import NeedsError, RecipeError, TeacherChangedError
from limbeck.methods.base import build_method
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.students.language import add_lora
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.adapter_off import AdapterOffTeacher

WANTED = frozenset({"hidden|logits"})


def adapted(**options):
    student = add_lora(tiny(), rank=4, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    return student


def stage(student, role, **settings):
    method = build_method("opsd", temperature=1.0)
    return Stage(
        method=method,
        roles={"student": Role(model=student), "teacher": role},
        task=CausalLM(vocabulary=257),
        loader=loader(),
        settings=TrainSettings(epochs=3, batch_size=6, optimizer="adamw", lr=0.01, **settings),
    )


def test_without_its_adapters_a_student_is_its_own_initial_model():
    student, batch = adapted(dropout=0.5), next(loader().epoch(0))
    student.train()
    teacher = AdapterOffTeacher("teacher", student, CausalLM(vocabulary=257), wanted=WANTED)
    said, known = teacher(batch).hidden.logits(), CausalLM(vocabulary=257).run(tiny(), batch["inputs"], WANTED)
    torch.testing.assert_close(said, known.hidden.logits())
    assert not said.requires_grad
    # The student has its mode and its adapters again.
    assert student.training
    student.eval()
    moved = CausalLM(vocabulary=257).run(student, batch["inputs"], WANTED).hidden.logits()
    assert (moved - said).abs().max() > 0.01


def test_it_is_the_same_before_and_after_training():
    student, batch = adapted(), next(loader().epoch(0))
    run = stage(student, Role(without_adapters="student"))
    assert run.terms(run.first_batch())["distill"].mean() > 0.01
    before = run.observers["teacher"](batch).hidden.states
    first = {n: p.detach().clone() for n, p in student.named_parameters()}
    run.run()
    torch.testing.assert_close(run.observers["teacher"](batch).hidden.states, before, rtol=0, atol=0)
    changed = {n for n, p in student.named_parameters() if not torch.equal(first[n], p)}
    assert changed
    assert all("lora_" in name for name in changed)


def test_a_change_under_the_adapters_is_noticed():
    student = adapted()
    teacher = AdapterOffTeacher("teacher", student, CausalLM())
    teacher.start()
    with torch.no_grad():
        next(p for n, p in student.named_parameters() if "base_layer" in n).add_(1e-3)
    with pytest.raises(TeacherChangedError, match="under the adapters"):
        teacher.finish()


def test_what_has_no_adapters_cannot_be_without_them():
    with pytest.raises(NeedsError, match="has none"):
        stage(tiny(), Role(without_adapters="student"))
    with pytest.raises(NeedsError, match="also trains"):
        stage(adapted(train_too=["lm_head"]), Role(without_adapters="student"))
    with pytest.raises(NeedsError, match=r"made of 'studnt'.*student"):
        stage(adapted(), Role(without_adapters="studnt"))


SHAPE = {"name": "llama", "layers": 2, "width": 32, "heads": 4}


def recipe(teacher, student):
    return load_recipe(
        {
            "task": "causal-lm",
            "data": {
                "name": "persuasion",
                "limit": {"train": 16, "test": 4},
                "options": {"tokenizer": "bytes", "context": 32},
            },
            "roles": {"teacher": teacher, "student": student},
            "method": {"name": "word_kd", "kd_ratio": 0.5},
            "train": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.01},
        }
    )


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ({"adapter_off": "student"}, {"model": {**SHAPE, "lora": {"rank": 2}}}),
        ({"from": "student"}, {"model": SHAPE}),
        ({"from": "student"}, {"model": {**SHAPE, "lora": {"rank": 2}}}),
        ({"from": "student"}, {"from": "other", "layers": 1}),
        ({"ema": {"of": "student", "decay": 0.9}}, {"model": SHAPE}),
        ({"ema": {"of": "student", "decay": 0.0}}, {"model": SHAPE}),
    ],
)
def test_a_recipe_names_a_student_as_its_own_teacher(teacher, student):
    loaded = recipe(teacher, student)
    plain = loaded.model_dump(by_alias=True)
    if student.get("from") == "other":
        plain["stages"][0]["roles"]["other"] = {"model": SHAPE}
        loaded = type(loaded).model_validate(plain)
    built = build_stage(loaded, loaded.stages[0])
    batch = built.stage.first_batch()
    assert built.stage.terms(batch)["kd"].mean().abs() < 1e-6
    built.stage.run()
    apart = built.stage.terms(batch)["kd"].mean()
    live = teacher.get("ema", {}).get("decay") == 0.0
    assert abs(apart) < 1e-6 if live else apart > 1e-6


def test_adapters_off_beside_another_origin_is_refused():
    with pytest.raises(RecipeError, match="adapter_off"):
        recipe({"adapter_off": "student", "model": SHAPE}, {"model": SHAPE})


def test_copies_in_a_circle_are_refused():
    loaded = recipe({"from": "student"}, {"from": "teacher"})
    with pytest.raises(RecipeError, match="no model here"):
        build_stage(loaded, loaded.stages[0])
