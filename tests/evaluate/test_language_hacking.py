"""The detector of teacher hacking in real runs: what it says of curves, and where it says it."""

from __future__ import annotations

import json

import pytest
import torch

from language.corpus import loader, tiny
from limbeck.engine.reporter import Reporter
from limbeck.evaluate import Subject, evaluations
from limbeck.evaluate.teacher_hacking import Curves, HackingWatch, curves_of, epoch_numbers, in_blocks, judge, warning
from limbeck.recipes.run import evaluate_run, run_recipe
from limbeck.schedules import Progress
from limbeck.tasks.causal_lm import CausalLM


def records(golden, proxy=None, *, spread=0.01, blocks=32, stage="train"):
    """Epochs whose golden number is the mean of blocks that vary."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for epoch, value in enumerate(golden):
        noise = torch.randn(blocks, generator=generator, dtype=torch.float64) * spread
        parts = (value + noise - noise.mean()).tolist()
        evaluation = {"held_out_loss": value, "held_out_blocks": parts}
        if proxy is not None:
            evaluation["held_out_kl"] = proxy[epoch]
        made.append({"stage": stage, "epoch": epoch, "loss": 3.0 / (epoch + 1), "evaluation": evaluation})
    return made


TURNED, FALLING = [3.0, 2.0, 1.8, 1.9, 2.2], [2.0, 1.0, 0.6, 0.4, 0.3]


def test_a_turn_beyond_chance_is_hacking_and_one_within_it_is_not():
    sure = judge(curves_of(records(TURNED, FALLING)))
    assert sure.hacking
    assert sure.turn.best == 2
    assert sure.p < 1e-6
    noisy = judge(curves_of(records(TURNED, FALLING, spread=3.0)))
    assert noisy.turn.hacking
    assert not noisy.hacking
    assert not judge(curves_of(records(sorted(TURNED, reverse=True), FALLING))).hacking
    assert not judge(curves_of(records(TURNED, TURNED))).hacking


def test_the_probability_is_that_of_a_paired_test_after_bonferroni():
    from scipy import stats

    history = records(TURNED, FALLING, spread=0.5)
    best, last = (history[n]["evaluation"]["held_out_blocks"] for n in (2, 4))
    expected = 4 * stats.ttest_rel(last, best, alternative="greater").pvalue
    assert judge(curves_of(history)).p == pytest.approx(min(expected, 1.0), rel=1e-6)


def test_curves_fall_back_on_the_training_loss_and_on_unknown_significance():
    curves = curves_of(records(TURNED, blocks=4))
    assert curves.proxy_name == "training loss"
    assert curves.proxy == pytest.approx([3.0 / n for n in range(1, 6)])
    assert curves.blocks == ()
    judged = judge(curves)
    assert judged.hacking
    assert judged.p is None
    assert "teacher_hacking" in warning(curves, judged)
    assert curves_of(records([1.0])) is None
    assert curves_of([]) is None
    # Only the last stage: an earlier one trained something else.
    both = records(TURNED, stage="first") + records([1.0, 0.9], stage="second")
    assert curves_of(both).golden == (1.0, 0.9)


def test_numbers_that_are_not_finite_are_no_hacking():
    assert not judge(Curves((1, 2), (1.0, float("inf")), (1.0, float("nan")))).hacking


def test_blocks_are_means_over_neighbouring_rows():
    rows = torch.arange(200).repeat_interleave(3)
    values = rows.float()
    found = in_blocks(values, rows)
    assert len(found) == 64
    assert found == sorted(found)
    assert sum(found) / 64 == pytest.approx(99.5, abs=0.5)
    assert in_blocks(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([5, 5, 9])) == [1.5, 6.0]


def test_an_epochs_numbers_are_those_of_the_evaluations():
    student, teacher, held, task = tiny(0), tiny(1), loader(count=12), CausalLM(vocabulary=257)
    found = epoch_numbers(student, held, task, teacher)
    subject = Subject(student, held, task, teacher=teacher)
    assert found["held_out_loss"] == pytest.approx(evaluations["token_loss"].part(subject)["loss"])
    agreement = evaluations["token_agreement"].part(subject)
    assert found["held_out_kl"] == pytest.approx(agreement["kl_teacher_student"])
    assert len(found["held_out_blocks"]) == 12
    assert "held_out_kl" not in epoch_numbers(student, held, task)


class Notes(Reporter):
    def __init__(self):
        self.said, self.heard = [], []

    def note(self, message):
        self.said.append(message)

    def epoch_done(self, record):
        self.heard.append(record["epoch"])


def test_the_watch_warns_once_when_the_turn_is_sure_and_goes_on_with_what_was_logged():
    notes, history = Notes(), records([*TURNED, 2.3], [*FALLING, 0.2])
    watch = HackingWatch(notes, lambda: history[:2])
    watch.stage_started("train", Progress(0, 1, 6))
    for record in history[2:]:
        watch.epoch_done(record)
    assert notes.heard == [2, 3, 4, 5]
    (said,) = notes.said
    assert said.startswith("warning: held-out loss was lowest after epoch 3")
    assert "teacher hacking" in said


def test_a_run_logs_the_curves_and_judges_itself(tmp_path):
    shape = {"name": "llama", "layers": 2, "width": 16, "heads": 2}
    plain = {
        "task": "causal-lm",
        "data": {
            "name": "persuasion",
            "limit": {"train": 8, "test": 8},
            "options": {"tokenizer": "bytes", "context": 16},
        },
        "roles": {"teacher": {"model": shape}, "student": {"model": {**shape, "layers": 1}}},
        "method": {"name": "word_kd", "kd_ratio": 1.0},
        "train": {"epochs": 3, "batch_size": 8, "optimizer": "adamw", "lr": 0.01},
        "evaluate": ["token_loss", "token_agreement", "teacher_hacking"],
    }  # fmt: skip
    finished = run_recipe(plain, out=tmp_path / "run", reporter=Notes())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all({"held_out_loss", "held_out_kl", "held_out_blocks"} <= set(line["evaluation"]) for line in lines)
    found = finished.results["teacher_hacking"]
    assert found["proxy"] == "KL to the teacher on held-out text"
    last = lines[-1]["evaluation"]
    assert last["held_out_kl"] == pytest.approx(finished.results["token_agreement"]["kl_teacher_student"], rel=1e-5)
    lowest = min(line["evaluation"]["held_out_loss"] for line in lines)
    assert found["rise"] == pytest.approx(last["held_out_loss"] / lowest - 1)
    assert evaluate_run(tmp_path / "run", ["teacher_hacking"]).results["teacher_hacking"] == found
    short = evaluations["teacher_hacking"].part(Subject(torch.nn.Identity(), [], CausalLM()))
    assert "evaluate_every" in short["note"]
