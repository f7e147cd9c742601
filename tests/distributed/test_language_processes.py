"""Language models in two processes: the students of one, whatever the lengths of sequences and the averaging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.language_cases import CASES, SHARED, trained, write_text
from distributed.launch import TESTS, torchrun

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left their students."""
    folder = tmp_path_factory.mktemp("language")
    write_text(folder)
    done = torchrun(str(TESTS / "distributed" / "language_cases.py"), str(folder))
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """The students of one process."""
    folder = tmp_path_factory.mktemp("alone")
    write_text(folder)
    return {name: trained(name, folder) for name in CASES}


@pytest.mark.parametrize("case", SHARED)
def test_bug_33_two_processes_train_the_student_of_one(
    case: str, two: Path, alone: dict[str, dict[str, torch.Tensor]]
) -> None:
    """Elsewhere the wrapper is bypassed, so that no gradient is exchanged and each process trains a student of its own.

    The case `taid` is that of bug 45: its coefficient follows the loss of all processes.
    """
    first, second = (load_file(two / f"{case}.{rank}.safetensors") for rank in (0, 1))
    expected = alone[case.rpartition(" ")[0]]
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def test_averages_over_sequences_and_over_tokens_are_different_students(
    alone: dict[str, dict[str, torch.Tensor]],
) -> None:
    key = next(k for k in alone["sft"] if "down_proj" in k)
    assert not torch.allclose(alone["sft"][key], alone["sft sequence_mean"][key], rtol=1e-3)


def test_a_sharded_run_with_adapters_leaves_a_folder_that_plain_transformers_loads(two: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(two / "run" / "student")
    assert not (two / "run" / "student" / "adapter_config.json").exists()
    results = json.loads((two / "run" / "results.json").read_text())
    assert sum(p.numel() for p in model.parameters()) < results["size"]["parameters"]
