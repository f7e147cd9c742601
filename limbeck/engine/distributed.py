"""Several processes under torchrun: PyTorch's own engine does the work, this file names what a stage asks of it."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.signals import Batch, Signals

G = TypeVar("G", Batch, dict[str, Signals])


def start() -> None:
    """Joins the process group when torchrun started this process; does nothing otherwise."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized() and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leaves the process group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Waits for every process."""
    if world_size() > 1:
        dist.barrier()


def total(count: float | Tensor) -> Tensor:
    """Returns the sum of a count over all processes."""
    value = torch.as_tensor(count, dtype=torch.float64).clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value.float()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process, so that all act together."""
    return flag if world_size() == 1 else bool(total(float(flag)) > 0)


def gather(value: G) -> G:
    """Returns the batch or signals of all processes, in rank order; gradients flow back to each process's own part."""
    if isinstance(value, Batch):
        return value.map(_gather_rows)
    return {role: signals.map(_gather_rows) for role, signals in value.items()}


def _gather_rows(tensor: Tensor) -> Tensor:
    from torch.distributed.nn.functional import all_gather

    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([tensor.shape[0]]))
    longest = int(max(sizes))
    padded = torch.cat([tensor, tensor.new_zeros(longest - tensor.shape[0], *tensor.shape[1:])]) if longest > len(tensor) else tensor
    if padded.requires_grad:
        parts = list(all_gather(padded.contiguous()))
    else:
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes)])


def wrap(step: nn.Module, sharding: str) -> nn.Module:
    """Returns ``step`` wrapped so that every process computes the same gradient; unchanged when alone.

    Raises:
        RecipeError: the sharding is not known.
    """
    if world_size() == 1:
        return step
    if sharding == "ddp":
        # Methods may leave parameters unused (SimKD never touches the student's own classifier), which plain DDP refuses.
        return nn.parallel.DistributedDataParallel(step, find_unused_parameters=True)
    if sharding == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for child in step.children():
            for block in child.children() if isinstance(child, nn.ModuleDict) else [child]:
                if any(True for _ in block.parameters()):
                    fully_shard(block)
        fully_shard(step)
        return step
    raise RecipeError(f"unknown sharding '{sharding}'; use ddp or fsdp")
