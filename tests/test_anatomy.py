from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.anatomy import Anatomy, anatomy_of, head_of
from limbeck.errors import TapError
from limbeck.taps import Taps


def _shapes(model: nn.Module, inputs: torch.Tensor) -> dict[str, list[tuple[int, ...]]]:
    taps = Taps(model.eval(), anatomy_of(model).groups())
    taps.listen()
    with torch.no_grad():
        model(inputs)
    return {group: [tuple(t.shape[1:]) for t in tensors] for group, tensors in taps.collect().items()}


def test_torchvision_resnet() -> None:
    from torchvision.models import resnet18

    model = resnet18(num_classes=7)
    assert _shapes(model, torch.randn(1, 3, 64, 64)) == {
        "stem": [(64, 32, 32)],
        "stages": [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)],
        "pooled": [(512,)],
    }
    assert head_of(model) is model.fc


@pytest.mark.parametrize(
    ("name", "stages", "pooled", "head"),
    [
        ("resnet10t", [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)], 512, "fc"),
        ("mobilenetv3_small_050", [(8, 8, 8), (16, 4, 4), (24, 2, 2), (288, 1, 1)], 1024, "classifier"),
        ("convnext_atto", [(40, 8, 8), (80, 4, 4), (160, 2, 2), (320, 1, 1)], 320, "head.fc"),
    ],
)
def test_timm_convolutional_network(name: str, stages: list[tuple[int, ...]], pooled: int, head: str) -> None:
    import timm

    model = timm.create_model(name, num_classes=7)
    shapes = _shapes(model, torch.randn(1, 3, 32, 32))
    assert shapes["stages"] == stages
    assert shapes["pooled"] == [(pooled,)]
    assert anatomy_of(model).head == head


def test_timm_transformer_has_a_head_but_no_maps() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=7)
    assert anatomy_of(model) == Anatomy(pooled=("head@in",), head="head")


def test_distilled_model_reads_its_ordinary_head() -> None:
    import timm

    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=7)
    assert anatomy_of(model).head == "head"


def test_transformers_residual_network() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    model = ResNetForImageClassification(config)
    assert _shapes(model, torch.randn(1, 3, 32, 32))["stages"] == [(8, 8, 8), (16, 4, 4)]
    assert head_of(model).out_features == 5


def test_any_module_has_its_last_linear_layer_as_head() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    assert anatomy_of(model) == Anatomy(pooled=("3@in",), head="3")
    assert _shapes(model, torch.randn(2, 3, 4)) == {"pooled": [(6,)]}


def test_own_anatomy_takes_precedence() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model.anatomy = Anatomy(stages=("0",), head="0")
    assert anatomy_of(model).stages == ("0",)
    assert head_of(model) is model[0]


def test_a_model_without_a_classifier_says_what_to_do() -> None:
    with pytest.raises(TapError, match="anatomy"):
        head_of(nn.Sequential(nn.Conv2d(3, 8, 3)))


def test_moved_under_a_parent() -> None:
    moved = Anatomy(stem=("a",), stages=("b.0", "b.1@in"), norms=("c",), head="d").under("network")
    assert moved == Anatomy(
        stem=("network.a",), stages=("network.b.0", "network.b.1@in"), norms=("network.c",), head="network.d"
    )
    assert Anatomy().under("network") == Anatomy()
