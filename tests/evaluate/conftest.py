"""The outside reference for calibration."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def multiclass_calibration_error() -> Callable[..., Any]:
    """The torchmetrics function.

    torchmetrics imports torchvision where it is installed, and a torchvision built for another device than torch
    fails to import: then torchmetrics is loaded as if torchvision were absent.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [n for n in sys.modules if n.split(".")[0] in ("torchvision", "torchmetrics")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error


_KEPT: list[Any] = []
