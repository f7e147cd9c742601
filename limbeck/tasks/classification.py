"""Classification: one label a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError
from limbeck.signals import Batch, Signals
from limbeck.tasks.base import tasks


@tasks.register("classification")
class Classification:
    """Runs models that give class scores: a tensor ``[B, C]``, or a record with ``logits`` as transformers has."""

    def run(self, model: nn.Module, inputs: Any, wanted: frozenset[str] = frozenset()) -> Signals:
        """Returns the logits of ``model`` on ``inputs``."""
        output = model(inputs)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise DataError(f"{type(model).__name__} should give class scores [batch, classes], but gave {got}")
        return Signals(logits=logits)

    def check(self, batch: Batch, num_classes: int | None) -> None:
        """Refuses labels that are missing or outside ``[0, num_classes)``."""
        labels = batch.get("labels")
        if labels is None:
            raise DataError("classification needs labels, but the data set gives none")
        if num_classes is not None and not labels.is_floating_point():
            known = batch.get("labelled_mask", torch.ones_like(labels, dtype=torch.bool))
            bad = ((labels < 0) | (labels >= num_classes)) & known
            if bool(bad.any()):
                where = batch["index"][bad][:5].tolist()
                what = torch.unique(labels[bad])[:5].tolist()
                raise DataError(
                    f"labels {what} of samples {where} are outside 0..{num_classes - 1}, the model's classes"
                )
