from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.anatomy import anatomy_of
from limbeck.errors import RecipeError, UnknownNameError
from limbeck.students.adapted_input import AdaptedInput, Normalisation
from limbeck.students.loading import build_model
from limbeck.taps import Taps

COLOUR = (3, 32, 32)
GREY = (1, 28, 28)


def _run(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.randn(2, *shape))


# The zoo


def test_facts_of_the_data_reach_the_constructor() -> None:
    assert build_model("resnet8", num_classes=7, input_shape=GREY).stem[0].in_channels == 1
    assert build_model("mlp", num_classes=7, input_shape=(64,)).stages[0].linear.in_features == 64
    assert build_model("vit_micro", num_classes=7, input_shape=GREY).maps[0].grid == (7, 7)


def test_options_reach_the_constructor() -> None:
    model = build_model({"name": "mobilenet_v2", "width": 1.0}, num_classes=7, input_shape=COLOUR)
    assert model.stem[0].out_channels == 32


def test_options_from_yaml_lists_are_accepted() -> None:
    model = build_model({"name": "mlp", "hidden": [32, 16]}, num_classes=7, input_shape=(64,))
    assert [layer.linear.out_features for layer in model.stages] == [32, 16]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"name": "resnet8", "widht": 2}, "unknown key 'widht'"),
        ({"name": "mobilenet_v2", "widht": 2}, "Did you mean 'width'"),
        ({"name": "mobilenet_v2", "width": -1}, "'width' = -1"),
        ({"name": "mobilenet_v2", "width": "wide"}, "'width' = 'wide'"),
        ({"width": 1}, "key 'name'"),
        ({"name": 3}, "key 'name'"),
        ({}, "key 'name'"),
        (None, "key 'name'"),
        (["resnet8"], "key 'name'"),
    ],
)
def test_wrong_specifications_are_named(spec: Any, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        build_model(spec, num_classes=10, input_shape=COLOUR)


def test_a_specification_is_not_changed() -> None:
    spec = {"name": "mobilenet_v2", "width": 1.0}
    build_model(spec, num_classes=7, input_shape=COLOUR)
    assert spec == {"name": "mobilenet_v2", "width": 1.0}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet2", "'resnet20'"),
        ("wrn_40-2", "'wrn_40_2'"),
        ("mobilenetv2", "'mobilenet_v2'"),
        ("tim:resnet18", "'timm'"),
    ],
)
def test_unknown_names_get_near_matches(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near):
        build_model(name, num_classes=10, input_shape=COLOUR)


@pytest.mark.parametrize("name", ["resnet8", "timm:resnet18", "torchvision:resnet18"])
def test_flat_data_is_refused_by_image_models(name: str) -> None:
    with pytest.raises(RecipeError, match=r"reads images .*\(64,\).*'mlp'"):
        build_model(name, num_classes=10, input_shape=(64,))


# EfficientNet-Lite0


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_efficientnet_takes_small_images(shape: tuple[int, ...]) -> None:
    model = build_model("efficientnet_lite0", num_classes=10, input_shape=shape)
    assert _run(model, shape).shape == (2, 10)
    taps = Taps(model, anatomy_of(model).groups())
    taps.listen()
    _run(model, shape)
    shapes = {group: [tuple(t.shape[1:]) for t in tensors] for group, tensors in taps.collect().items()}
    assert shapes["stem"] == [(32, 48, 48)]
    assert shapes["stages"] == shapes["preacts"] == [(24, 24, 24), (40, 12, 12), (112, 6, 6), (320, 3, 3)]
    assert shapes["pooled"] == [(1280,)]
    norms = [model.get_submodule(path) for path in anatomy_of(model).norms]
    assert [norm.num_features for norm in norms] == [24, 40, 112, 320]


def test_efficientnet_knows_a_daisy() -> None:
    from PIL import Image

    (package,) = find_spec("sklearn").submodule_search_locations  # read without the import, which takes seconds
    pixels = np.asarray(Image.open(Path(package) / "datasets" / "images" / "flower.jpg"))
    mean, std = (0.4, 0.45, 0.5), (0.2, 0.21, 0.22)
    model = build_model(
        {"name": "efficientnet_lite0", "input_size": 224}, num_classes=1000, input_shape=COLOUR, mean=mean, std=std
    )
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None, :, :, 100:527] / 255
    given = (image - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        probabilities = model.eval()(given).softmax(-1)[0]
    daisy = 985
    assert probabilities.argmax() == daisy
    assert probabilities[daisy] > 0.2


def test_efficientnet_without_weights_is_another_network() -> None:
    torch.manual_seed(0)
    trained = build_model("efficientnet_lite0", num_classes=10, input_shape=COLOUR)
    fresh = build_model({"name": "efficientnet_lite0", "pretrained": False}, num_classes=10, input_shape=COLOUR)
    again = build_model("efficientnet_lite0", num_classes=10, input_shape=COLOUR)
    weight = "network._blocks.3._depthwise_conv.weight"
    assert torch.equal(trained.get_parameter(weight), again.get_parameter(weight))
    assert not torch.equal(trained.get_parameter(weight), fresh.get_parameter(weight))


def test_efficientnet_refuses_other_channels() -> None:
    with pytest.raises(RecipeError, match="not 4"):
        build_model("efficientnet_lite0", num_classes=10, input_shape=(4, 32, 32))


# Change of inputs


class _Seen(nn.Module):
    """Keeps what it was given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return images.mean((2, 3))


def test_inputs_are_renormalised_exactly() -> None:
    given, wanted = Normalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    image = torch.rand(2, 3, 4, 4)

    def normalised(by: Normalisation) -> torch.Tensor:
        return (image - torch.tensor(by.mean).view(1, 3, 1, 1)) / torch.tensor(by.std).view(1, 3, 1, 1)

    seen = _Seen()
    AdaptedInput(seen, given=given, wanted=wanted)(normalised(given))
    torch.testing.assert_close(seen.images, normalised(wanted))


def test_grey_images_are_repeated_and_resized() -> None:
    seen = _Seen()
    image = torch.rand(2, 1, 4, 4)
    AdaptedInput(seen, size=8, to_colour=True)(image)
    assert seen.images.shape == (2, 3, 8, 8)
    assert torch.equal(seen.images[:, 0], seen.images[:, 2])
    torch.testing.assert_close(seen.images.mean(), image.mean(), rtol=0.1, atol=0)


def test_weights_of_an_adapted_model_do_not_hold_the_statistics() -> None:
    plain = AdaptedInput(nn.Conv2d(3, 4, 1), size=8)
    statistics = Normalisation((0.1,) * 3, (0.2,) * 3)
    adapted = AdaptedInput(nn.Conv2d(3, 4, 1), given=statistics, wanted=Normalisation((0.5,) * 3, (0.5,) * 3))
    assert plain.state_dict().keys() == adapted.state_dict().keys()


# A user's own factory


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory that leaves a trace when it is imported."""
    (tmp_path / "own_models_of_a_user.py").write_text(
        "import pathlib\n"
        "from torch import nn\n"
        "pathlib.Path('imported').touch()\n"
        "def net(num_classes, in_channels, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(width, num_classes))\n"
        "def deaf():\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))\n"
        "def broken(num_classes):\n"
        "    raise KeyError('oops')\n"
        "def text():\n"
        "    return 'a model'\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "own_models_of_a_user", raising=False)
    return "python:own_models_of_a_user"


def test_untrusted_code_is_not_even_imported(own_module: str) -> None:
    with pytest.raises(RecipeError, match="--trust"):
        build_model(f"{own_module}:net", num_classes=5, input_shape=COLOUR)
    assert not Path("imported").exists()


def test_trusted_factory_gets_what_it_names(own_module: str) -> None:
    spec = {"name": f"{own_module}:net", "width": 6}
    model = build_model(spec, num_classes=5, input_shape=GREY, trust=True)
    assert _run(model, GREY).shape == (2, 5)
    assert (model[0].in_channels, model[0].out_channels) == (1, 6)
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("factory", "options", "said"),
    [
        (":nets", {}, "no callable 'nets'"),
        (":number", {}, "no callable 'number'"),
        ("", {}, "python:package.module:factory"),
        ("_absent:net", {}, "No module named"),
        (":net", {"widht": 3}, "unknown option 'widht'. Did you mean 'width'"),
        (":broken", {}, "KeyError"),
        (":text", {}, "returned str"),
        (":deaf", {}, r"scores of shape \(1, 5\).*gives \(1, 3\)"),
    ],
)
def test_what_is_wrong_with_a_trusted_factory_is_said(
    own_module: str, factory: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        build_model({"name": own_module + factory, **options}, num_classes=5, input_shape=COLOUR, trust=True)
