"""The files in which TinyViT's authors keep a teacher's outputs, for exchange with their code.

Each epoch is a folder ``logits_top<K>_epoch<e>``; each writer's rank has two files there: ``rank<r>-keys.txt``, one key
a line, and ``rank<r>-values.bin``, one record of ``4 + 4 K`` bytes for each key: the seed of the sample's augmentation
(int32), the ``K`` most probable classes (16 bits each) and their probabilities in half precision, little endian, the
largest first. limbeck's own caches need no seed a sample, check what they are read for, and are smaller.

Reference:
    Wu et al., TinyViT: Fast Pretraining Distillation for Small Vision Transformers, ECCV 2022,
    https://arxiv.org/abs/2207.10666
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import CacheError
from limbeck.storage import write_durably

_MOST_CLASSES = 1 << 16
_SEEDS = 1 << 31


@dataclass(frozen=True)
class Records:
    """What a teacher said of ``N`` views.

    Attributes:
        seeds: ``[N]`` int64 seed of each view's augmentation.
        indices: ``[N, K]`` int64 classes, the most probable first.
        probabilities: ``[N, K]`` float32, as half precision holds them; not renormalised.
    """

    seeds: np.ndarray
    indices: Tensor
    probabilities: Tensor


def _layout(k: int) -> np.dtype[np.void]:
    # Unsigned, so that classes from 32,768 on survive; below that the bytes are those of the authors' int16.
    return np.dtype([("seed", "<i4"), ("index", "<u2", (k,)), ("probability", "<f2", (k,))])


def encode(probabilities: Tensor, seeds: np.ndarray, *, k: int) -> np.ndarray:
    """Returns the records of a batch as bytes.

    Args:
        probabilities: ``[N, C]`` over all classes.
        seeds: ``[N]`` in [0, 2**31).
        k: classes kept.

    Returns:
        ``[N, 4 + 4 k]`` uint8.

    Raises:
        CacheError: a seed or the number of classes does not fit the format, or ``k`` is more than the classes.
    """
    classes = probabilities.shape[-1]
    if classes > _MOST_CLASSES:
        raise CacheError(f"TinyViT's records number classes with 16 bits, but there are {classes}; use a limbeck cache")
    if not 0 < k <= classes:
        raise CacheError(f"k = {k} should lie between 1 and the {classes} classes")
    if len(seeds) and (int(np.min(seeds)) < 0 or int(np.max(seeds)) >= _SEEDS):
        raise CacheError("a record's seed should lie between 0 and 2**31 - 1")
    kept, indices = probabilities.topk(k, dim=-1)
    rows = np.zeros(len(probabilities), _layout(k))
    rows["seed"], rows["index"], rows["probability"] = seeds, indices.cpu().numpy(), kept.cpu().numpy()
    return rows.view(np.uint8).reshape(len(rows), -1)


def decode(values: np.ndarray, *, k: int) -> Records:
    """Returns what :func:`encode` wrote.

    Raises:
        CacheError: the bytes are no whole number of records of ``k`` classes.
    """
    layout = _layout(k)
    flat = np.ascontiguousarray(values, dtype=np.uint8).reshape(-1)
    if flat.size % layout.itemsize:
        raise CacheError(
            f"{flat.size} bytes are no whole number of records of {layout.itemsize} bytes (k = {k}); "
            "the file is cut off, or was written with another k"
        )
    rows = flat.view(layout)
    probabilities = torch.from_numpy(rows["probability"].astype(np.float32))
    return Records(rows["seed"].astype(np.int64), torch.from_numpy(rows["index"].astype(np.int64)), probabilities)


def _files(folder: Path, epoch: int, rank: int, k: int) -> tuple[Path, Path]:
    within = folder / f"logits_top{k}_epoch{epoch}"
    return within / f"rank{rank}-keys.txt", within / f"rank{rank}-values.bin"


def write_records(
    folder: str | Path,
    keys: Sequence[str],
    probabilities: Tensor,
    seeds: np.ndarray,
    *,
    k: int,
    epoch: int,
    rank: int = 0,
) -> None:
    """Writes one rank's files of one epoch. Of a key that comes twice, as padding does, the first counts.

    Args:
        folder: the folder that holds all epochs.
        keys: a name of each sample, without line breaks.
        probabilities: ``[N, C]`` over all classes.
        seeds: ``[N]`` seed of each view.
        k: classes kept.
        epoch: number of the epoch.
        rank: number of the writer.

    Raises:
        CacheError: keys and samples differ in number, a key has a line break, or a number does not fit the format.
    """
    if len(keys) != len(probabilities):
        raise CacheError(f"there are {len(keys)} keys but {len(probabilities)} samples")
    if any("\n" in key or not key for key in keys):
        raise CacheError("a key should be a name without line breaks")
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    rows = encode(probabilities, seeds, k=k)[list(first.values())]
    names, values = _files(Path(folder), epoch, rank, k)
    names.parent.mkdir(parents=True, exist_ok=True)
    write_durably(values, [rows.tobytes()])
    write_durably(names, ["".join(f"{key}\n" for key in first).encode()])


def read_records(folder: str | Path, *, k: int, epoch: int, rank: int = 0) -> tuple[list[str], Records]:
    """Reads one rank's files of one epoch.

    Returns:
        The keys and what the teacher said of each.

    Raises:
        CacheError: a file is absent or cut off, was written with another ``k``, or has another number of keys.
    """
    names, values = _files(Path(folder), epoch, rank, k)
    try:
        # Only what ends a key's line here may end it: names hold other separators too.
        text = names.read_bytes().decode("utf-8").removesuffix("\n")
        keys = text.split("\n") if text else []
        records = decode(np.fromfile(values, dtype=np.uint8), k=k)
    except (OSError, UnicodeDecodeError) as error:
        raise CacheError(f"no records of epoch {epoch}, rank {rank}, k = {k} in '{folder}': {error}") from None
    if len(keys) != len(records.seeds):
        raise CacheError(f"'{names}' has {len(keys)} keys, but '{values}' has {len(records.seeds)} records")
    return keys, records
