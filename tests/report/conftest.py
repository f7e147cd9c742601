"""Run folders as the engine leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from limbeck.data.load import load_data
from limbeck.evaluate import Predictions, Subject, evaluations
from limbeck.tasks.classification import Classification

SAMPLES, CLASSES = 150, 10


def logits(strength: float, seed: int, labels: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(labels), CLASSES, generator=generator)
    scores[torch.arange(len(labels)), labels] += strength
    return scores


MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def labels() -> torch.Tensor:
    found = load_data("fashion-mnist-small", split="test").labels()
    assert found is not None
    return found[:SAMPLES]


@pytest.fixture
def make_run(tmp_path: Path, labels: torch.Tensor) -> MakeRun:
    """Writes a run folder whose results are those of its predictions."""

    def make(method: str, seed: int = 0, *, strength: float = 1.5, teacher: bool = True, **changes: Any) -> Path:
        folder = tmp_path / f"{method}-seed{seed}{changes.pop('suffix', '')}"
        folder.mkdir(parents=True)
        roles = {"student": logits(strength, 10 + seed, labels)} | (
            {"teacher": logits(3.0, 1, labels)} if teacher else {}
        )
        predictions = Predictions(torch.arange(len(labels)), labels, roles)
        predictions.save(folder / "predictions.safetensors")
        subject = Subject(torch.nn.Identity(), [], Classification(), known=predictions)
        results: dict[str, Any] = {n: evaluations[n].part(subject) for n in ("accuracy", "agreement", "calibration")}
        results["cost"] = {"parameters": 20_000, "macs": 1_500_000, "weights_bytes": 81_000}
        if teacher:
            results["cost"]["teacher"] = {"parameters": 272_000, "macs": 31_000_000, "weights_bytes": 1_100_000}
        results |= {"method": method, "seed": seed, "split": "test"}
        top1 = results["accuracy"]["top1"]
        epochs = [
            {
                "stage": "train", "epoch": e, "step": 10 * (e + 1), "lr": 0.1, "loss": 2.0 / (e + 1),
                "terms": {"ce": 2.0 / (e + 1)} | ({"kd": 90.0 / 10**e} if method != "none" else {}),
                "evaluation": {"accuracy": top1 * (1 - 0.5 ** (e + 1))},
            }
            for e in range(4)
        ]  # fmt: skip
        recipe = {
            "about": "",
            "seed": seed,
            "stages": [
                {
                    "name": "train",
                    "data": {"name": "fashion-mnist-small", "limit": 100, **changes.pop("data", {})},
                    "roles": {"student": {"model": "resnet8"}}
                    | ({"teacher": {"model": "resnet20"}} if teacher else {}),
                    "method": {"name": method, **changes.pop("options", {})},
                }
            ],
        }
        class_names = changes.pop("class_names", [f"class {n}" for n in range(CLASSES)])
        assert not changes
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (folder / "environment.json").write_text(json.dumps({"processor": "a processor", "threads": 2}))
        (folder / "student.json").write_text(json.dumps({"data": "fashion-mnist-small", "class_names": class_names}))
        return folder

    return make
