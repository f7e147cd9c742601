"""The page about runs of language models, from what they left in their folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from language.corpus import loader, source, tiny
from limbeck.evaluate import evaluate, of_teacher
from limbeck.report.arms import arms_of
from limbeck.report.figures.language import arm_curves, band_name, by_frequency, lengths
from limbeck.report.figures.palette import palette
from limbeck.report.held_out import by_data
from limbeck.report.language_sections import hacking_warnings, language_sections, verdict
from limbeck.report.run_page import report_runs
from limbeck.report.runs import read_run
from limbeck.report.sections import Figures, Table
from limbeck.tasks.causal_lm import CausalLM
from report.pages import HOSTILE, Page, read_page

NAMES = [
    "token_loss", "token_agreement", "token_calibration", {"name": "frequency_bands", "bands": 3},
    {"name": "writing", "samples": 2, "prompt": 3, "tokens": 4},
    {"name": "repetition", "samples": 4, "prompt": 3, "tokens": 6},
    {"name": "memorization", "samples": 2, "prompt": 3, "tokens": 4, "order": 2}, "size",
]  # fmt: skip
TURNED, FALLING = [3.0, 2.0, 1.8, 1.9, 2.2], [2.0, 1.0, 0.6, 0.4, 0.3]


@pytest.fixture(scope="module")
def results():
    judged = {
        seed: evaluate(
            tiny(seed, layers=1), loader=loader(count=10), task=CausalLM(vocabulary=257), teacher=tiny(9), names=NAMES,
            train=source(count=30),
        )
        for seed in (0, 1)
    }  # fmt: skip
    for found in judged.values():
        found["repetition"]["length"]["each"] = [1, 2, 5, 6]
        found["harness"] = {"score": 0.5, "tasks": {"mine": {"acc": 0.5, "acc_stderr": 0.1}}}
    return judged


def folder(path: Path, method: str, results: dict, golden=TURNED, proxy=FALLING) -> Path:
    path.mkdir()
    history = [
        {
            "stage": "train", "epoch": n, "step": n + 1, "lr": 0.1, "loss": 1 / (n + 1), "terms": {"kd": 1 / (n + 1)},
            "evaluation": {
                "held_out_loss": g, "held_out_kl": p,
                "held_out_blocks": [g + 0.01 * (k % 3) * (1 + 0.1 * n) for k in range(16)],
            },
        }
        for n, (g, p) in enumerate(zip(golden, proxy))
    ]  # fmt: skip
    roles = {"student": {"from": "teacher", "layers": 1}, "teacher": {"model": "llama"}}
    stage = {"name": "train", "task": "causal-lm", "data": {"name": "n"}, "roles": roles, "method": {"name": method}}
    (path / "recipe.yaml").write_text(yaml.safe_dump({"about": "", "seed": 0, "stages": [stage]}))
    (path / "results.json").write_text(json.dumps({**results, "method": method, "seed": 0, "split": "test"}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    return path


@pytest.fixture
def folders(tmp_path, results):
    return [
        folder(tmp_path / "kd", "word_kd", results[0]),
        folder(tmp_path / "sft", "sft", results[1], golden=sorted(TURNED, reverse=True)),
    ]


def test_the_page_shows_every_theme_and_is_whole(folders, tmp_path):
    page = Page(report_runs(folders, tmp_path / "report.html").read_text())
    for part in (
        "Results", "Frequent and rare tokens, calibration", "What is written", "Size and speed",
        "What is given away of the training text", "KL to the teacher by frequency", "Confidence and accuracy",
        "Length of what is written", "Truth against teacher", "Loss of word_kd", "Tasks of lm-evaluation-harness",
        "writes on, greedily", "Recipe of word_kd",
    ):  # fmt: skip
        assert part in page.text, part
    assert "nan" not in page.text.lower().split()
    assert "Accuracy while training" not in page.text


def test_what_different_runs_say_of_one_teacher_is_put_together(tmp_path, results):
    short = {name: results[1][name] for name in ("token_loss", "token_agreement")}
    for order in ("kd", "sft"), ("sft", "kd"):
        said = {"kd": results[0], "sft": short}
        paths = [folder(tmp_path / f"{name}-{order[0]}", "word_kd" if name == "kd" else "sft", said[name])
                 for name in order]  # fmt: skip
        (teacher,) = [arm for arm in arms_of([read_run(path) for path in paths]) if arm.kind == "teacher"]
        (told,) = teacher.results
        assert told == of_teacher(results[0])
        assert {"frequency_bands", "repetition", "size"} <= set(told)


def test_texts_of_other_data_are_not_compared(tmp_path, results):
    paths = [folder(tmp_path / name, method, results[n % 2]) for n, (name, method) in enumerate(
        [("a", "word_kd"), ("b", "sft"), ("c", "word_kd"), ("d", "sft")])]  # fmt: skip
    written = {"name": "generated", "options": {"of": {"name": "n"}, "greedy": True}}
    for path, data in zip(paths, [{"name": "n"}, written, {"name": "m"}, {"name": "m"}]):
        recipe = yaml.safe_load((path / "recipe.yaml").read_text())
        recipe["stages"][0]["data"] = data
        (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    groups = by_data([read_run(path) for path in paths])
    assert {label: [r.folder.name for r in group] for label, group in groups.items()} == {
        "n, test data": ["a", "b"], "m, test data": ["c", "d"],
    }  # fmt: skip
    page = read_page(report_runs(paths, tmp_path / "r.html").read_text())
    assert "a, b on n, test data; c, d on m, test data" in page.text
    assert "Frequent and rare tokens, calibration: m, test data" in page.text
    other = {**results[1], "token_loss": {**results[1]["token_loss"], "tokens": 7}}
    cut = folder(tmp_path / "e", "sft", other)
    assert len(by_data([read_run(path) for path in (paths[0], cut)])) == 2


def test_a_page_says_why_a_student_is_not_compared_with_its_teacher(tmp_path, results):
    model = tiny(0, layers=1)
    judged = evaluate(model, loader=loader(count=10), task=CausalLM(vocabulary=257), names=["token_agreement"])
    missing = {**{k: v for k, v in results[0].items() if k == "token_loss"}, **judged}
    text = read_page(
        report_runs([folder(tmp_path / "kd", "word_kd", missing)], tmp_path / "r.html").read_text()
    ).text  # fmt: skip
    assert "Token_agreement of word_kd (kd): no teacher with the student's tokens that can be asked" in text


def test_an_arm_that_hacks_its_teacher_is_marked_and_named(folders):
    arms = arms_of([read_run(f) for f in folders])
    curves = arm_curves(arms)
    assert {name: pair[1].hacking for name, pair in curves.items()} == {"word_kd": True, "SFT": False}
    said = hacking_warnings(arms)
    assert said is not None
    assert len(said.paragraphs) == 1
    assert said.paragraphs[0].startswith("word_kd: held-out loss was lowest after epoch 3")
    (course,) = [s for s in language_sections(arms) if isinstance(s, Figures) and s.title == "The course of training"]
    assert course.figures[0].alt.endswith("word_kd turned.")
    assert hacking_warnings([arm for arm in arms if arm.name == "SFT"]) is None


def test_what_was_not_measured_is_left_out(tmp_path, results):
    bare = {"token_loss": results[0]["token_loss"]}
    arms = arms_of([read_run(folder(tmp_path / "bare", "word_kd", bare, [3.0], [1.0]))])
    sections = language_sections(arms)
    assert [s.title for s in sections if isinstance(s, Table)] == ["Results"]
    assert by_frequency(arms, palette(arms)) is None
    assert lengths(arms, palette(arms)) is None
    assert verdict(arms).startswith("word_kd has a held-out loss of")


def test_hostile_texts_stay_texts(tmp_path, results):
    samples = [{"prompt": HOSTILE, "truth": HOSTILE, "student": HOSTILE, "teacher": "   "}]
    hostile = {**results[0], "writing": {"samples": samples, "distinct": 1.0}}
    html = report_runs([folder(tmp_path / "kd", "word_kd", hostile)], tmp_path / "r.html").read_text()
    page = Page(html)
    assert not any("alert" in script for script in page.scripts)
    assert "(nothing but white space)" in page.text


def test_bands_are_named_shortly():
    assert band_name([0.5, 1234.0]) == "0.5–1.2k"
    assert band_name([7.0, 7.0]) == "7"
    assert band_name([0.0, 0.0]) == "never"
