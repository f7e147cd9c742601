from __future__ import annotations

import json
import math

import pytest
import torch

from limbeck.errors import DataError, NeedsError, RecipeError, RewardError
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe

SHAPE = {"name": "llama", "layers": 1, "width": 32, "heads": 4}
ROLLOUT = {"name": "rollout", "samples": 4, "max_new_tokens": 3}


def recipe(*, method="kdrl", rollout=None, transforms=None, **sections):
    return {
        "task": "causal-lm",
        "data": {"name": "arithmetic", "options": {"tokenizer": "bytes", "context": 16, "test": 0.1, "count": 20}},
        "roles": {"teacher": {"model": SHAPE}, "student": {"model": SHAPE}},
        "method": method if isinstance(method, dict) else {"name": method},
        "transforms": transforms or [{**ROLLOUT, "reward": "maths", **(rollout or {})}],
        "train": {"epochs": 1, "batch_size": 6, "optimizer": "adamw", "lr": 0.001},
        **sections,
    }


def stage(trust=False, **options):
    loaded = load_recipe(recipe(**options))
    return build_stage(loaded, loaded.stages[0], trust=trust).stage


def few(prompt, completion, record):
    """More for fewer characters: every completion has a reward that a test can compute again."""
    return -float(len(completion)) + (record["prompt"] == prompt)


def failing(prompt, completion, record):
    if record["answer"] == "7":
        raise ZeroDivisionError("no sevens")
    return 1.0


def always_failing(prompt, completion, record):
    raise ZeroDivisionError("nothing is worth anything")


def test_what_is_written_is_judged_with_its_own_record():
    built = stage(trust=True, rollout={"reward": f"python:{__name__}:few"})
    batch = built.first_batch()
    source = built.loader.source
    groups: dict[int, list[float]] = {}
    for n in range(batch.size):
        written = batch["labels"][n][batch["mask"][n]].tolist()
        # The prompt that the reward sees is that of the record: one more.
        worth = 1.0 - len(source.tokenizer.decode(written))
        assert batch["reward"][n].item() == worth
        groups.setdefault(int(batch["index"][n]), []).append(worth)
    assert all(len(rewards) == 4 for rewards in groups.values())
    for n in range(batch.size):
        rewards = torch.tensor(groups[int(batch["index"][n])])
        expected = (batch["reward"][n] - rewards.mean()) / (rewards.std() + 1e-6)
        torch.testing.assert_close(batch["advantage"][n], expected)
        assert batch["group_best"][n] == rewards.max()
    assert torch.equal(batch["group"][:4], batch["group"][:1].expand(4))


def test_a_reward_that_fails_says_where_and_nothing_is_lost(tmp_path):
    bad = recipe(rollout={"reward": f"python:{__name__}:failing"})
    with pytest.raises(RewardError, match=r"ZeroDivisionError: no sevens. Sample \d+, completion"):
        run_recipe(bad, out=tmp_path / "run", trust=True)
    with pytest.warns(UserWarning, match="count as 0"):
        stage(trust=True, rollout={"reward": f"python:{__name__}:always_failing", "on_error": "zero"})


counted = {"calls": 0, "until": math.inf}


def breaking(prompt, completion, record):
    counted["calls"] += 1
    if counted["calls"] > counted["until"]:
        raise TimeoutError("the judge is away")
    return float(len(completion))


def test_a_run_whose_reward_failed_goes_on_to_the_same_end(tmp_path):
    sections = {"train": {"epochs": 2, "batch_size": 6, "optimizer": "adamw", "lr": 0.001, "checkpoint_every": 1}}
    same = recipe(rollout={"reward": f"python:{__name__}:breaking"}, **sections)
    counted.update(calls=0, until=math.inf)
    run_recipe(same, out=tmp_path / "whole", trust=True)
    counted.update(calls=0, until=60)
    with pytest.raises(RewardError, match="the judge is away"):
        run_recipe(same, out=tmp_path / "broken", trust=True)
    counted.update(until=math.inf)
    run_recipe(same, out=tmp_path / "broken", trust=True)
    lines = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "broken")]
    whole, broken = ([json.loads(line)["terms"] for line in part] for part in lines)
    assert whole == broken


def test_rows_of_the_data_are_judged_too_and_have_no_advantage():
    half = {"probability": 0.5, "unit": "sequence"}
    built = stage(method={"name": "word_kd"}, rollout=half)
    transform = built.transforms[0]
    transform.at(built.progress, training=True)
    seen = 0
    for batch in built.loader.epoch(0):
        changed = transform(batch)
        given = ~changed["on_policy"]
        seen += int(given.sum())
        assert (changed["reward"][given] == 1).all()
        assert (changed["advantage"][given] == 0).all()
    assert seen


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rollout": {"samples": 1}}, RecipeError, "advantage: none"),
        ({"rollout": {"reward": "maht"}}, RecipeError, "maths"),
        ({"rollout": {"reward": {"name": "maths", "column": "anser"}}}, DataError, "Did you mean 'answer'"),
        ({"rollout": {"reward": f"python:{__name__}:few"}}, RecipeError, "--trust"),
        ({"rollout": {"reward": None}}, NeedsError, "'advantage' in the batch.*rollout.*option `reward`"),
        ({"method": "kdrl", "transforms": [{**ROLLOUT, "trust": True}]}, RecipeError, "set by the run"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_build(options, error, said):
    with pytest.raises(error, match=said):
        stage(**options)


def test_a_single_completion_may_have_its_reward_as_advantage():
    batch = stage(rollout={"samples": 1, "advantage": "none"}).first_batch()
    assert torch.equal(batch["advantage"], batch["reward"])


def test_what_was_written_and_its_reward_are_in_the_run_folder(tmp_path):
    run_recipe(recipe(), out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()[0])
    assert record["reward"] in (0.0, 1.0)
    assert record["prompt"].endswith("=")
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "reward" in json.dumps(line)
