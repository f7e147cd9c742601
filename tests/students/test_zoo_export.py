from __future__ import annotations

import pytest
import torch
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


def _build(name: str, shape: tuple[int, ...] = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    return build_model(name, num_classes=num_classes, input_shape=shape).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_export_gives_the_same_outputs(name: str) -> None:
    model = _build(name, (1, 28, 28))
    inputs = torch.randn(3, 1, 28, 28)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (inputs,), dynamic_shapes=(dynamic,), strict=False)
    with torch.no_grad():
        other = torch.randn(5, 1, 28, 28)
        torch.testing.assert_close(program.module()(other), model(other))
