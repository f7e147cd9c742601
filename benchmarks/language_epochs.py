"""What a step costs whose teacher is read from a cache of sequences, against a step of fine-tuning alone.

All arms are whole stages on the same rows of a novel: fine-tuning (``sft``), KD from a cache of each codec, and KD from
the live teacher. A step counts from the making of its batch on.

    python benchmarks/language_epochs.py [--quick] [--steps 40] [--tokenizer smollm2-135m-instruct]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from turns import PacedLoader, in_turns, machine, milliseconds, ratio, settle
from workload import Loop

from limbeck.recipes.build import build_stage
from limbeck.recipes.cache import cache_recipe
from limbeck.recipes.load import load_recipe

BAR, BATCH = 1.10, 8
CODECS: dict[str, dict[str, Any]] = {
    "cache, topk of 32": {"codec": "topk", "k": 32},
    "cache, 50 draws": {"codec": "sampled", "draws": 50},
    "cache, hidden": {"codec": "hidden"},
}
ALONE, LIVE = "fine-tuning alone", "live teacher"


def recipe(arguments: argparse.Namespace, method: dict[str, Any], teacher: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the recipe of an arm."""
    small = arguments.quick
    model = {"name": "llama", "heads": 4}
    roles: dict[str, Any] = {"student": {"model": {**model, "layers": 2, "width": 32 if small else 128}}}
    if teacher is not None:
        roles["teacher"] = teacher
    return {
        "task": "causal-lm",
        "data": {
            "name": "persuasion",
            "limit": {"train": BATCH * arguments.steps, "test": BATCH},
            "options": {"tokenizer": arguments.tokenizer, "context": 32 if small else 256},
        },
        "roles": roles,
        "method": method,
        "train": {"epochs": 1, "batch_size": BATCH, "optimizer": "adamw", "lr": 1e-4, "evaluate_every": 0},
    }


def loop(plain: dict[str, Any]) -> Loop:
    """Returns the training loop of a recipe, which keeps a pace."""
    whole = load_recipe(plain)
    stage = build_stage(whole, whole.stages[0]).stage
    loader = PacedLoader(stage.loader)
    stage.loader = loader

    def run(pace: Any) -> None:
        loader.pace = pace
        stage.run()

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, not how fast")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.tokenizer = 4, "bytes"
    settle()
    kd = {"name": "word_kd", "kd_ratio": 1.0, "divergence": "forward_kl"}
    width = 32 if arguments.quick else 256
    teacher = {"model": {"name": "llama", "layers": 4, "width": width, "heads": 4}}
    with tempfile.TemporaryDirectory() as scratch:
        loops = {LIVE: loop(recipe(arguments, kd, teacher)), ALONE: loop(recipe(arguments, {"name": "sft"}, None))}
        for name, codec in CODECS.items():
            folder = Path(scratch) / codec["codec"]
            cache_recipe(recipe(arguments, kd, teacher), out=folder, **codec)
            loops[name] = loop(recipe(arguments, kd, {"cache": str(folder)}))
        times = in_turns(loops, warmup=1)
    rows = recipe(arguments, kd, teacher)["data"]["options"]
    print(f"two Llamas, tokenizer {rows['tokenizer']}, {BATCH} x {rows['context']} tokens, {arguments.steps} steps")
    print(f"{machine()}\n")
    print(f"{'':<20} {'step ms':>9} {'step, wall time':>22} {'step, CPU time':>22} {'<=1.10':>6}")
    alone = times[ALONE]
    for name in (ALONE, *CODECS, LIVE):
        arm = times[name]
        cpu = ratio(arm.cpu, alone.cpu)
        verdict = cpu.verdict(BAR) if name in CODECS else ""
        wall = ratio(arm.wall, alone.wall)
        print(f"{name:<20} {milliseconds(arm.wall):>9.3f} {wall!s:>22} {cpu!s:>22} {verdict:>6}")
    print(f"\nratios to {ALONE}")


if __name__ == "__main__":
    main()
