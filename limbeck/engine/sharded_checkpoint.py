"""The sharded tensors of a checkpoint: written and read by all processes at once, in safetensors files.

PyTorch's distributed checkpoint does the work, with its safetensors storage: the usual one keeps its index in a
pickle. Each process writes the parts that it holds; reading fits them to any number of processes. What is not sharded
stays in the state, and a placeholder in it says where a sharded tensor belongs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.engine import distributed
from limbeck.engine.checkpoint import disk_error
from limbeck.engine.sharding import own_part
from limbeck.errors import CheckpointError

_SHARDED = "sharded tensor"


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns ``state`` with placeholders for its sharded tensors, and these by name; all processes must call it.

    A tensor that stands under two names, as the tied embeddings of a language model do, is given once.
    """
    if distributed.world_size() == 1:
        return dict(state), {}
    from torch.distributed.tensor import DTensor, Replicate

    shards: dict[str, Tensor] = {}

    def visit(value: Any, name: str) -> Any:
        if isinstance(value, DTensor):
            if any(p.is_partial() for p in value.placements):
                value = value.redistribute(placements=[Replicate()] * value.device_mesh.ndim)
            shards[name] = value
            dims = [p.dim if p.is_shard() else -1 for p in value.placements]
            return {
                _SHARDED: name,
                "shape": list(value.shape),
                "dtype": str(value.dtype).removeprefix("torch."),
                "dims": dims,
            }
        if isinstance(value, Mapping):
            return {key: visit(v, f"{name}.{key}") for key, v in value.items()}
        return value

    marked = {key: visit(value, str(key)) for key, value in state.items()}
    ties = _ties(shards)
    return _renamed(marked, ties), {name: tensor for name, tensor in shards.items() if name not in ties}


def _ties(shards: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns under which other name a tensor stands already, for those that do, the same in all processes."""
    first: dict[tuple[int, torch.Size], str] = {}
    own: dict[str, str] = {}
    for name, tensor in shards.items():
        place = own_part(tensor).data_ptr()
        # A process may hold nothing of a small tensor, and then another one knows.
        if place:
            known = first.setdefault((place, tensor.shape), name)
            if known != name:
                own[name] = known
    return {name: known for ties in distributed.gather_objects(own) for name, known in ties.items()}


def _renamed(value: Any, ties: Mapping[str, str]) -> Any:
    if not isinstance(value, dict):
        return value
    if _SHARDED in value:
        return {**value, _SHARDED: ties.get(value[_SHARDED], value[_SHARDED])}
    return {key: _renamed(v, ties) for key, v in value.items()}


def write(folder: Path, shards: Mapping[str, Tensor]) -> None:
    """Writes this process's parts into ``folder``; all processes must call it.

    Raises:
        RunFolderError: a process could not write, because the disk is full for example; raised in all.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter, save

    try:
        save(dict(shards), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        causes = [wrapped[0] for wrapped in error.failures.values()]
        said = next((c for c in causes if isinstance(c, OSError)), OSError(str(causes[0]) if causes else str(error)))
        raise disk_error(said, folder) from None


def join(state: Any, folder: Path) -> Any:
    """Returns ``state`` with its placeholders filled from ``folder``; all processes must call it.

    Raises:
        CheckpointError: the folder does not hold what the state says.
    """
    empty: dict[str, Tensor] = {}
    filled = _prepared(state, empty)
    if empty:
        from safetensors import SafetensorError
        from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, load

        try:
            with warnings.catch_warnings():
                # One process that reads what several wrote is meant to.
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                load(empty, storage_reader=HuggingFaceStorageReader(str(folder)))
        except (CheckpointException, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the sharded checkpoint '{folder}' cannot be read: {distributed.first_line(error)}"
            ) from None
    return filled


def _prepared(value: Any, empty: dict[str, Tensor]) -> Any:
    """Puts a tensor to be filled in place of each placeholder, and into ``empty`` by name."""
    if not isinstance(value, dict):
        return value
    if _SHARDED in value:
        name = str(value[_SHARDED])
        if name not in empty:
            empty[name] = _empty(value["shape"], getattr(torch, value["dtype"]), value["dims"])
        return empty[name]
    return {key: _prepared(v, empty) for key, v in value.items()}


def _empty(shape: list[int], dtype: torch.dtype, dims: list[int]) -> Tensor:
    if distributed.world_size() == 1:
        return torch.zeros(shape, dtype=dtype)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, zeros

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (distributed.world_size(),))
    placements = [Replicate() if dim < 0 else Shard(dim) for dim in dims]
    return zeros(*shape, dtype=dtype, device_mesh=mesh, placements=placements)
