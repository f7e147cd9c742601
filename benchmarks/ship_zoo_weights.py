"""Puts the student of a finished run into the zoo: its weights, and a model card that says how it came about.

limbeck run fashion_mnist_teacher --out runs/teacher
python benchmarks/ship_zoo_weights.py runs/teacher
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import yaml

ZOO = Path(__file__).parents[1] / "limbeck" / "students" / "weights"


def ship(run: Path) -> Path:
    """Copies the weights of ``run`` and writes their card; returns the weights' new place."""
    card, results = (json.loads((run / name).read_text()) for name in ("student.json", "results.json"))
    model = card["roles"]["student"]["model"]
    target = ZOO / f"{model}-{card['data']}.safetensors"
    ZOO.mkdir(exist_ok=True)
    shutil.copyfile(run / "student.safetensors", target)
    environment = json.loads((run / "environment.json").read_text())
    shipped = {
        "model": model,
        "data": card["data"],
        "num_classes": card["num_classes"],
        "input_shape": card["input_shape"],
        "normalize": {"mean": card["mean"], "std": card["std"]},
        "accuracy": results["accuracy"]["top1"],
        "calibration_error": results["calibration"]["ece"],
        "judged_on": f"{results['split']} data, {results['accuracy']['samples']} samples, last epoch",
        "recipe": yaml.safe_load((run / "recipe.yaml").read_text()),
        "licence": "Apache-2.0",
        "licence_of_data": card["licence"],
        "trained_with": {"limbeck": environment["limbeck"], **environment["versions"]},
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
    }
    target.with_suffix(".json").write_text(json.dumps(shipped, indent=2) + "\n")
    return target


if __name__ == "__main__":
    print(ship(Path(sys.argv[1])))
