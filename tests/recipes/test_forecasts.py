"""Forecasts of text that models write, before training and during it, against what runs then write."""

from __future__ import annotations

import json
import re

import pytest

from limbeck.recipes.build import build_stage
from limbeck.recipes.check import check_recipe
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.recipes.writing_forecast import key_value_bytes, rollout_forecast, tried_rollouts
from limbeck.students.language import build_language_model

SHAPE = {"name": "llama", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2}


def written(folder, **options):
    (folder / "novel.txt").write_text("".join(f"{n} Sir Walter Elliot, of Kellynch Hall. " for n in range(60)))
    return {
        "task": "causal-lm",
        "data": {
            "name": "generated",
            "limit": {"train": 28, "test": 4},
            "options": {
                "of": {"name": "text", "path": str(folder / "novel.txt")}, "tokenizer": "bytes", "context": 40,
                "prompt_tokens": 16, "max_new_tokens": 12, "folder": str(folder / "texts"), "test": 0.25, **options,
            },
        },
        "roles": {"teacher": {"model": SHAPE}, "student": {"from": "teacher", "layers": 1}},
        "method": "seq_kd",
        "train": {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 0.003},
        "evaluate": ["token_loss"],
    }  # fmt: skip


def rows_of(recipe):
    checked = check_recipe(recipe)
    (rows,) = checked.tables.values()
    return dict(rows)


def number(text, pattern):
    return int(re.search(pattern, text).group(1).replace(",", ""))


def test_the_forecast_of_generated_text_is_that_of_all_of_it_and_not_of_the_trial(tmp_path):
    recipe = written(tmp_path)
    told = rows_of(recipe)
    loaded = load_recipe(recipe)
    data = build_stage(loaded, loaded.stages[0], folder=None).data
    assert data.to_write is not None
    assert (data.to_write.prompts, data.to_write.tried) == (28, 8)
    run_recipe(recipe, out=tmp_path / "run")
    (path,) = (tmp_path / "texts").glob("*.jsonl")
    lines = path.read_text().splitlines()
    assert number(told["samples"], r"about (\d+) when all is written") == pytest.approx(len(lines), rel=0.2)
    steps = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert number(told["steps"], r"^(\d+) of") == pytest.approx(steps, rel=0.2)
    parts = [
        json.loads(line) for f in (tmp_path / "texts").glob("*/0*.jsonl") for line in f.read_text().splitlines()[1:]
    ]
    tokens = sum(completion["tokens"] for group in parts for completion in group)
    assert number(told["text by teacher"], r"about ([\d,]+) tokens after 28 prompts") == pytest.approx(tokens, rel=0.3)
    assert "of weights, keys and values" in told["text by teacher"]
    again = rows_of(recipe)
    assert "text by teacher" not in again
    assert number(again["steps"], r"^(\d+) of") == steps


def test_both_writers_of_pairs_are_forecast(tmp_path):
    told = rows_of(written(tmp_path, chosen="teacher", rejected="student", temperature=1.5) | {"method": "redi"})
    assert {"text by teacher", "text by student"} <= told.keys()


def on_policy(**rollout):
    return {
        "task": "causal-lm",
        "data": {"name": "arithmetic", "options": {"tokenizer": "bytes", "context": 12, "test": 0.1, "count": 40}},
        "roles": {"teacher": {"model": SHAPE}, "student": {"model": SHAPE}},
        "method": "gkd",
        "transforms": [{"name": "rollout", "max_new_tokens": 5, **rollout}],
        "train": {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 0.001},
        "evaluate": ["token_loss"],
    }


@pytest.mark.parametrize(
    ("rollout", "share"),
    [
        ({}, 1.0),
        ({"probability": 0.25, "unit": "sequence"}, 0.25),
        ({"probability": {"from": 0.0, "to": 1.0}}, 0.5),
        ({"replay": {"size": 8, "age": 20, "share": "constant"}}, 0.5),
    ],
)
def test_rollouts_are_forecast_by_how_many_will_be_written(rollout, share):
    loaded = load_recipe(on_policy(**rollout))
    stage = build_stage(loaded, loaded.stages[0]).stage
    ((tokens, seconds),) = tried = tried_rollouts(stage)
    found = rollout_forecast(stage, tried)
    assert found is not None
    assert found.share == pytest.approx(share, abs=0.07)  # a ramp is taken at whole steps
    assert 0 < tokens <= 8 * 5
    assert found.tokens == round(tokens * found.share * stage.total_steps)
    assert found.speed == tokens / seconds
    model = stage.learners["student"]
    assert found.memory == key_value_bytes(model, rows=8, tokens=13) == 2 * 2 * 2 * 8 * 8 * 13 * 4
    assert stage.step == 0


def test_tokens_of_a_run_are_those_that_were_forecast(tmp_path):
    recipe = on_policy()
    told = rows_of(recipe)
    run_recipe(recipe, out=tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = len(build_stage(load_recipe(recipe), load_recipe(recipe).stages[0]).data.train)
    tokens = sum(record["rollouts"]["length"] * rows for record in records)
    assert number(told["rollouts"], r"about ([\d,]+) tokens") == pytest.approx(tokens, rel=0.25)
    assert "100% of the rows" in told["rollouts"]


def test_an_adaptive_probability_is_known_at_its_beginning_alone():
    told = rows_of(on_policy(probability="adaptive"))
    assert told["rollouts"].startswith("at least 0 tokens")


def test_data_that_nobody_writes_has_no_such_forecast():
    plain = on_policy()
    plain["transforms"] = []
    assert not {"rollouts", "text by teacher"} & rows_of(plain).keys()


def test_keys_and_values_of_a_model_of_no_known_shape_are_not_guessed():
    import torch

    assert key_value_bytes(torch.nn.Linear(2, 2), rows=3, tokens=4) == 0
    grown = build_language_model({**SHAPE, "layers": 3}, vocabulary=257, context=12)
    assert key_value_bytes(grown, rows=1, tokens=1) == 3 * 2 * 2 * 8 * 4
