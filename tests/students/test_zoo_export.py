from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo_families import FAMILIES, build


def _with_running_statistics(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Sets the running statistics to those of a batch; fresh ones let the scores of some models vanish."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(torch.randn(16, *shape))
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_export_gives_the_same_outputs(name: str) -> None:
    model = _with_running_statistics(build(name, (1, 28, 28)), (1, 28, 28))
    inputs = torch.randn(3, 1, 28, 28)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (inputs,), dynamic_shapes=(dynamic,), strict=False)
    with torch.no_grad():
        other = torch.randn(5, 1, 28, 28)
        expected = model(other)
        assert expected.std() > 1e-3
        torch.testing.assert_close(program.module()(other), expected)
