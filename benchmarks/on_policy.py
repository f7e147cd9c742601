"""Tokens a second that a student writes: limbeck's rollouts against the generation of TRL 1.16's GKD trainer.

Both continue the same prompts of a novel with the same model (a tiny Llama, or a packaged one), the same settings and
the same number of completions a prompt, in turns, step by step; what counts are the tokens up to the end of each
completion. A step of 32 rows is trained in four parts of 8, as memory demands: TRL writes for each part as it comes,
limbeck for the whole step at once, which is as much on-policy. TRL reads a prompt once for each completion and goes on
with completions that have ended until the last one has; limbeck gives the log-probability of each token beside it. What
writing for four steps at once gains is shown apart, since the last of them are then three steps old. The bar is a ratio
of at least 1.5 in processor time.

    pip install 'limbeck[lm_bench]'
    python benchmarks/on_policy.py [--quick] [--steps 12] [--model smollm2-135m-instruct] [--target FOLDER]
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

from limbeck.data.text import TextLoader, TextSource, Tokenizer, load_text, load_tokenizer
from limbeck.schedules import Progress
from limbeck.signals import Batch
from limbeck.students.language import build_language_model
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.provider import Observer
from limbeck.transforms import build_transform

BAR = 1.5
PROMPT = 64
TINY = "llama"


@dataclass(frozen=True)
class Setting:
    """What is written in a step.

    Attributes:
        prompts: prompts of a step.
        samples: completions a prompt.
        parts: micro-batches of a step.
        every: steps that limbeck writes for at once.
        sentences: whether the end of a line or a sentence ends a completion, so that lengths differ as those of answers
            do; else only the end of the text does.
    """

    prompts: int
    samples: int = 1
    parts: int = 1
    every: int = 1
    sentences: bool = True

    def ends(self, tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens that end a completion."""
        assert tokenizer.eos_id is not None
        marks = [tokenizer.encode(mark)[-1] for mark in "\n\r."] if self.sentences else []
        return [*marks, tokenizer.eos_id]


SETTINGS = {
    "32 prompts, in parts of 8": Setting(32, parts=4),
    "32 prompts, in parts of 8, full length": Setting(32, parts=4, sentences=False),
    "8 prompts x 4": Setting(8, samples=4),
    "8 prompts x 1": Setting(8),
    "8 prompts x 1, 4 steps at once": Setting(8, every=4),
}
Arm = Callable[[Batch, int], int]


def student(name: str, vocabulary: int, tokens: int) -> nn.Module:
    """Returns the model: four layers of width 128 unless a name is given, with words that differ by the prompt."""
    if name != TINY:
        return build_language_model(name, vocabulary=vocabulary, context=PROMPT + tokens).eval()
    torch.manual_seed(0)
    shape = {"name": "llama", "layers": 4, "width": 128, "heads": 4}
    model = build_language_model(shape, vocabulary=vocabulary, context=PROMPT + tokens).eval()
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
            "prompt_tokens": PROMPT, "end_tokens": setting.ends(loader.source.tokenizer), "every": setting.every,
        },
        seed=0, num_classes=loader.source.tokenizer.vocabulary,
    )  # fmt: skip
    task = CausalLM(vocabulary=loader.source.tokenizer.vocabulary)
    rollout.bind({"student": Observer("student", model, task)}, loader)

    def write(batch: Batch, step: int) -> int:
        rollout.at(Progress(step, loader.steps_per_epoch, 1), training=True)
        return int(rollout(batch)["mask"].sum())

    return write


def trl_arm(model: nn.Module, tokenizer: Tokenizer, setting: Setting, tokens: int) -> Arm:
    """Returns TRL's generation, with the settings that its GKD trainer gives it."""
    from transformers import GenerationConfig

    trainer = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    config = GenerationConfig(
        max_new_tokens=tokens, temperature=0.9, do_sample=True, top_k=0, use_cache=True,
        pad_token_id=tokenizer.pad_id, eos_token_id=setting.ends(tokenizer),
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


def compare(source: TextSource, name: str, setting: Setting, tokens: int, count: int, *, alone: bool) -> str:
    """Lets both write in turns, or limbeck alone, and returns a line of the table."""
    loader = TextLoader(source, batch_size=setting.prompts, seed=0)
    model = student(name, source.tokenizer.vocabulary, tokens)
    arms = {"limbeck": limbeck_arm(model, loader, setting, tokens)}
    if not alone:
        arms["TRL"] = trl_arm(model, source.tokenizer, setting, tokens)
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
    if alone:
        return f"{rates['limbeck'][1]:>10.1f}"
    wall, processor = rates["limbeck"] / rates["TRL"]
    said = "met" if processor >= BAR else "missed"
    return f"{rates['limbeck'][1]:>10.1f} {rates['TRL'][1]:>8.1f} {wall:>12.2f} {processor:>12.2f} {said:>8}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a few short completions of limbeck alone: shows that it runs"
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", default=TINY, help="the tiny Llama, or a packaged model")
    parser.add_argument("--target", help="folder into which TRL was installed with pip --no-deps --target")
    options = parser.parse_args()
    if options.target:
        sys.path.append(options.target)
    if not options.quick:
        from limbeck.torchvision_compat import ensure_torchvision

        ensure_torchvision()  # which TRL imports by way of transformers
    settle()
    count, tokens = (2, 4) if options.quick else (options.steps, options.tokens)
    largest = max(setting.prompts for setting in SETTINGS.values())
    source = load_text(
        {"name": "persuasion"},
        load_tokenizer("bytes" if options.model == TINY else options.model),
        context=PROMPT + tokens,
        limit=largest * (count + 1),
    )
    print(f"{options.model}, completions of at most {tokens} tokens after {PROMPT}, {count} steps in turns")
    print(machine("transformers", *(() if options.quick else ("trl",))) + "\n")
    print(f"{'tokens a CPU second':<40} {'limbeck':>10} {'TRL':>8} {'ratio, wall':>12} {'ratio, CPU':>12} {'>=1.5':>8}")
    for label, setting in SETTINGS.items():
        line = compare(source, options.model, setting, tokens, count, alone=options.quick)
        print(f"{label:<40} {line}", flush=True)


if __name__ == "__main__":
    main()
