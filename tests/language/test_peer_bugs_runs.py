"""Mistakes that other tools made in caches, servers, several processes and resumed runs: none of them here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from language.corpus import sequences, source, tiny, tokenizer
from limbeck.data.text import TextLoader, TextSource
from limbeck.engine.interruption import Interrupted
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import CacheError
from limbeck.methods.base import build_method
from limbeck.methods.sequence.taid import TAID
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.cache.sequences import CachedSequences, write_sequences
from limbeck.teachers.live import FrozenTeacher
from limbeck.teachers.remote import Client, Endpoint, probe
from limbeck.teachers.server import Scorer, TeacherServer

SHAPE = {"name": "llama", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2}


def test_bug_24_every_sample_gets_its_own_row_of_a_cache_in_every_order_and_division(tmp_path: Path) -> None:
    """Elsewhere rows are counted by step, which is wrong after the first shuffle, micro-batch or epoch."""
    data, task = source(count=12), CausalLM(vocabulary=257)
    teacher = FrozenTeacher("teacher", tiny(3), task, wanted=frozenset({"hidden|logits"}))
    write_sequences(tmp_path / "c", source=data, teacher=teacher, codec={"name": "full", "dtype": "float32"})
    live = FrozenTeacher("teacher", tiny(3), task, wanted=frozenset({"logits"}))
    orders = []
    for size, seed in ((4, 1), (5, 2)):
        loader = TextLoader(data, batch_size=size, seed=seed)
        cached = CachedSequences(tmp_path / "c", loader)
        for epoch in range(2):
            for batch in loader.epoch(epoch):
                orders.append(tuple(batch["index"].tolist()))
                for part in batch.split(2):
                    mask = part["mask"]
                    ours = cached(part).logits[mask].log_softmax(-1)
                    torch.testing.assert_close(ours, live(part).logits[mask].log_softmax(-1), rtol=1e-3, atol=1e-4)
    assert len(set(orders)) == len(orders)
    moved = next(TextLoader(data, batch_size=4, seed=1).epoch(0))
    moved["index"] = moved["index"].roll(1)
    with pytest.raises(CacheError, match="other tokens than the batch has"):
        CachedSequences(tmp_path / "c", TextLoader(data, batch_size=4, seed=1))(moved)


def test_bug_32_a_server_that_scores_without_the_temperature_is_known_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere log-probabilities are taken for those at the temperature that was asked for."""
    scorer = Scorer(tiny(7, context=128), tokenizer(), most=50)
    with TeacherServer(scorer, "tiny") as server:
        good = probe(Client(Endpoint(server.url, "tiny"), tmp_path / "good"), tokenizer(), top=5)
        score = Scorer.score
        monkeypatch.setattr(Scorer, "score", lambda self, ids, *, top, temperature=1.0: score(self, ids, top=top))
        deaf = probe(Client(Endpoint(server.url, "tiny"), tmp_path / "deaf"), tokenizer(), top=5)
    assert good.honours_temperature
    assert not deaf.honours_temperature


class StopAt(Reporter):
    """Stands for a kill in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, progress: Any, loss: float) -> None:
        if progress.step == self.step:
            raise Interrupted("killed")


def rollouts(folder: Path, **rollout: Any) -> dict[str, Any]:
    lines = [{"prompt": f"{n} + {n} =", "completion": f" {2 * n}"} for n in range(24)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "task": "causal-lm",
        "data": {
            "name": "jsonl",
            "path": str(folder / "sums.jsonl"),
            "options": {"tokenizer": "bytes", "context": 24, "test": 0.2},
        },
        "roles": {"teacher": {"model": SHAPE}, "student": {"model": SHAPE}},
        "transforms": [{"name": "rollout", "max_new_tokens": 4, **rollout}],
        "method": {"name": "gkd", "beta": 0.9},
        "train": {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 0.003, "checkpoint_every": 1},
        "evaluate": ["token_loss"],
    }


@pytest.mark.parametrize(
    "rollout", [{}, {"every": 3}, {"replay": {"size": 8, "age": 6}}, {"probability": 0.5, "unit": "sequence"}], ids=str
)
def test_bug_43_a_killed_run_repeats_and_skips_no_prompt_and_ends_with_the_same_bits(
    tmp_path: Path, rollout: dict[str, Any]
) -> None:
    """Elsewhere what was sampled ahead, or kept to be used again, is lost, and data goes on at another place."""
    recipe = load_recipe(rollouts(tmp_path, **rollout))
    whole = run_recipe(recipe, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_recipe(recipe, out=tmp_path / "killed", reporter=StopAt(5))
    finished = run_recipe(recipe, out=tmp_path / "killed")
    assert finished.results["token_loss"] == whole.results["token_loss"]
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def adaptive(micro_batches: int) -> Stage:
    return Stage(
        method=build_method("taid", momentum=0.5, step_size=0.2),
        roles={"student": Role(model=copy.deepcopy(tiny(1)).train()), "teacher": Role(model=tiny(2))},
        task=CausalLM(vocabulary=257),
        loader=TextLoader(uneven(), batch_size=4, seed=2),
        settings=TrainSettings(
            epochs=3, batch_size=4, micro_batches=micro_batches, lr=0.3, optimizer="sgd", momentum=0
        ),
        num_classes=257,
    )


def uneven() -> TextSource:
    """Sequences of very different lengths, so that means of parts differ from the mean of all."""
    rows = [*sequences(4, low=24, high=30), *sequences(4, low=4, high=6, seed=1)]
    order = np.random.default_rng(0).permutation(len(rows))
    return TextSource("uneven", [rows[n] for n in order], tokenizer(), context=32)


def shares(stage: Stage) -> tuple[float, float, float]:
    method = stage.method
    assert isinstance(method, TAID)
    return float(method.share), float(method.trend), float(method.previous)


def test_bug_45_an_adaptive_coefficient_follows_the_whole_batch_and_is_in_the_checkpoint() -> None:
    """Elsewhere it follows the loss of a micro-batch or of one process, and starts again when a run goes on."""
    found = []
    for parts in (1, 2, 4):
        stage = adaptive(parts)
        stage.run()
        found.append(shares(stage))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] == pytest.approx(found[2], rel=1e-4)
    assert found[0][1] != 0
    again = build_method("taid", momentum=0.5, step_size=0.2)
    again.load_state_dict(stage.method.state_dict())
    stage.method = again
    assert shares(stage) == found[2]
