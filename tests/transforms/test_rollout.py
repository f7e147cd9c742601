"""Rollouts: what is written takes the place of the data's completions, wherever it comes from, and is reproducible."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from language.corpus import sequences, tiny, tokenizer
from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.methods.base import build_method
from limbeck.schedules import Progress
from limbeck.signals import Batch
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.live import FrozenTeacher
from limbeck.teachers.provider import Observer
from limbeck.transforms import build_transform

VOCABULARY = 257
ENDS = list(range(30))
CONTEXT = 32


def pairs(count: int = 8) -> list[Encoded]:
    """Prompts of two to nine tokens with completions."""
    found = []
    for number, sequence in enumerate(sequences(count, low=14, high=24)):
        prompt = 2 + number % 8
        found.append(Encoded(sequence.ids, np.arange(len(sequence)) >= prompt, prompt))
    return found


def loader(batch_size: int = 4, rows: list[Encoded] | None = None, **options: Any) -> TextLoader:
    source = TextSource("pairs", pairs() if rows is None else rows, tokenizer(), context=CONTEXT, **options)
    return TextLoader(source, batch_size=batch_size, seed=3)


MODELS = {"student": tiny(1, layers=1), "teacher": tiny(2, layers=1)}


def rollout(text: TextLoader | None = None, *, training: bool = True, **options: Any) -> Any:
    """A rollout bound to a student and a teacher, as a stage binds it."""
    given = {"max_new_tokens": 10, "end_tokens": ENDS, **options}
    made: Any = build_transform({"name": "rollout", **given}, seed=7, num_classes=VOCABULARY)
    task = CausalLM(vocabulary=VOCABULARY)
    observers = {
        "student": Observer("student", MODELS["student"], task),
        "teacher": FrozenTeacher("teacher", MODELS["teacher"], task),
    }
    made.bind(observers, loader() if text is None else text)
    made.at(Progress(0, 2, 4), training=training)
    return made


def first(text: TextLoader, epoch: int = 0) -> Batch:
    return next(iter(text.epoch(epoch)))


def log_probabilities(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        said = model(**{k: batch["inputs"][k] for k in ("input_ids", "attention_mask", "position_ids")}).logits
    chosen = said.log_softmax(-1).gather(-1, batch["labels"].clamp(min=0).unsqueeze(-1))[..., 0]
    return torch.where(batch["mask"], chosen, 0.0)


def completions(batch: Batch) -> list[list[int]]:
    return [row[flags].tolist() for row, flags in zip(batch["labels"], batch["mask"])]


def test_a_batch_is_made_anew_around_what_the_student_wrote() -> None:
    text = loader()
    data, batch = first(text), rollout(text)(first(text))
    CausalLM(vocabulary=VOCABULARY).check(batch, VOCABULARY)
    assert batch["index"].tolist() == data["index"].tolist()
    assert batch["on_policy"].all()
    assert not batch["policy_age"].any()
    assert torch.equal(batch["mask"], batch["completion"])
    for row, index in enumerate(data["index"].tolist()):
        prompt = text.source.sequences[index].ids[: text.source.sequences[index].prompt].tolist()
        new = completions(batch)[row]
        seen = int(batch["inputs"]["attention_mask"][row].sum())
        # The last token is predicted and never read; every label is the token after its position.
        assert batch["inputs"]["input_ids"][row, :seen].tolist() == (prompt + new)[:-1]
        assert batch["mask"][row].nonzero()[:, 0].tolist() == list(range(len(prompt) - 1, len(prompt) + len(new) - 1))
        assert batch["inputs"]["position_ids"][row, :seen].tolist() == list(range(seen))
        assert len(new) == 10 or new[-1] in ENDS
        assert not set(new[:-1]) & set(ENDS)
    assert torch.allclose(batch["sampler_logprobs"], log_probabilities(MODELS["student"], batch), atol=1e-5)
    assert torch.equal(batch["sampler_logprobs"], batch["proposal_logprobs"])


def test_sampler_is_the_policy_itself_and_proposal_what_was_drawn_from() -> None:
    text = loader()
    batch = rollout(text, temperature=0.7, top_k=5)(first(text))
    assert torch.allclose(batch["sampler_logprobs"], log_probabilities(MODELS["student"], batch), atol=1e-5)
    assert bool((batch["proposal_logprobs"] > batch["sampler_logprobs"])[batch["mask"]].all())


def test_the_teacher_writes_labels_to_learn_from() -> None:
    text = loader()
    batch = rollout(text, policy="teacher")(first(text))
    assert not batch["on_policy"].any()
    assert "sampler_logprobs" not in batch
    assert torch.allclose(batch["proposal_logprobs"], log_probabilities(MODELS["teacher"], batch), atol=1e-5)


def test_both_write() -> None:
    text = loader()
    batch = rollout(text, policy="mixed", teacher_share=0.3)(first(text))
    q, p = (log_probabilities(MODELS[role], batch).exp() for role in ("student", "teacher"))
    mask = batch["mask"]
    assert torch.allclose(batch["proposal_logprobs"].exp()[mask], (0.7 * q + 0.3 * p)[mask], atol=1e-5)
    assert torch.allclose(batch["sampler_logprobs"].exp()[mask], q[mask], atol=1e-5)
    method = build_method("minillm", teacher_share=0.3)
    log_p = p.log().masked_fill(~mask, 0.0)
    told = method.log_importance(batch, batch["sampler_logprobs"], log_p)  # type: ignore[operator]
    del batch["proposal_logprobs"]
    worked_out = method.log_importance(batch, batch["sampler_logprobs"], log_p)  # type: ignore[operator]
    assert torch.allclose(told[mask], worked_out[mask], atol=1e-4)


def test_speculative_keeps_what_the_teacher_would_accept() -> None:
    text = loader()
    batch = rollout(text, policy="speculative", teacher_top_k=1)(first(text))
    with torch.no_grad():
        best = MODELS["teacher"](**batch["inputs"]).logits.argmax(-1)
    report = rollout(text, policy="speculative", teacher_top_k=VOCABULARY)
    report(first(text))
    assert report.report()["accepted"] == 1.0
    assert batch["on_policy"].all()
    assert bool((best == batch["labels"])[batch["mask"]].any())


def test_data_stays_as_it_is() -> None:
    text = loader()
    data = first(text)
    for made in (rollout(text, policy="data"), rollout(text, probability=0.0)):
        batch = made(data)
        assert all(torch.equal(batch[key], data[key]) for key in ("labels", "mask", "index"))
        assert torch.equal(batch["inputs"]["input_ids"], data["inputs"]["input_ids"])
        assert not batch["on_policy"].any()
        assert "sampler_logprobs" not in batch


def origins(made: Any, text: TextLoader, steps: int) -> list[list[bool]]:
    """Which rows the student wrote, step by step."""
    found = []
    for step in range(steps):
        made.at(Progress(step, 2, steps), training=True)
        found.append(made(first(text, step))["on_policy"].tolist())
    return found


def test_a_coin_decides_for_a_batch_or_for_a_sequence() -> None:
    text = loader()
    batches = origins(rollout(text, probability=0.5, max_new_tokens=1), text, 40)
    assert all(len(set(rows)) == 1 for rows in batches)
    assert 10 < sum(rows[0] for rows in batches) < 30
    rows = origins(rollout(text, probability=0.5, unit="sequence", max_new_tokens=1), text, 40)
    assert any(len(set(r)) == 2 for r in rows)
    assert 50 < sum(map(sum, rows)) < 110
    ramp = origins(rollout(text, probability={"from": 0.0, "to": 1.0}, max_new_tokens=1), text, 40)
    assert sum(r[0] for r in ramp[:20]) < sum(r[0] for r in ramp[20:])


def test_what_is_written_does_not_depend_on_how_batches_are_divided() -> None:
    text = loader(8)
    batch = first(text)
    whole = rollout(text, samples=2)(batch)
    parts = [rollout(text, samples=2)(part) for part in batch.split(3)]
    assert completions(whole) == [new for part in parts for new in completions(part)]
    assert whole["index"].tolist() == [n for part in parts for n in part["index"].tolist()]
    assert torch.equal(whole["index"], batch["index"].repeat_interleave(2))
    ours, theirs = completions(whole)[0::2], completions(whole)[1::2]
    assert sum(a != b for a, b in zip(ours, theirs)) >= 7
    assert completions(rollout(text, samples=2)(Batch(batch, epoch=1))) != completions(whole)


def test_completions_end_with_the_context() -> None:
    rows = [Encoded(np.arange(60, 60 + CONTEXT + 1), np.arange(CONTEXT + 1) >= prompt, prompt) for prompt in (32, 28)]
    text = loader(2, rows)
    batch = rollout(text, end_tokens=[])(first(text))
    assert sorted(map(len, completions(batch))) == [1, 5]
    assert batch["labels"].shape[1] == CONTEXT


def test_replay_draws_from_before_up_to_an_age() -> None:
    text = loader()
    made = rollout(text, replay={"size": 8, "age": 5, "share": "increasing"})
    ages = []
    for step in range(8):
        made.at(Progress(step, 2, 40), training=True)
        batch = made(first(text, step))
        ages.append(batch["policy_age"].tolist())
        assert batch["on_policy"].all()
        # Log-probabilities stay those of the time of writing; here the student has not moved.
        assert torch.allclose(batch["sampler_logprobs"], log_probabilities(MODELS["student"], batch), atol=1e-5)
    assert ages[0] == ages[1] == [0] * 4
    assert any(max(age) > 0 for age in ages)
    assert max(max(age) for age in ages) <= 5
    replayed = next(n for n, age in enumerate(ages) if max(age) > 0)
    assert min(ages[replayed]) > 0


def test_replayed_rows_keep_the_old_policy() -> None:
    text = loader()
    model = copy.deepcopy(MODELS["student"])
    made = rollout(text, replay={"size": 4, "share": "increasing"})
    made.observers["student"].model = model
    made(first(text))
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    made.at(Progress(1, 2, 400), training=True)
    batch = made(first(text, 1))
    assert batch["policy_age"].tolist() == [1] * 4
    assert torch.allclose(batch["sampler_logprobs"], log_probabilities(MODELS["student"], batch), atol=1e-5)
    assert not torch.allclose(batch["sampler_logprobs"], log_probabilities(model, batch), atol=1e-2)


def test_writing_ahead_writes_the_same_at_once() -> None:
    text = loader(2)
    plain, ahead = rollout(text), rollout(text, every=3)
    calls = []
    forward = MODELS["student"].register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for step, batch in enumerate(text.epoch(0)):
            for made in (plain, ahead):
                made.at(Progress(step, 4, 2), training=True)
            calls.clear()
            ours = ahead(batch)
            assert bool(calls) == (step in (0, 3))
            assert completions(ours) == completions(plain(batch))
            assert ours["policy_age"].tolist() == [step % 3] * 2
    finally:
        forward.remove()


@pytest.mark.parametrize(
    "options", [{}, {"probability": 0.5}, {"probability": 0.5, "every": 3}, {"policy": "data"}, {"policy": "teacher"}]
)
def test_a_role_is_announced_as_writer_where_it_is_run_and_in_no_other_batch(options: dict[str, Any]) -> None:
    text = loader(2)
    made = rollout(text, max_new_tokens=1, **options)
    run: set[str] = set()
    hooks = [m.register_forward_pre_hook(lambda *_, role=role: run.add(role)) for role, m in MODELS.items()]
    announced = []
    try:
        for step in range(16):
            made.at(Progress(step, 4, 4), training=True)
            announced.append(set(made.writers()))
            run.clear()
            made(list(text.epoch(step // 4))[step % 4])
            assert run <= announced[-1]
            # Of the batches seen ahead none may have been to be written.
            assert run == announced[-1] or "every" in options
    finally:
        for hook in hooks:
            hook.remove()
    assert (set() in announced) == ("probability" in options or options.get("policy") == "data")


def test_a_dry_run_leaves_no_trace() -> None:
    text = loader()
    made = rollout(text, training=False, replay={"size": 8}, probability=0.0)
    before = json.dumps(made.state_dict(), default=repr)
    batch = made(first(text))
    # Everything is tried before the first step, whatever the coin will say.
    assert batch["on_policy"].all()
    assert json.dumps(made.state_dict(), default=repr) == before
    assert made.report() == {}
    assert made.records() == []


def test_adaptive_probability_hears_the_held_out_loss() -> None:
    made = rollout(probability={"adaptive": {"start": 0.2, "margin": 0.5, "step": 0.3}})
    for loss, expected in ((2.0, 0.2), (2.4, 0.2), (2.6, 0.5), (2.0, 0.5), (4.0, 0.8), (9.0, 1.0)):
        made.heard({"held_out_loss": loss})
        assert made.sources.probability(Progress(0, 1, 1)) == pytest.approx(expected)
    made.heard({"accuracy": 0.5})


def test_the_last_turn_of_a_conversation_is_answered() -> None:
    learn = np.zeros(20, bool)
    learn[4:8] = learn[12:20] = True
    text = loader(1, [Encoded(np.arange(60, 80), learn, 4)])
    batch = rollout(text)(first(text))
    assert batch["inputs"]["input_ids"][0, :12].tolist() == list(range(60, 72))
    assert int(batch["mask"][0].nonzero()[0]) == 11


def test_running_text_needs_to_be_told_its_prompts() -> None:
    text = loader(2, [Encoded(np.arange(60, 80), np.ones(20, bool)) for _ in range(2)])
    with pytest.raises(DataError, match="set `prompt_tokens`"):
        rollout(text)(first(text))
    batch = rollout(text, prompt_tokens=6)(first(text))
    assert batch["mask"].int().argmax(-1).tolist() == [5, 5]
    # A probability of zero does not hide the mistake until the run is under way.
    with pytest.raises(DataError, match="set `prompt_tokens`"):
        rollout(text, probability=0.0, training=False)(first(text))


def test_what_cannot_be_written_is_refused() -> None:
    packed = loader(packed=True)
    with pytest.raises(DataError, match=r"data\.options\.packed to false"):
        rollout(packed)(first(packed))
    text = loader()
    with pytest.raises(DataError, match="'teacher_inputs' belongs to the completions of the data"):
        rollout(text)(Batch(first(text), teacher_inputs=first(text)["inputs"]))
    with pytest.raises(DataError, match="set task: causal-lm"):
        rollout(text)(Batch(inputs=torch.zeros(2, 3), index=torch.arange(2)))
    with pytest.raises(RecipeError, match="give one of them"):
        rollout(every=2, replay={"size": 4})
    with pytest.raises(RecipeError, match="set samples to 1"):
        rollout(greedy=True, samples=2)
    with pytest.raises(RecipeError, match="unknown key 'sise'"):
        rollout(replay={"sise": 4})
    for wrong in ({"from": 0.0, "to": 2.0}, {"adaptive": {"start": 2.0}}, {"adaptive": {}, "from": 1}):
        with pytest.raises(RecipeError):
            rollout(probability=wrong)


def test_a_role_without_a_model_cannot_write() -> None:
    made: Any = build_transform({"name": "rollout", "policy": "mixed"}, seed=0, num_classes=VOCABULARY)
    student = Observer("student", MODELS["student"], CausalLM())
    with pytest.raises(NeedsError, match="the role 'teacher' is to write rollouts, but it is function"):
        made.bind({"student": student, "teacher": lambda batch: None}, loader())
    with pytest.raises(NeedsError, match="runs the role 'teacher'"):
        made.bind({"student": student}, loader())
    foreign = FrozenTeacher("teacher", MODELS["teacher"], CausalLM(vocabulary=40))
    with pytest.raises(NeedsError, match="it has 40 tokens, the text 257"):
        made.bind({"student": student, "teacher": foreign}, loader())
    alone: Any = build_transform({"name": "rollout"}, seed=0, num_classes=VOCABULARY)
    alone.bind({"student": student, "teacher": lambda batch: None}, loader())
    assert set(alone.observers) == {"student"}


RECIPE: dict[str, Any] = {
    "task": "causal-lm",
    "data": {"name": "text", "options": {"tokenizer": "bytes", "context": 32}},
    "roles": {
        "teacher": {"model": {"name": "llama", "layers": 1, "width": 16, "heads": 2}},
        "student": {"model": {"name": "llama", "layers": 1, "width": 16, "heads": 2}},
    },
    "method": "gkd",
    "train": {"epochs": 1, "batch_size": 4},
}


def test_a_cached_teacher_is_refused(tmp_path: Path) -> None:
    from limbeck.recipes.build import build_stage
    from limbeck.recipes.cache import cache_recipe
    from limbeck.recipes.load import load_recipe

    (tmp_path / "text.txt").write_text("Words follow words. " * 30)
    given = {**RECIPE, "data": {**RECIPE["data"], "path": str(tmp_path / "text.txt")}}
    cache_recipe(given, out=tmp_path / "cache", codec="topk", k=4)
    roles = {**RECIPE["roles"], "teacher": {"cache": str(tmp_path / "cache")}}
    recipe = load_recipe({**given, "roles": roles, "transforms": [{"name": "rollout", "prompt_tokens": 4}]})
    with pytest.raises(RecipeError, match="use a live teacher"):
        build_stage(recipe, recipe.stages[0])


class PowerCutError(Exception):
    """The end of a process."""


class Torn(TextLoader):
    """Ends by an error before a step, as a power cut would."""

    ends_at = -1

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().epoch(epoch, start_step), start_step):
            yield batch
            # After the step on this batch; looking ahead is no step.
            if epoch * self.steps_per_epoch + step == self.ends_at and self.running:
                raise PowerCutError

    running = False

    def start(self, *args: Any) -> None:
        self.running = True


def run(path: Path, options: dict[str, Any], method: str, ends_at: int = -1) -> dict[str, Tensor]:
    """A run of two epochs of four steps, or its beginning; goes on from what is in the folder."""
    text = Torn(loader().source, batch_size=2, seed=3)
    text.ends_at = ends_at
    given = {"name": "rollout", "max_new_tokens": 6, "end_tokens": ENDS, "log": 3, **options}
    folder = RunFolder(path, {"a": 1})
    stage = Stage(
        method=build_method(method),
        roles={role: Role(model=copy.deepcopy(model)) for role, model in MODELS.items()},
        task=CausalLM(vocabulary=VOCABULARY),
        loader=text,
        settings=TrainSettings(epochs=2, lr=0.05, checkpoint_every=3, evaluate_every=1),
        transforms=[build_transform(given, seed=7, num_classes=VOCABULARY)],
        num_classes=VOCABULARY,
        # A loss that rises, so that an adaptive probability does.
        evaluate=lambda student: {"held_out_loss": 2.0 + stage.step},
        folder=folder,
        seed=5,
    )
    try:
        stage.run()
    finally:
        folder.close()
    return stage.learners["student"].state_dict()


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "replay": ("gkd", {"replay": {"size": 4, "age": 4}, "unit": "sequence", "probability": 0.8}),
    "ahead": ("on_policy_distillation", {"every": 3, "samples": 2}),
    "adaptive": ("distillm", {"probability": {"adaptive": {"start": 0.4, "step": 0.4}}}),
    "mixed": ("minillm", {"policy": "mixed"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_run_goes_on_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    method, options = KINDS[kind]
    whole = run(tmp_path / "whole", options, method)
    for ends_at in (1, 4, 6):
        with pytest.raises(PowerCutError):
            run(tmp_path / "torn", options, method, ends_at)
    torn = run(tmp_path / "torn", options, method)
    assert all(torch.equal(torn[name], tensor) for name, tensor in whole.items())
    for log in ("metrics.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "torn" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()


def test_a_run_tells_what_was_written(tmp_path: Path) -> None:
    run(tmp_path, {"samples": 2}, "gkd")
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    speeds = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    for record in metrics:
        told = record["rollouts"]
        assert told["from_generate"] == 1.0
        assert 1 <= told["length"] <= 6
        assert 0 <= told["ended"] <= 1
    assert [line["epoch"] for line in lines] == [0] * 3 + [1] * 3
    assert [line["draw"] for line in lines[:3]] == [0, 1, 0]
    source = loader().source
    for line in lines:
        sequence = source.sequences[line["sample"]]
        assert line["prompt"] == source.tokenizer.decode(sequence.ids[: sequence.prompt].tolist())
        assert line["logprob"] < 0
    assert all(speed["tokens_per_second"] > 0 for speed in speeds)


def test_the_student_of_a_run_is_left_as_training_made_it() -> None:
    text = loader()
    before = copy.deepcopy(MODELS["student"].state_dict())
    MODELS["student"].train()
    rollout(text, samples=2)(first(text))
    assert MODELS["student"].training
    MODELS["student"].eval()
    assert all(torch.equal(before[name], tensor) for name, tensor in MODELS["student"].state_dict().items())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gkd", {}),
        ("imitkd", {"probability": {"from": 0.0, "to": 1.0}}),
        ("distillm", {"probability": "adaptive", "replay": {"size": 8}}),
        ("on_policy_distillation", {"samples": 2}),
        ("minillm", {"policy": "mixed"}),
        ("speculative_kd", {"policy": "speculative"}),
        ("seq_kd", {"policy": "teacher"}),
        ("tsd_kd", {}),
    ],
)
def test_methods_train_on_what_is_written(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    trained = run(tmp_path, options, method)
    moved = [name for name, tensor in MODELS["student"].state_dict().items() if not torch.equal(tensor, trained[name])]
    assert moved
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trained.values())
