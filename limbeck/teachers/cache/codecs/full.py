"""All logits, in full or half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.signals import Signals
from limbeck.teachers.cache.codecs.base import Column, codec, narrowed


@codec("full", title="All logits, in full or half precision")
class Full:
    """Stores every logit: ``4 C`` bytes a sample, or ``2 C`` in half precision (relative error ``2**-11``).

    Args:
        dtype: ``float32`` or ``float16``.
    """

    name: ClassVar[str]

    def __init__(self, *, dtype: Literal["float32", "float16"] = "float32") -> None:
        self.dtype = dtype

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"dtype": self.dtype}

    def columns(self, classes: int) -> dict[str, Column]:
        """One column, ``logits`` ``[C]``."""
        return {"logits": Column(self.dtype, (classes,))}

    def encode(self, logits: Tensor) -> dict[str, np.ndarray]:
        """Returns the logits in the codec's type."""
        return {"logits": narrowed(logits.float().cpu().numpy(), self.dtype, "logits")}

    def decode(self, columns: Mapping[str, np.ndarray], classes: int) -> Signals:
        """Returns ``logits`` in float32."""
        return Signals(logits=torch.from_numpy(columns["logits"]).float())
