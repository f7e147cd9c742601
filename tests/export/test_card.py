"""Model cards say what a student is, and go round through files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from limbeck.errors import CheckpointError, RunFolderError
from limbeck.export import ModelCard, save_student
from limbeck.students.weight_files import load_weights, read_metadata

CARD = ModelCard(
    method={"name": "dkd", "alpha": 1.0},
    roles={"student": {"model": {"name": "small_cnn", "width": 4}}, "teacher": {"model": "resnet20", "weights": "zoo"}},
    data="shapes",
    licence="MIT, somebody",
    num_classes=2,
    input_shape=(1, 8, 8),
    mean=(0.5,),
    std=(0.25,),
    class_names=("round", "square"),
    seed=0,
    results={
        "accuracy": {"top1": 0.9123, "teacher": {"top1": 0.95}},
        "agreement": {"note": "no teacher"},
        "method": "dkd",
    },
)


def test_the_page_says_what_a_user_must_know() -> None:
    page = CARD.to_markdown()
    assert "A `small_cnn` distilled from `resnet20` with `dkd` on `shapes`" in page
    assert "Input: `[batch, 1 x 8 x 8]`, float32, scaled to [0, 1], minus [0.5], divided by [0.25] by channel." in page
    assert "Classes, in the order of the scores: round, square." in page
    assert "| Accuracy | 91.23 % |" in page
    assert "Agreement" not in page
    assert "Training data: MIT, somebody" in page


def test_what_is_not_known_is_left_out() -> None:
    assert ModelCard(data="x").to_markdown().count("\n\n") == 1
    assert set(ModelCard(data="x").metadata()) == {"limbeck", "data", "seed", "figures"}
    assert "Input: `[batch, 3]`, float32.\n" in ModelCard(input_shape=(3,)).to_markdown()


def test_metadata_holds_the_headline_numbers() -> None:
    found = CARD.metadata()
    assert found["figures"] == {"accuracy.top1": 0.9123}
    assert (found["student"], found["teacher"], found["seed"]) == ("small_cnn", "resnet20", 0)
    json.dumps(found)


def test_a_saved_student_is_read_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    save_student(model, tmp_path, CARD)
    (tmp_path / "results.json").write_text(json.dumps(CARD.results))
    assert ModelCard.of_run(tmp_path) == CARD
    again = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    load_weights(again, tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert read_metadata(tmp_path / "student.safetensors")["teacher"] == "resnet20"
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        assert "0.weight" in file.keys()  # noqa: SIM118 - not a mapping
    assert (tmp_path / "student.md").read_text() == CARD.to_markdown()


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_a_damaged_card_is_an_error_that_names_the_file(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "results.json").write_text("{}")
    if content is not None:
        (tmp_path / "student.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"student\.json"):
        ModelCard.of_run(tmp_path)


def test_a_folder_that_is_absent_is_an_error_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, RunFolderError), match="absent"):
        save_student(nn.Linear(2, 2), tmp_path / "absent", CARD)
