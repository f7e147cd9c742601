"""Makes torchvision importable beside a torch build that its compiled part does not fit.

The wheels on the public registry pair torchvision with the CUDA build of torch. Beside a CPU build its compiled
operators do not load, and its Python part then fails at import because it describes operators that nobody declared.
Libraries that merely look whether torchvision is installed (transformers, timm, torchmetrics) fail with it. Declaring
the missing operators is enough for models, transforms and data sets; only the operators themselves (non-maximum
suppression, decoding) stay unavailable.
"""

from __future__ import annotations

import functools
import importlib
import sys

import torch

_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []


@functools.cache
def ensure_torchvision() -> bool:
    """Imports torchvision, repairing the import where it must be; call before importing anything that may import it.

    Returns:
        Whether torchvision is there.

    Raises:
        RuntimeError: torchvision fails to import for another reason than its missing operators.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return False
    except RuntimeError as error:
        if not any(f"torchvision::{name}" in str(error) for name in _OPERATORS):
            raise
        _forget_partial_import()
        _declare_operators()
        importlib.import_module("torchvision")
    return True


def _forget_partial_import() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare_operators() -> None:
    # A Library un-declares its operators when it is collected, so it is kept for the life of the process.
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
