"""One small model of each family of the zoo, and how to build it."""

from __future__ import annotations

from torch import nn

from limbeck.students.loading import build_model

FAMILIES = (
    "resnet8",
    "resnet8x4",
    "resnet50",
    "wrn_16_1",
    "vgg8",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
    "vit_micro",
    "mlp",
    "small_cnn",
)


def build(name: str, shape: tuple[int, ...] = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    """Returns a model of the zoo in eval mode."""
    return build_model(name, num_classes=num_classes, input_shape=shape).eval()
