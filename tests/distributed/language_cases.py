"""Decoders on text of ragged lengths, in one process or two: ``torchrun ... language_cases.py FOLDER``."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from limbeck.engine import distributed, sharding
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe

SHAPE = {"name": "llama", "layers": 2, "width": 16, "heads": 2}
ON_POLICY = [{"name": "rollout", "prompt_tokens": 6, "max_new_tokens": 5, "temperature": 1.0}]
SELDOM = {"probability": 0.2, "unit": "sequence"}
CASES: dict[str, dict[str, Any]] = {
    "sft": {"method": {"name": "sft"}},
    "sft sequence_mean": {"method": {"name": "sft", "average": "sequence_mean"}},
    "word_kd": {"method": {"name": "word_kd", "kd_ratio": 0.7}},
    "word_kd sequence_mean": {"method": {"name": "word_kd", "average": "sequence_mean"}},
    "distillm": {"method": {"name": "distillm"}},
    "taid": {"method": {"name": "taid", "momentum": 0.5, "step_size": 0.2}},
    "lora": {"method": {"name": "word_kd"}, "student": {"lora": {"rank": 2}}},
    "pruned": {"method": {"name": "word_kd"}, "student": {"heads": 1, "inner": 24, "scored": "loss_increase"}},
    "on policy": {"method": {"name": "gkd"}, "transforms": ON_POLICY},
    # Now and then a process has nothing to write while the other has.
    "seldom on policy": {"method": {"name": "gkd"}, "transforms": [{**ON_POLICY[0], **SELDOM}]},
}
SHARDED = ("sft", "word_kd sequence_mean", "lora", "on policy", "seldom on policy")
SHARED: dict[str, dict[str, Any]] = {
    **{f"{name} ddp": {} for name in CASES},
    **{f"{name} fsdp": {"sharding": "fsdp"} for name in SHARDED},
    "word_kd micro": {"micro_batches": 2},
    "word_kd sequence_mean micro": {"micro_batches": 2},
}
"""What two processes train: a case, and how they share it."""


def write_text(folder: Path) -> None:
    """Prompts and completions of very different lengths, so that processes have different numbers of tokens."""
    text = "it is a truth universally acknowledged that a single man must be in want of a wife"
    words = text.split()
    lines = [
        json.dumps({"prompt": " ".join(words[n % 7 :][:4]), "completion": " ".join(words[: 1 + 5 * (n % 3)])})
        for n in range(14)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines))


def recipe(name: str, folder: Path, **train: Any) -> dict[str, Any]:
    """A recipe of two uneven batches."""
    case = CASES[name]
    settings = {
        "epochs": 1, "batch_size": 8, "optimizer": "sgd", "momentum": 0, "lr": 0.5, "weight_decay": 0.0,
        "schedule": "constant", "evaluate_every": 0, **train,
    }  # fmt: skip
    return {
        "task": "causal-lm",
        "data": {
            "name": "jsonl",
            "path": str(folder / "text.jsonl"),
            "options": {"tokenizer": "bytes", "context": 96, "test": 0.1},
        },
        "roles": {"teacher": {"model": SHAPE}, "student": {"from": "teacher", "layers": 1, **case.get("student", {})}},
        "method": case["method"],
        "transforms": case.get("transforms", []),
        "train": settings,
        "evaluate": ["size"],
    }


def trained(name: str, folder: Path, **train: Any) -> dict[str, torch.Tensor]:
    """The student after an epoch, in float64; every block is a group of its own when sharded."""
    loaded = load_recipe(recipe(name, folder, **train))
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(sharding, "_GROUP_SIZE", 1):
            built = build_stage(loaded, loaded.stages[0])
            built.stage.run()
    finally:
        torch.set_default_dtype(torch.float32)
    return {key: value.detach().clone() for key, value in built.stage.student().state_dict().items()}


def main(folder: Path) -> None:
    """Trains every shared case, and runs a whole recipe."""
    torch.set_num_threads(1)
    with distributed.session():
        for case, train in SHARED.items():
            try:
                found = trained(case.rpartition(" ")[0], folder, **train)
            except Exception:
                print(case, traceback.format_exc(), file=sys.stderr, flush=True)
                raise
            kept = {key: value.contiguous() for key, value in found.items()}
            save_file({k: v.clone() for k, v in kept.items()}, folder / f"{case}.{distributed.rank()}.safetensors")
        plain = recipe("lora", folder, sharding="fsdp")
        plain["roles"]["student"]["lora"]["merge"] = True
        run_recipe(plain, out=folder / "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
