"""Runs with rollouts, for one process or a part of several; as a program, one process of two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from language.corpus import tiny, tokenizer
from limbeck.data.text import Encoded, TextLoader, TextSource
from limbeck.engine import distributed
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.methods.base import build_method
from limbeck.tasks.causal_lm import CausalLM
from limbeck.transforms import build_transform

VOCABULARY = 257
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "own": ("gkd", {}),
    "groups": ("on_policy_distillation", {"samples": 2}),
    "mixed": ("minillm", {"policy": "mixed"}),
    "replay": ("gkd", {"replay": {"size": 4, "age": 3}, "unit": "sequence", "probability": 0.7}),
    "ahead": ("gkd", {"every": 2}),
}
"""Method and options of the rollout."""


def source() -> TextSource:
    """Fourteen pairs of different lengths, so that processes pad and write differently."""
    numbers = np.random.default_rng(0)
    pairs = []
    for _ in range(14):
        length = int(numbers.integers(6, 30))
        prompt = min(length // 2, 12)
        pairs.append(Encoded(numbers.integers(0, VOCABULARY, length), np.arange(length) >= prompt, prompt))
    return TextSource("pairs", pairs, tokenizer(), context=40)


def run(case: str, folder: Path, **train: Any) -> dict[str, Tensor]:
    """Two epochs of two whole batches and a rest, in float64; returns the student."""
    method, options = CASES[case]
    torch.manual_seed(0)
    given = {"name": "rollout", "max_new_tokens": 10, "end_tokens": list(range(40)), **options}
    roles = {
        role: Role(model=tiny(seed, layers=1).double()) for seed, role in enumerate(("student", "teacher"), start=1)
    }
    own = RunFolder.open(folder / f"{case} {distributed.world_size()}", {"case": case})
    stage = Stage(
        method=build_method(method),
        roles=roles,
        task=CausalLM(vocabulary=VOCABULARY),
        loader=TextLoader(source(), batch_size=6, seed=3, rank=distributed.rank(), world_size=distributed.world_size()),
        settings=TrainSettings(
            epochs=2, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", evaluate_every=0, **train
        ),
        transforms=[build_transform(given, seed=1, num_classes=VOCABULARY)],
        num_classes=VOCABULARY,
        seed=1,
        folder=own,
    )
    try:
        stage.run()
    finally:
        if own is not None:
            own.close()
    return {name: tensor.detach().clone() for name, tensor in stage.learners["student"].state_dict().items()}


def main() -> None:
    """Runs every case in a folder, the first argument."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with distributed.session():
        for case in CASES:
            found = run(case, folder)
            tensors = {name: tensor.contiguous() for name, tensor in found.items() if name != "lm_head.weight"}
            save_file(tensors, folder / f"{case}.{distributed.rank()}.safetensors")


if __name__ == "__main__":
    main()
