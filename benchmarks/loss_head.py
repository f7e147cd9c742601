"""Loss heads: from hidden states and head weights of student and teacher to the loss and its gradients.

limbeck's lean head, compiled and not, against TRL 1.16 with whole logits (GKD's loss), TRL 1.16 tiled
(DistillationTrainer's loss) and the chunked loss of Liger in plain PyTorch. Every measurement is a process of its own,
the arms in turns; what is printed are medians of processor seconds of one forward and backward pass after a smaller one
has loaded all code, the rise of the resident memory at its peak, and ratios against limbeck.

    pip install 'limbeck[lm_bench]'
    python benchmarks/loss_head.py [--quick] [--tokens 1024] [--width 512] [--repeats 3] [--target FOLDER]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from turns import machine

VOCABULARIES = (32_000, 151_936)
DIVERGENCES = {"forward_kl": 0.0, "jsd": 0.5}
ARMS = ("limbeck", "limbeck eager", "TRL dense", "TRL tiled", "Liger chunks")
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def limbeck_head(name: str, compiled: bool | None) -> Loss:
    """Returns limbeck's loss of student states and weight, teacher states and weight."""
    from limbeck.functional.divergence_registry import divergence
    from limbeck.functional.loss_head import projected_token_losses
    from limbeck.functional.output_layer import project
    from limbeck.functional.token_losses import DivergenceLoss, DivergenceRule, rows_of
    from limbeck.signals import Head

    rule = DivergenceRule(divergence(name))

    def loss(states: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
        teacher = Head(other_weight)
        target = DivergenceLoss(rule, lambda rows: project(rows_of(other, rows), teacher), other.shape[:-1])
        return projected_token_losses(states, Head(weight), {"kd": target}, compiled=compiled)["kd"].mean()

    return loss


def trl_dense(beta: float) -> Loss:
    """Returns the loss of TRL's GKD trainer, on logits."""
    trainer = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer

    def loss(states: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = other @ other_weight.T
        return trainer.generalized_jsd_loss(states @ weight.T, teacher, beta=beta, labels=_labels(states))

    return loss


def _labels(states: Tensor) -> Tensor:
    return torch.zeros(states.shape[:-1], dtype=torch.long)


def trl_tiled(beta: float) -> Loss:
    """Returns the loss of TRL's distillation trainer, on tiles."""
    function = importlib.import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss

    def loss(states: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
        return function(states, other, weight, other_weight, torch.ones(states.shape[:-1]), beta)[0]

    return loss


def liger_chunks(beta: float) -> Loss:
    """Returns Liger's chunked loss. The package as a whole wants Triton, this part of it does not."""
    root = next(Path(p) / "liger_kernel" for p in sys.path if (Path(p) / "liger_kernel").is_dir())
    for name, folder in (("liger_kernel", root), ("liger_kernel.chunked_loss", root / "chunked_loss")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    part = importlib.import_module("liger_kernel.chunked_loss.jsd_loss")
    function = part.LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)

    def loss(states: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> Tensor:
        flat = states.reshape(-1, states.shape[-1])
        return function(flat, weight, other.reshape(-1, other.shape[-1]), other_weight, _labels(flat))

    return loss


def make(arm: str, name: str) -> Loss:
    """Returns the loss of an arm."""
    if arm.startswith("limbeck"):
        return limbeck_head(name, compiled=not arm.endswith("eager"))
    from limbeck.torchvision_compat import ensure_torchvision

    ensure_torchvision()  # which TRL imports by way of transformers
    builders = {"TRL dense": trl_dense, "TRL tiled": trl_tiled, "Liger chunks": liger_chunks}
    return builders[arm](DIVERGENCES[name])


def status(entry: str) -> int:
    """Returns an entry of this process's status in bytes."""
    found = re.search(rf"^{entry}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("this system does not say how much memory a process holds")
    return 1024 * int(found[1])


def measure(arm: str, name: str, tokens: int, vocabulary: int, width: int) -> dict[str, float]:
    """Returns processor seconds, bytes above the inputs at the peak, and the loss."""
    torch.set_num_threads(1)
    loss = make(arm, name)

    def run(rows: int, classes: int) -> tuple[float, float, float]:
        torch.manual_seed(0)
        tensors = [torch.randn(1, rows, width), torch.randn(classes, width) / width**0.5]
        tensors += [torch.randn(1, rows, width), torch.randn(classes, width) / width**0.5]
        leaves = [t.requires_grad_() for t in tensors[:2]]
        Path("/proc/self/clear_refs").write_text("5")
        before, start = status("VmRSS"), time.process_time()
        value = loss(leaves[0], leaves[1], tensors[2], tensors[3])
        value.backward()
        return time.process_time() - start, status("VmHWM") - before, float(value.detach())

    for rows in (2, 5):
        run(rows, 2 * vocabulary // 64)
    seconds, peak, value = run(tokens, vocabulary)
    return {"seconds": seconds, "bytes": peak, "loss": value}


def in_process(options: argparse.Namespace, arm: str, name: str, vocabulary: int) -> dict[str, float]:
    """Runs one measurement, in a process of its own unless it is to be quick."""
    order: dict[str, Any] = {
        "arm": arm,
        "name": name,
        "tokens": options.tokens,
        "vocabulary": vocabulary,
        "width": options.width,
    }
    if options.quick:
        return measure(**order)
    # glibc maps every larger block by itself, so that resident memory is what tensors hold.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", json.dumps(order)]
    if options.target:
        command += ["--target", options.target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arm} failed on {name}, {vocabulary}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few tokens through limbeck's eager head: it runs")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, action="append")
    parser.add_argument("--target", help="folder into which TRL and Liger were installed with pip --target")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target:
        sys.path.append(options.target)
    if options.measure:
        order = json.loads(options.measure)
        print(json.dumps(measure(**order)))
        return
    torch.set_num_threads(1)
    if options.quick:
        options.tokens, options.width, options.repeats, options.vocabulary = 16, 32, 1, [512]
    print(f"{options.tokens} tokens, width {options.width}, {machine()}")
    for vocabulary in options.vocabulary or VOCABULARIES:
        for name in DIVERGENCES:
            _table(options, name, vocabulary)


def _table(options: argparse.Namespace, name: str, vocabulary: int) -> None:
    arms = ARMS[1:2] if options.quick else ARMS
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(options.repeats):
        for arm in arms:
            found[arm].append(in_process(options, arm, name, vocabulary))
    middle = {arm: {k: median(r[k] for r in runs) for k in runs[0]} for arm, runs in found.items()}
    ours, dense = middle[arms[0]], middle["limbeck eager" if options.quick else "TRL dense"]
    print(
        f"\n{name}, vocabulary {vocabulary}\n{'':14}{'CPU s':>8}{'/ ours':>8}{'peak MB':>9}{'/ dense':>9}{'loss':>11}"
    )
    for arm, row in middle.items():
        share = row["bytes"] / max(dense["bytes"], 1)
        print(
            f"{arm:14}{row['seconds']:8.2f}{row['seconds'] / ours['seconds']:8.2f}"
            f"{row['bytes'] / 2**20:9.0f}{share:9.2f}{row['loss']:11.6f}"
        )


if __name__ == "__main__":
    main()
