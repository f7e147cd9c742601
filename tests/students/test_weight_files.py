from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limbeck.errors import CheckpointError, UnknownNameError
from limbeck.students import weight_files
from limbeck.students.resnet import resnet8
from limbeck.students.weight_files import load_weights, read_metadata, save_weights, zoo_weights


def _same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    model = resnet8(num_classes=10)
    model(torch.randn(4, 3, 8, 8))  # moves the running statistics off their start
    return model


@pytest.fixture
def other() -> nn.Module:
    torch.manual_seed(2)
    return resnet8(num_classes=10)


def test_round_trip_with_metadata(tmp_path: Path, model: nn.Module, other: nn.Module) -> None:
    path = tmp_path / "student.safetensors"
    metadata = {"model": "resnet8", "accuracy": 0.5, "classes": ["a", "ü"]}
    save_weights(model, path, metadata)
    assert not _same(model, other)
    load_weights(other, path)
    assert _same(model, other)
    assert read_metadata(path) == metadata
    assert os.listdir(tmp_path) == ["student.safetensors"]


def test_a_run_folder_means_its_student(tmp_path: Path, model: nn.Module, other: nn.Module) -> None:
    save_weights(model, tmp_path / "student.safetensors")
    load_weights(other, tmp_path)
    assert _same(model, other)


def test_files_of_others_have_no_metadata(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert read_metadata(tmp_path / "a.safetensors") == {}


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    save_weights(tied, tmp_path / "tied.safetensors")
    loaded = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(loaded["0.weight"], loaded["1.weight"])


def test_saving_where_one_cannot_is_an_error(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        save_weights(model, tmp_path / "absent" / "student.safetensors")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_pytorch_files_are_read(
    tmp_path: Path, model: nn.Module, other: nn.Module, wrapper: str | None, prefix: str
) -> None:
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "old.pth")
    load_weights(other, tmp_path / "old.pth")
    assert _same(model, other)


class _Hostile:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.evidence),)


def _write_plain_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [_write_plain_pickle, lambda path, content: torch.save(content, path)])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, other: nn.Module, write: Any, suffix: str) -> None:
    evidence = tmp_path / "it-ran"
    path = tmp_path / f"hostile{suffix}"
    write(path, {"state_dict": {"stem.0.weight": _Hostile(evidence)}})
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"hostile{suffix} is refused.*safetensors"):
        load_weights(other, path)
    assert not evidence.exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    # The pickle is what the test takes it for.
    pickle.loads(pickle.dumps(_Hostile(evidence)))
    assert evidence.exists()


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_safetensors_are_refused(tmp_path: Path, model: nn.Module, other: nn.Module, keep: float) -> None:
    path = tmp_path / "cut.safetensors"
    save_weights(model, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        load_weights(other, path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_pytorch_files_are_refused(tmp_path: Path, model: nn.Module, other: nn.Module, keep: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save(model.state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        load_weights(other, path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights at all",
        b"\xff" * 8 + b"{",
        (2**40).to_bytes(8, "little") + b'{"a": 1}',
        (2).to_bytes(8, "little") + b"{}",
        (20).to_bytes(8, "little") + b'{"a":{"dtype":"F32" ',
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, other: nn.Module, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors"):
        load_weights(other, path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"epoch": 3, "loss": torch.zeros(1)}, torch.zeros(3)])
def test_pytorch_files_without_weights_are_refused(tmp_path: Path, other: nn.Module, content: Any) -> None:
    torch.save(content, tmp_path / "log.pt")
    with pytest.raises(CheckpointError, match=r"log\.pt"):
        load_weights(other, tmp_path / "log.pt")


def test_a_missing_file_is_named(tmp_path: Path, other: nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"no weight file .*absent\.safetensors"):
        load_weights(other, tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        read_metadata(tmp_path / "absent.safetensors")


def test_misfits_are_listed_with_near_names(tmp_path: Path, model: nn.Module) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state["head.weights"] = state.pop("head.weight")
    state["head.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_weights(model, tmp_path / "a.safetensors")
    message = str(error.value)
    assert "'head.bias' is [7] in the file but [10] in the model" in message
    assert "'head.weight' is missing. Did you mean 'head.weights'?" in message
    assert "'head.weights' is not in the model. Did you mean 'head.weight'" in message


def test_another_model_is_a_short_message(tmp_path: Path, model: nn.Module) -> None:
    save_weights(nn.Linear(3, 3), tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors does not fit StagedClassifier: .*; and \d+ more"
    ) as error:
        load_weights(model, tmp_path / "a.safetensors")
    assert len(str(error.value)) < 1000


@pytest.fixture
def shipped(tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped weights with one entry."""
    monkeypatch.setattr(weight_files, "_SHIPPED", tmp_path)
    path = tmp_path / "resnet8-digits.safetensors"
    save_weights(model, path)
    card = {"data": "digits", "accuracy": 0.9, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def test_shipped_weights_load_by_model_and_data(shipped: Path, model: nn.Module, other: nn.Module) -> None:
    assert zoo_weights("resnet8", "digits") == shipped
    load_weights(other, "zoo", model_name="resnet8", data_name="digits")
    assert _same(model, other)
    assert weight_files.model_card(shipped)["accuracy"] == 0.9


def test_missing_shipped_weights_list_what_there_is(shipped: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'resnet20' trained on 'digits'.*'resnet8-digits'"):
        zoo_weights("resnet20", "digits")


def test_damaged_shipped_weights_are_refused(shipped: Path) -> None:
    data = bytearray(shipped.read_bytes())
    data[-1] ^= 1
    shipped.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        zoo_weights("resnet8", "digits")


def test_shipped_weights_without_a_card_are_refused(shipped: Path) -> None:
    shipped.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="model card"):
        zoo_weights("resnet8", "digits")


def test_every_shipped_entry_is_what_its_card_says() -> None:
    for name in weight_files.shipped_weights():
        model_name, _, data_name = name.partition("-")
        card = weight_files.model_card(zoo_weights(model_name, data_name))
        assert {"data", "recipe", "accuracy", "licence", "sha256"} <= card.keys()
