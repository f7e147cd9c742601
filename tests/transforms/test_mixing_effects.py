"""How much mixing a teacher's student bears, on real digits."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe

KD = {"name": "kd", "temperature": 4.0, "weights": {"ce": 0.1, "kd": 0.9}}


def run(out: Path, epochs: int, **rest: Any) -> float:
    train = {"epochs": epochs, "batch_size": 64, "optimizer": "adam", "lr": 0.002, "evaluate_every": 0}
    done = run_recipe(load_recipe({"train": train, "evaluate": ["accuracy"], **rest}), out=out)
    return float(done.results["accuracy"]["top1"])


def test_a_part_of_every_batch_mixed_costs_less_than_all_of_it(tmp_path: Path) -> None:
    data, large = {"name": "digits", "augment": []}, {"name": "mlp", "hidden": [128]}
    assert run(tmp_path / "teacher", 12, data=data, roles={"student": {"model": large}}, method="none") > 0.9
    roles = {
        "teacher": {"model": large, "weights": str(tmp_path / "teacher" / "student.safetensors")},
        "student": {"model": {"name": "mlp", "hidden": [16, 16]}},
    }
    found = {
        unmixed: mean(
            run(
                tmp_path / f"{unmixed}-{seed}", 60, data={**data, "limit": {"train": 300}}, roles=roles, method=KD,
                transforms=[{"name": "partial_mixup", "unmixed": unmixed}], seed=seed,
            )
            for seed in (0, 1)
        )
        for unmixed in (0.0, 0.9)
    }  # fmt: skip
    assert found[0.9] > found[0.0] + 0.01
