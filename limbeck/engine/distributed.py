"""Several processes under torchrun: PyTorch's own engine does the work, this file names what a stage asks of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.signals import Batch, Signals

G = TypeVar("G", Batch, dict[str, Signals])
T = TypeVar("T")


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


def synchronised(step: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Returns a context in which gradients are exchanged only when ``last`` is set: once a batch, not once a micro-batch."""
    if last or not isinstance(step, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return step.no_sync()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over processes, for steps with several players that DDP cannot follow."""
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def broadcast_object(value: T) -> T:
    """Returns the first process's value in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def full_state(module: nn.Module) -> dict[str, Any]:
    """Returns a module's whole state on the CPU, gathered where it is sharded."""
    if world_size() == 1:
        return module.state_dict()
    api, options = _state_api()
    return api.get_model_state_dict(module, options=options)  # type: ignore[no-any-return]


def load_full_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Loads a whole state into a module, sharded or not."""
    if world_size() == 1:
        module.load_state_dict(state)
        return
    api, options = _state_api()
    api.set_model_state_dict(module, dict(state), options=options)


def full_optimizer_states(step: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """Returns each optimizer's whole state by player."""
    if world_size() == 1:
        return {who: optimizer.state_dict() for who, optimizer in optimizers.items()}
    api, options = _state_api()
    return {who: api.get_optimizer_state_dict(step, optimizer, options=options) for who, optimizer in optimizers.items()}


def load_full_optimizer_states(step: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], states: Mapping[str, Any]) -> None:
    """Loads what :func:`full_optimizer_states` returned."""
    if world_size() == 1:
        for who, optimizer in optimizers.items():
            optimizer.load_state_dict(states[who])
        return
    api, options = _state_api()
    for who, optimizer in optimizers.items():
        api.set_optimizer_state_dict(step, optimizer, states[who], options=options)


def _state_api() -> Any:
    # Imported here because it costs a second that a single process need not spend.
    from torch.distributed.checkpoint import state_dict

    return state_dict, state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
