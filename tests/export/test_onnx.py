"""ONNX files give the model's scores, say what they are, and appear only when they are right."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError, MissingExtraError
from limbeck.export import ExportResult, ModelCard, export_onnx
from limbeck.export import onnx as exporter

CARD = ModelCard(
    method={"name": "kd"},
    roles={"student": {"model": "small"}, "teacher": {"model": "big"}},
    data="shapes",
    class_names=("<b>", "ä"),
    mean=(0.5,),
    std=(0.25,),
    input_shape=(1, 8, 8),
)


class Record:
    """What transformers models return."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(144, 2)
        self.body[1].running_mean.uniform_()

    def forward(self, images: torch.Tensor) -> Record:
        return Record(self.head(self.body(images)))


@pytest.fixture(scope="session")
def model() -> Small:
    model = Small().train()
    model.body[1].eval()
    return model


@pytest.fixture(scope="session")
def exported(model: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportResult, str]:
    """One export for all tests: the first in a process takes seconds."""
    import contextlib
    import io

    said = io.StringIO()
    path = tmp_path_factory.mktemp("onnx") / "new folder" / "student.onnx"
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        result = export_onnx(model, torch.rand(1, 1, 8, 8), path, metadata=CARD.metadata())
    return result, said.getvalue()


def test_the_result_states_size_and_error(exported: tuple[ExportResult, str]) -> None:
    result, _ = exported
    assert result.path.stat().st_size == result.bytes
    assert result.batch_sizes == (1, 2, 7, 32)
    assert result.max_abs_error is not None
    assert result.max_relative_error is not None
    assert 0 <= result.max_relative_error < 1e-5
    assert result.opset >= 18


def test_the_exporter_is_silent_and_leaves_modes_alone(exported: tuple[ExportResult, str], model: Small) -> None:
    assert exported[1] == ""
    assert model.training
    assert model.body[3].training
    assert not model.body[1].training


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_file_gives_the_models_scores_for_any_batch(
    exported: tuple[ExportResult, str], model: Small, size: int
) -> None:
    session = onnxruntime.InferenceSession(str(exported[0].path), providers=["CPUExecutionProvider"])
    images = torch.randn(size, 1, 8, 8)
    scores = session.run(["logits"], {"inputs": images.numpy()})[0]
    with torch.no_grad():
        expected = model.eval()(images).logits.numpy()
    model.train()
    model.body[1].eval()
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_the_file_says_what_it_is(exported: tuple[ExportResult, str]) -> None:
    session = onnxruntime.InferenceSession(str(exported[0].path), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert found["teacher"] == "big"
    assert json.loads(found["method"]) == {"name": "kd"}
    assert json.loads(found["class_names"]) == ["<b>", "ä"]
    assert json.loads(found["mean"]) == [0.5]
    assert json.loads(found["input_shape"]) == [1, 8, 8]
    assert "licence" not in found


def test_a_file_whose_scores_differ_is_not_written(
    exported: tuple[ExportResult, str], model: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = exported[0].path.read_bytes()
    monkeypatch.setattr(exporter, "_translate", lambda *_: (other, 20))
    path = tmp_path / "student.onnx"
    path.write_bytes(b"what was here before")
    wrong = Small()
    with torch.no_grad():
        wrong.head.weight.add_(0.01)
    with pytest.raises(LimbeckError, match="scores differ"):
        export_onnx(wrong, torch.rand(4, 1, 8, 8), path)
    assert path.read_bytes() == b"what was here before"
    unchecked = export_onnx(wrong, torch.rand(4, 1, 8, 8), path, check=False)
    assert unchecked.max_abs_error is None
    assert path.read_bytes() == other


def test_scores_that_are_not_finite_fail_the_check(
    exported: tuple[ExportResult, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_translate", lambda *_: (exported[0].path.read_bytes(), 20))
    broken = Small()
    with torch.no_grad():
        broken.head.bias.fill_(float("nan"))
    with pytest.raises(LimbeckError, match="scores differ"):
        export_onnx(broken, torch.rand(4, 1, 8, 8), tmp_path / "student.onnx")


class DataDependent(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2] if images.sum() > 0 else images.flatten(1)[:, 2:4]


class FixedBatch(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, 64)


@pytest.mark.parametrize("kind", [DataDependent, FixedBatch])
def test_a_model_that_onnx_cannot_express_is_an_error_with_its_cause(kind: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="cannot be expressed in ONNX") as caught:
        export_onnx(kind(), torch.rand(2, 1, 8, 8), tmp_path / "student.onnx")
    assert len(str(caught.value)) > len("the model cannot be expressed in ONNX with a dynamic batch size: ")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(model: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "onnxscript":
            raise ImportError(name)
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"limbeck\[onnx\]"):
        export_onnx(model, torch.rand(2, 1, 8, 8), tmp_path / "student.onnx")
