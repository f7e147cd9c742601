"""Tokens a second that a student writes: limbeck's rollouts against the generation of TRL 1.16's GKD trainer.

Both continue the same prompts of a novel with the same tiny Llama, the same settings and the same number of
completions a prompt, in turns, step by step; what counts are the tokens up to the end of each completion. A step of 32
rows is trained in four parts of 8, as memory demands: TRL writes for each part as it comes, limbeck for the whole step
at once, which is as much on-policy. TRL reads a prompt once for each completion and goes on with completions that have
ended until the last one has; limbeck gives the log-probability of each token beside it. What writing for four steps at
once gains is shown apart, since the last of them are then three steps old. The bar is a ratio of at least 1.5 in
processor time for a step in parts.

    pip install 'limbeck[lm_bench]'
    python benchmarks/on_policy.py [--quick] [--steps 12] [--target FOLDER]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from turns import machine, settle

from limbeck.data.text import TextLoader, TextSource, load_text, load_tokenizer
from limbeck.schedules import Progress
from limbeck.signals import Batch
from limbeck.students.language import build_language_model
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.provider import Observer
from limbeck.transforms import build_transform

BAR = 1.5
PROMPT = 64


@dataclass(frozen=True)
class Setting:
    """What is written in a step.

    Attributes:
        prompts: prompts of a step.
        samples: completions a prompt.
        parts: micro-batches of a step.
        every: steps that limbeck writes for at once.
        ends: tokens that end a completion.
    """

    prompts: int
    samples: int = 1
    parts: int = 1
    every: int = 1
    ends: tuple[int, ...] = (10, 13, 46, 256)
    """A byte that ends a line or a sentence, so that lengths differ as those of answers do."""


SETTINGS = {
    "32 prompts, in parts of 8": Setting(32, parts=4),
    "32 prompts, in parts of 8, full length": Setting(32, parts=4, ends=(256,)),
    "8 prompts x 4": Setting(8, samples=4),
    "8 prompts x 1": Setting(8),
    "8 prompts x 1, 4 steps at once": Setting(8, every=4),
}
Arm = Callable[[Batch, int], int]


def student(tokens: int) -> nn.Module:
    """Returns the model: four layers of width 128, with weights that make its words differ from prompt to prompt."""
    torch.manual_seed(0)
    shape = {"name": "llama", "layers": 4, "width": 128, "heads": 4}
    model = build_language_model(shape, vocabulary=257, context=PROMPT + tokens).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


def limbeck_arm(model: nn.Module, loader: TextLoader, setting: Setting, tokens: int) -> Arm:
    """Returns a rollout of limbeck that takes a batch and says how many tokens it wrote."""
    rollout: Any = build_transform(
        {
            "name": "rollout", "samples": setting.samples, "max_new_tokens": tokens, "temperature": 0.9, "log": 0,
            "prompt_tokens": PROMPT, "end_tokens": list(setting.ends), "every": setting.every,
        },
        seed=0, num_classes=257,
    )  # fmt: skip
    rollout.bind({"student": Observer("student", model, CausalLM(vocabulary=257))}, loader)

    def write(batch: Batch, step: int) -> int:
        rollout.at(Progress(step, loader.steps_per_epoch, 1), training=True)
        return int(rollout(batch)["mask"].sum())

    return write


def trl_arm(model: nn.Module, setting: Setting, tokens: int) -> Arm:
    """Returns TRL's generation, with the settings that its GKD trainer gives it."""
    from transformers import GenerationConfig

    trainer = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    config = GenerationConfig(
        max_new_tokens=tokens, temperature=0.9, do_sample=True, top_k=0, use_cache=True, pad_token_id=256,
        eos_token_id=list(setting.ends),
    )  # fmt: skip

    def write(batch: Batch, step: int) -> int:
        written = 0
        for part in batch.split(setting.parts):
            prompts = part["inputs"]["input_ids"][:, :PROMPT].repeat_interleave(setting.samples, 0)
            inputs = {"prompts": prompts, "prompt_attention_mask": torch.ones_like(prompts)}
            with torch.no_grad():
                _, _, labels = trainer.generate_on_policy_outputs(model, inputs, config)
            written += int((labels != -100).sum())
        return written

    return write


def compare(source: TextSource, setting: Setting, tokens: int, count: int) -> str:
    """Lets both write in turns and returns a line of the table."""
    loader = TextLoader(source, batch_size=setting.prompts, seed=0)
    model = student(tokens)
    arms = {"limbeck": limbeck_arm(model, loader, setting, tokens), "TRL": trl_arm(model, setting, tokens)}
    seconds = {name: np.zeros(2) for name in arms}
    written = dict.fromkeys(arms, 0)
    warmup = 0 if setting.every > 1 else 1
    for step, batch in enumerate(islice(loader.epoch(0), count + warmup)):
        # Whoever writes first in a turn goes second in the next one.
        for name in sorted(arms, reverse=bool(step % 2)):
            start = np.array([time.perf_counter(), time.process_time()])
            new = arms[name](batch, step)
            if step >= warmup:
                written[name] += new
                seconds[name] += np.array([time.perf_counter(), time.process_time()]) - start
    rates = {name: written[name] / seconds[name] for name in arms}
    wall, processor = rates["limbeck"] / rates["TRL"]
    said = "met" if processor >= BAR else "missed"
    return f"{rates['limbeck'][1]:>10.0f} {rates['TRL'][1]:>8.0f} {wall:>12.2f} {processor:>12.2f} {said:>8}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few short completions: shows that it runs")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--target", help="folder into which TRL was installed with pip --no-deps --target")
    options = parser.parse_args()
    if options.target:
        sys.path.append(options.target)
    from limbeck.torchvision_compat import ensure_torchvision

    ensure_torchvision()  # which TRL imports by way of transformers
    settle()
    count, tokens = (2, 4) if options.quick else (options.steps, options.tokens)
    largest = max(setting.prompts for setting in SETTINGS.values())
    source = load_text(
        {"name": "persuasion"}, load_tokenizer("bytes"), context=PROMPT + tokens, limit=largest * (count + 1)
    )
    print(f"completions of at most {tokens} tokens after {PROMPT}, {count} steps in turns")
    print(machine("transformers", "trl") + "\n")
    print(f"{'tokens a CPU second':<40} {'limbeck':>10} {'TRL':>8} {'ratio, wall':>12} {'ratio, CPU':>12} {'>=1.5':>8}")
    for label, setting in SETTINGS.items():
        print(f"{label:<40} {compare(source, setting, tokens, count)}", flush=True)


if __name__ == "__main__":
    main()
