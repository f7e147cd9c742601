"""The mean loss of every row of a corpus under one model, worked out once and kept on the disk as it grows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.text.loader import TextLoader
from limbeck.errors import DataError, LimbeckError
from limbeck.functional.sequences import sequence_means
from limbeck.methods.sequence.base import token_log_probabilities
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch, Signals
from limbeck.storage import write_durably

Observe = Callable[[Batch], Signals]
Gather = Callable[[Any], list[Any]]
OnFirst = Callable[[Callable[[], Any]], Any]

_ROWS_A_FILE = 256


def row_losses(observe: Observe, batch: Batch, role: str) -> Tensor:
    """Returns the mean negative log-probability of a token of each row ``[B]``, float64, nats.

    Raises:
        NeedsError: the role does not give log-probabilities of the text.
        LimbeckError: one of them is not finite.
    """
    model = getattr(observe, "model", None)
    if isinstance(model, nn.Module):
        batch = batch.to(next(model.parameters()).device)
    mask = batch["mask"]
    with torch.no_grad():
        logprobs = token_log_probabilities(observe(batch), batch["labels"], mask)
    means = sequence_means(-logprobs.double(), mask).cpu()
    if not bool(means.isfinite().all()):
        bad = batch["index"].cpu()[~means.isfinite()][:5].tolist()
        raise LimbeckError(f"role '{role}' gives rows {bad} of the text a loss that is not finite; look at its weights")
    return means


class DocumentLosses:
    """Asks one role about all rows, in files of a few hundred; files of an earlier, interrupted run are used.

    A file is named after the role, its weights and what its rows hold, so another model, other text, another order or
    another context find none and are asked about anew.

    Args:
        role: the role's name.
        observe: gives the role's signals.
        folder: where the files lie; nothing is kept when None.
        gather: returns every process's value in every process.
        on_first: runs an action in the first process alone and gives all what it returns.
    """

    def __init__(self, role: str, observe: Observe, folder: Path | None, gather: Gather, on_first: OnFirst) -> None:
        self._role, self._observe, self._folder = role, observe, folder
        self._gather, self._on_first = gather, on_first

    def of(self, loader: TextLoader) -> Tensor:
        """Returns the loss of every row ``[N]``, float64; the processes of a run share the work."""
        rows = np.arange(len(loader.source))
        groups = [rows[start : start + _ROWS_A_FILE] for start in range(0, len(rows), _ROWS_A_FILE)]
        keys = loader.source.content_hashes()
        model = self._fingerprint()
        names = [f"{self._role}-{model}-{n:05d}-{_digest(keys[group])}.json" for n, group in enumerate(groups)]
        known: dict[int, list[float]] = self._on_first(lambda: self._read(names))
        left = [n for n in range(len(groups)) if n not in known]
        world, rank = loader.world_size, loader.rank
        for start in range(0, len(left), world):
            mine = left[start + rank : start + rank + 1]
            found = {n: self._ask(loader, groups[n]) for n in mine}
            everybody: dict[int, list[float]] = {k: v for part in self._gather(found) for k, v in part.items()}
            self._on_first(lambda new=everybody: self._write(names, new))  # type: ignore[misc]
            known |= everybody
        return torch.tensor([loss for n in range(len(groups)) for loss in known[n]], dtype=torch.float64)

    def _fingerprint(self) -> str:
        known = getattr(self._observe, "fingerprint", None)
        return str(known())[:16] if callable(known) else "unknown"

    def _ask(self, loader: TextLoader, group: np.ndarray) -> list[float]:
        losses: list[float] = []
        with evaluation_mode(getattr(self._observe, "model", None)):
            for start in range(0, len(group), loader.batch_size):
                batch = loader.batch(group[start : start + loader.batch_size], 0)
                losses += row_losses(self._observe, batch, self._role).tolist()
        return losses

    def _read(self, names: list[str]) -> dict[int, list[float]]:
        if self._folder is None:
            return {}
        return {n: _losses(self._folder / name) for n, name in enumerate(names) if (self._folder / name).is_file()}

    def _write(self, names: list[str], losses: Mapping[int, list[float]]) -> None:
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for n, values in losses.items():
                write_durably(self._folder / names[n], [json.dumps(values).encode()])
        except OSError as error:
            raise DataError(f"'{self._folder}' cannot be written: {error.strerror or error}") from None


def _digest(keys: np.ndarray) -> str:
    from limbeck.data.hashing import fingerprint

    return fingerprint([keys.astype("<u8")])[:16]


def _losses(path: Path) -> list[float]:
    try:
        return [float(loss) for loss in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"'{path}' holds no losses of text ({error}); remove it, and it is worked out again") from None
