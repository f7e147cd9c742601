"""The teacher-hacking lab, small: its samples, its distances, what a killed run goes on with, and its page."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from language.corpus import source, tiny, tokenizer
from limbeck.engine.reporter import Reporter
from limbeck.errors import DataError, RecipeError
from limbeck.evaluate.teacher_hacking import GOLDEN, PROXY
from limbeck.recipes.hacking import run_lab
from limbeck.recipes.hacking.distances import Distances, Reference
from limbeck.recipes.hacking.samples import SampledText, prompts_of
from limbeck.recipes.hacking.spec import SampleSource
from limbeck.recipes.load import read_mapping
from limbeck.report.hacking import report_lab, show_lab
from limbeck.tasks.causal_lm import CausalLM

SHAPE = {"name": "llama", "layers": 1, "width": 16, "heads": 2}
TRAIN = {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.01}
LAB = {
    "hacking": {
        "data": {
            "name": "persuasion",
            "limit": {"train": 24, "test": 24},
            "options": {"tokenizer": "bytes", "context": 24},
        },
        "oracle": {"model": SHAPE, "train": TRAIN},
        "teacher": {"model": SHAPE, "sequences": 16, "train": TRAIN},
        "student": {"model": SHAPE, "sequences": 8, "train": TRAIN},
        "prompt": 6,
        "completion": 6,
        "prompts": 8,
        "held": 16,
        "train": {**TRAIN, "epochs": 3},
        "sources": {"offline": {}, "online student": {"student": 1.0, "fresh": 1.0}},
    }
}
PROMPTS = [list(range(n, n + 4)) for n in range(20)]


def sampled(**options) -> SampledText:
    return SampledText(PROMPTS, tiny(0), tiny(1), tokenizer(), SampleSource(**options), tokens=5, batch_size=6, seed=3)


def sequences(loader: SampledText, epoch: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """What stands after each prompt in an epoch."""
    found = {}
    for batch in loader.epoch(epoch):
        for ids, labels, mask in zip(batch["inputs"]["input_ids"], batch["labels"], batch["mask"]):
            found[tuple(ids[:4].tolist())] = tuple(labels[mask].tolist())
    return found


def test_offline_sequences_stay_and_fresh_ones_are_written_anew():
    offline, online = sampled(), sampled(fresh=1.0)
    assert sequences(offline, 0) == sequences(offline, 1)
    first, second = sequences(online, 0), sequences(online, 1)
    assert first == sequences(offline, 0)
    assert sum(first[p] != second[p] for p in first) > 15
    partly = sampled(fresh=0.3)
    before, after = sequences(partly, 0), sequences(partly, 1)
    assert 1 <= sum(before[p] != after[p] for p in before) <= 12
    assert partly.steps_per_epoch == 4


def test_who_writes_is_a_matter_of_the_students_share():
    teacher, student, mixed = sampled(), sampled(student=1.0), sampled(student=0.5)
    by = {name: sequences(loader, 0) for name, loader in (("t", teacher), ("s", student), ("m", mixed))}
    theirs = sum(by["m"][p] == by["t"][p] for p in by["m"])
    ours = sum(by["m"][p] == by["s"][p] for p in by["m"])
    assert theirs > 3
    assert ours > 3
    assert all(by["m"][p] in (by["t"][p], by["s"][p]) for p in by["m"])


def test_a_state_brings_back_the_sequences_of_a_student_that_is_gone():
    loader = sampled(student=1.0, fresh=0.5)
    sequences(loader, 0)
    then = sequences(loader, 1)
    other = SampledText(
        PROMPTS, tiny(0), tiny(9), tokenizer(), SampleSource(student=1.0, fresh=0.5), tokens=5, batch_size=6, seed=3
    )
    other.load_state_dict(loader.state_dict())
    assert sequences(other, 1) == then


def test_prompts_come_from_the_text_and_lack_the_end_token():
    text = source(count=10)
    found = prompts_of(text, 3, 8, seed=0, purpose="p")
    pieces = {tuple(s.ids[n : n + 3].tolist()) for s in text.sequences for n in range(0, len(s) - 2, 3)}
    assert all(tuple(p) in pieces for p in found)
    with pytest.raises(DataError, match="prompts of 3 tokens"):
        prompts_of(text, 3, 1000, seed=0, purpose="p")


def test_distances_are_zero_to_oneself_and_those_of_the_full_distributions_else():
    oracle, teacher, task = tiny(0), tiny(1), CausalLM(vocabulary=257)
    references = [
        Reference(model, PROMPTS, tokenizer(), task, tokens=5, seed=0, name=name)
        for name, model in (("oracle", oracle), ("teacher", teacher))
    ]
    distances = Distances(*references)
    at_oracle, at_teacher = distances(oracle), distances(teacher)
    assert at_oracle[GOLDEN] == pytest.approx(0.0, abs=1e-5)
    assert at_teacher[PROXY] == pytest.approx(0.0, abs=1e-5)
    assert at_teacher[GOLDEN] == pytest.approx(references[0].divergences(teacher).mean().item())
    assert at_teacher["golden_per_token"] == pytest.approx(at_teacher[GOLDEN] * len(PROMPTS) / references[0].tokens)
    # The mean over many drawn sequences of their log-ratio estimates the same divergence.
    from limbeck.generation import Draws
    from limbeck.recipes.hacking.samples import written

    ratios = []
    for draw in range(40):
        for s in written(oracle, PROMPTS, tokenizer(), tokens=5, draws=Draws(0, "mc", draw, range(len(PROMPTS)))):
            ids = torch.from_numpy(s.ids).unsqueeze(0)
            with torch.no_grad():
                p, q = (m(input_ids=ids).logits[0, :-1, :257].log_softmax(-1) for m in (oracle, teacher))
            at = (torch.arange(3, len(s.ids) - 1), ids[0, 4:])
            ratios.append(float((p[at] - q[at]).sum()))
    error = np.std(ratios) / len(ratios) ** 0.5
    means = [
        Reference(oracle, PROMPTS, tokenizer(), task, tokens=5, seed=s, name="oracle")
        .divergences(teacher)
        .mean()
        .item()
        for s in range(10)
    ]
    assert abs(np.mean(means) - np.mean(ratios)) < 4 * (error + np.std(means) / 10**0.5)


def test_a_lab_runs_is_taken_up_again_and_ends_in_a_page(tmp_path, capsys):
    finished = run_lab(LAB, name="tiny", out=tmp_path / "lab", reporter=Reporter())
    assert list(finished.curves) == ["offline", "online student"]
    for curve in finished.curves.values():
        assert curve.epochs == (0, 1, 2, 3)
        assert curve.golden[0] == pytest.approx(finished.start)
        assert all(v >= 0 for v in (*curve.proxy, *curve.golden))
        assert curve.hacking is False or curve.rise > 0.01
    assert json.loads((tmp_path / "lab" / "lab.json").read_text())["teacher_distance"] == finished.teacher_distance
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "lab").glob("*.safetensors")}
    again = run_lab(LAB, name="tiny", out=tmp_path / "lab", reporter=Reporter())
    assert again.curves == finished.curves
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    show_lab(finished)
    assert "ends nearest to the oracle" in capsys.readouterr().out
    page = report_lab(finished).read_text()
    assert "Truth against teacher" in page
    assert "online student" in page


def test_the_shipped_lab_is_one_and_mistakes_in_it_are_named(tmp_path):
    from limbeck.hyperparameters import validated_model
    from limbeck.recipes.hacking import Lab, holds_lab

    data = read_mapping("lm/teacher_hacking")
    assert holds_lab(data)
    assert validated_model(Lab, data["hacking"], "lab").sources["offline"].fresh == 0.0
    with pytest.raises(RecipeError, match="studnt"):
        run_lab({"hacking": {**LAB["hacking"], "studnt": {}}}, name="tiny", out=tmp_path)
