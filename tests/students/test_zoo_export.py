from __future__ import annotations

import pytest
import torch
from zoo_families import FAMILIES, build


@pytest.mark.parametrize("name", FAMILIES)
def test_export_gives_the_same_outputs(name: str) -> None:
    model = build(name, (1, 28, 28))
    inputs = torch.randn(3, 1, 28, 28)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (inputs,), dynamic_shapes=(dynamic,), strict=False)
    with torch.no_grad():
        other = torch.randn(5, 1, 28, 28)
        torch.testing.assert_close(program.module()(other), model(other))
