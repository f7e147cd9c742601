"""What models say about a whole test set, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import CheckpointError, DataError, LimbeckError
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch, Signals
from limbeck.tasks.base import Task

Model = nn.Module | Callable[[Batch], Signals]
"""A live model, or a provider."""


@dataclass(frozen=True)
class Predictions:
    """Logits of several roles on the same samples, in the order of the samples' ids.

    Attributes:
        index: ``[N]`` stable sample ids, increasing.
        labels: ``[N]`` class indices.
        logits: ``[N, C]`` float32 by role.
    """

    index: Tensor
    labels: Tensor
    logits: Mapping[str, Tensor]

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with ``index``, ``labels`` and ``logits.<role>``."""
        from safetensors.torch import save_file

        tensors = {"index": self.index, "labels": self.labels, **{f"logits.{r}": t for r, t in self.logits.items()}}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Reads what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is absent, corrupt or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(str(path))
            logits = {name.removeprefix("logits."): t for name, t in tensors.items() if name.startswith("logits.")}
            return cls(tensors["index"], tensors["labels"], logits)
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(
                f"'{path}' does not hold predictions ({error}); evaluate the run again to write them"
            ) from None


def batches_of(loader: Any) -> Iterable[Batch]:
    """Returns the batches of a loader (its epoch 0), or the batches themselves."""
    return loader.epoch(0) if hasattr(loader, "epoch") else loader


def predict(models: Mapping[str, Model], loader: Any, task: Task, *, device: torch.device | str = "cpu") -> Predictions:
    """Runs every model once over the data, in eval mode and without gradients; training flags are restored.

    Args:
        models: a live model or a provider by role.
        loader: batches, or an object whose ``epoch(0)`` gives them.
        task: how a model is run.
        device: where the batches go; the models should be there.

    Raises:
        DataError: the data is empty or has no labels.
        LimbeckError: a model gives NaN or infinite scores.
    """
    index: list[Tensor] = []
    labels: list[Tensor] = []
    logits: dict[str, list[Tensor]] = {role: [] for role in models}
    with evaluation_mode(*models.values()):
        for batch in batches_of(loader):
            batch = batch.to(device)
            task.check(batch, None)
            for role, model in models.items():
                logits[role].append(_finite(role, _logits(role, model, batch, task), batch))
            index.append(batch["index"].cpu())
            labels.append(batch["labels"].cpu())
    if not index:
        raise DataError("the test data is empty; there is nothing to evaluate on")
    order = torch.cat(index).argsort(stable=True)
    return Predictions(
        torch.cat(index)[order],
        torch.cat(labels)[order],
        {role: torch.cat(parts)[order] for role, parts in logits.items()},
    )


def _logits(role: str, model: Model, batch: Batch, task: Task) -> Tensor:
    signals = task.run(model, batch.inputs_for(role)) if isinstance(model, nn.Module) else model(batch)
    if signals.logits is None:
        raise DataError(f"role '{role}' gives no logits for the test data, so its predictions cannot be judged")
    return signals.logits.float().cpu()


def _finite(role: str, logits: Tensor, batch: Batch) -> Tensor:
    """Returns the logits; a class may be excluded by ``-inf``, but NaN and ``inf`` say nothing."""
    bad = (logits.isnan() | (logits == torch.inf)).any(1)
    if bool(bad.any()):
        where = batch["index"].cpu()[bad][:5].tolist()
        raise LimbeckError(
            f"role '{role}' gives NaN or infinite scores for {int(bad.sum())} of {batch.size} samples (ids {where}); "
            "its weights have diverged or its inputs are not finite"
        )
    return logits
