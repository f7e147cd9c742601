"""Several processes under torchrun: who they are, what they tell each other, and how they fail together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import LimbeckError, RecipeError
from limbeck.signals import UNLABELLED, Batch, Signals

T = TypeVar("T")


class PeerLostError(LimbeckError, RuntimeError):
    """Another process of the run ended, so this one cannot go on."""


def start() -> bool:
    """Joins the process group when torchrun started this process; does nothing otherwise.

    Tensors on the CPU travel by gloo, those on GPUs by nccl.

    Returns:
        Whether this call joined it, and not an earlier one.

    Raises:
        RecipeError: the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ or dist.is_initialized():
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot reach the others "
            f"({first_line(error)}); start them all with torchrun"
        ) from None
    return True


@contextmanager
def session() -> Iterator[None]:
    """Joins the process group for a while, and leaves it unless somebody else had joined it before.

    Raises:
        PeerLostError: instead of the error of an exchange with a process that has ended.
    """
    started = start()
    try:
        yield
    except BaseException as error:
        if started and getattr(error, "everywhere", False):
            _stop()
        # Otherwise others may hang in an exchange: the process that ends tells them, a good-bye would wait for them.
        lost = _lost_peer(error)
        if lost is None:
            raise
        raise lost from None
    if started:
        _stop()


def _stop() -> None:
    dist.barrier()
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


def totals(counts: Iterable[float]) -> list[float]:
    """Returns the sum of each count over all processes, in one exchange."""
    values = torch.tensor([float(count) for count in counts], dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(values)
    return [float(value) for value in values]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process, so that all act together."""
    return flag if world_size() == 1 else totals([flag])[0] > 0


def broadcast_object(value: T) -> T:
    """Returns the first process's value in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Returns every process's value in every process, in rank order."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def on_first(action: Callable[[], T]) -> T:
    """Runs ``action`` in the first process alone; every process gets what it returns, or raises what it raises.

    Writing belongs here: a full disk or a folder in use ends all processes with the same message, and none waits for
    one that is gone.
    """
    if world_size() == 1:
        return action()
    outcome = broadcast_object(_attempt(action) if rank() == 0 else None)
    assert outcome is not None
    return _result(outcome)


def together(action: Callable[[], T]) -> T:
    """Runs ``action``, which exchanges nothing, in every process; where one raises, all raise the first one's error."""
    if world_size() == 1:
        return action()
    mine = _attempt(action)
    errors = gather_objects(mine[1])
    failed = next((error for error in errors if error is not None), None)
    return _result((mine[0], failed))


_Outcome = tuple[Any, tuple[type[Exception], str] | None]


def _attempt(action: Callable[[], Any]) -> _Outcome:
    try:
        return action(), None
    except LimbeckError as error:
        return None, (type(error), str(error))


def _result(outcome: _Outcome) -> Any:
    value, failed = outcome
    if failed is None:
        return value
    kind, message = failed
    # The constructor of an error may want more than its message.
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.everywhere = True  # type: ignore[attr-defined]
    raise error


def gather(value: Tensor, fill: float = 0) -> Tensor:
    """Returns the rows ``[B, ...]`` of all processes in rank order.

    Parts may differ in the number of rows, and in their other sizes, as sequences do: all are then padded to the
    longest at the end.

    Every process must compute the same loss from what it gets. Then the gradient of the rows is known everywhere, and
    flows back to each process's own part without another exchange: times the number of processes, over which data
    parallelism averages.

    Args:
        value: this process's rows.
        fill: what pads them.
    """
    return value if world_size() == 1 else _GatheredRows.apply(value, fill)


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, fill: float) -> Tensor:
        size = torch.tensor(tensor.shape, device=tensor.device)
        sizes = [torch.empty_like(size) for _ in range(world_size())]
        dist.all_gather(sizes, size)
        shapes = torch.stack(sizes).tolist()
        counts = [int(shape[0]) for shape in shapes]
        largest = [max(lengths) for lengths in zip(*shapes)]
        before = sum(counts[: rank()])
        ctx.own = (slice(before, before + len(tensor)), *(slice(length) for length in tensor.shape[1:]))
        padded = tensor.new_full(largest, fill)
        padded[tuple(slice(length) for length in tensor.shape)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0][ctx.own] * world_size(), None


def gather_batch(batch: Batch, needed: Iterable[str] = ()) -> Batch:
    """Returns the batch of all processes, without what only models read: inputs and views, unless ``needed``.

    Where sequences are padded to one length, no padding is to be learnt.
    """
    kept = set(needed)
    entries = {k: v for k, v in batch.items() if k in kept or not (k == "views" or k.endswith("inputs"))}
    labels = {k: gather(v, UNLABELLED) for k, v in entries.items() if k.endswith("labels") and isinstance(v, Tensor)}
    return Batch({**Batch({k: v for k, v in entries.items() if k not in labels}).map(gather), **labels})


def gather_signals(signals: dict[str, Signals]) -> dict[str, Signals]:
    """Returns the signals of all processes by role; gradients flow back to each process's own part.

    Output layers are every process's own: they are the same in all of them.
    """
    return {role: s.map_rows(gather) for role, s in signals.items()}


def share(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors with those of the first process, in one exchange a type."""
    for same in _by_type(tensors):
        flat = torch.cat([t.detach().reshape(-1) for t in same])
        dist.broadcast(flat, src=0)
        _put(flat, same)


def share_module(module: nn.Module) -> None:
    """Gives every process the parameters and buffers of the first; does nothing when alone."""
    if world_size() > 1:
        share([*module.parameters(), *module.buffers()])


def share_buffers(modules: Iterable[nn.Module]) -> None:
    """Gives every process the buffers (running statistics) of the first; does nothing when alone."""
    if world_size() > 1:
        share([buffer for module in modules for buffer in module.buffers()])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over processes, for steps with several players that DDP cannot follow."""
    average(p.grad for p in parameters if p.grad is not None)


def average(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors with their means over processes, in one exchange a type."""
    for same in _by_type(tensors):
        flat = torch.cat([t.reshape(-1) for t in same])
        dist.all_reduce(flat)
        _put(flat / world_size(), same)


def _by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


@torch.no_grad()
def _put(flat: Tensor, into: list[Tensor]) -> None:
    for tensor, part in zip(into, flat.split([t.numel() for t in into])):
        tensor.copy_(part.view_as(tensor))


def _lost_peer(error: BaseException) -> PeerLostError | None:
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "Socket closed",
        "NCCL",
        "heartbeat",
    )
    if world_size() == 1 or not isinstance(error, RuntimeError) or not any(sign in str(error) for sign in signs):
        return None
    return PeerLostError("another process of this run has ended; its message says why")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
