from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo_families import FAMILIES, build

from limbeck.errors import RecipeError, UnknownNameError
from limbeck.students.base import models
from limbeck.students.loading import build_model
from limbeck.students.mobilenet import mobilenet_v2
from limbeck.students.resnet import resnet8x4, resnet20
from limbeck.students.vit import vit

# Trainable parameters for CIFAR-100 (100 classes, 3 channels) as counted in the models of RepDistiller and mdistiller,
# the code that came with CRD (arXiv 1910.10699) and DKD (arXiv 2203.08679), on which this literature's tables
# were made.
PUBLISHED = {
    "resnet20": 278_324,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenet_v2": 812_836,
    "shufflenet_v1": 949_258,
    "shufflenet_v2": 1_355_528,
}


def _cifar_resnet_parameters(depth: int) -> int:
    """The count by hand: 3x3 convolutions and normalisations of 6n+2 layers, two projections, the classifier."""

    def convolution(a: int, b: int, k: int) -> int:
        return a * b * k * k + 2 * b

    n = (depth - 2) // 6
    total = convolution(3, 16, 3) + 64 * 100 + 100
    for a, b in ((16, 16), (16, 32), (32, 64)):
        total += convolution(a, b, 3) + (2 * n - 1) * convolution(b, b, 3) + (convolution(a, b, 1) if a != b else 0)
    return total


def _wide_resnet_parameters(depth: int, width: int) -> int:
    """The count by hand: a normalisation before each 3x3 convolution, a plain projection where the width changes."""
    n = (depth - 4) // 6
    total, a = 3 * 16 * 9, 16
    for b in (16 * width, 32 * width, 64 * width):
        total += 2 * a + 9 * a * b + (2 * n - 1) * (2 * b + 9 * b * b) + (a * b if a != b else 0)
        a = b
    return total + 2 * a + a * 100 + 100


DERIVED = {f"resnet{depth}": _cifar_resnet_parameters(depth) for depth in (8, 14, 20, 32, 44, 56, 110)} | {
    f"wrn_{d}_{w}": _wide_resnet_parameters(d, w) for d, w in ((16, 1), (16, 2), (40, 1), (40, 2))
}

ZOO = sorted(name for name in models if name != "efficientnet_lite0")


@pytest.mark.parametrize("name", [entry.name for entry in models.entries() if entry.about["params"]])
def test_parameter_count_for_cifar100(name: str) -> None:
    model = build_model(name, num_classes=100, input_shape=(3, 32, 32))
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == models[name].about["params"]
    assert count == PUBLISHED.get(name, count)
    assert count == DERIVED.get(name, count)


def test_every_published_model_is_in_the_zoo() -> None:
    assert set(PUBLISHED) <= set(models)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", ZOO)
def test_runs_on_small_images(name: str, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        logits = build(name, shape)(torch.randn(2, *shape))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_same_seed_same_weights(name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_convolutions_start_from_he_normal() -> None:
    weight = resnet8x4(num_classes=10).get_submodule("stages.2.0.conv2").weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    head = mobilenet_v2(num_classes=10).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.bias.any()


def test_transformer_attends_like_the_reference() -> None:
    model = vit(num_classes=4, dim=12, depth=3, heads=3)
    attention = model.get_submodule("stages.0.0.attention")
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.out.weight,
            "out_proj.bias": attention.out.bias,
        }
    )
    tokens = torch.randn(2, 7, 12)
    torch.testing.assert_close(attention(tokens), reference(tokens, tokens, tokens, need_weights=False)[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"patch_size": 5}, "patch_size = 5"),
        ({"dim": 10, "heads": 3}, "heads = 3"),
        ({"depth": 2}, "depth = 2"),
        ({"dropout": 1.5}, "dropout"),
        ({"widht": 3}, "widht"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        build_model({"name": "vit", **options}, num_classes=10, input_shape=(3, 32, 32))


def test_constructors_check_their_keywords() -> None:
    with pytest.raises(RecipeError, match="num_classes"):
        resnet20(num_classes=0)
    with pytest.raises(RecipeError, match="in_channels"):
        resnet20(num_classes=10, inchannels=3)


def test_unknown_model_gets_suggestions() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean .*'resnet20'"):
        build_model("resnet2O", num_classes=10, input_shape=(3, 32, 32))
