"""How processes share a step: copies of everything (DDP) or a part of every parameter each (FSDP2)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import distributed
from limbeck.errors import RecipeError
from limbeck.taps import untap

_GROUP_SIZE = 1_000_000
"""Parameters from which on a block is gathered and freed by itself; smaller ones go with what surrounds them."""


def wrap(step: nn.Module, sharding: str, taps: Mapping[str, Collection[str]] | None = None) -> nn.Module:
    """Returns ``step`` wrapped so that every process gets the mean of all gradients; unchanged when alone.

    All processes start from the first one's parameters and buffers. Buffers are not exchanged in the forward pass:
    the stage does it after each step (:func:`limbeck.engine.distributed.share_buffers`), so that what follows the
    student, a moving average for example, is the same everywhere.

    Args:
        step: the step.
        sharding: ``ddp``, ``fsdp``, or ``none`` where the caller averages gradients itself.
        taps: tap paths by learner.

    Raises:
        RecipeError: the sharding is not known.
    """
    if distributed.world_size() == 1:
        return step
    distributed.share_module(step)
    if sharding == "none":
        return step
    if sharding == "ddp":
        # A method may leave parameters unused (SimKD never reads the student's own classifier), which DDP refuses.
        data_parallel = nn.parallel.DistributedDataParallel
        # The name of this option changes in PyTorch 2.13.
        names = inspect.signature(data_parallel).parameters
        exchange = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        options: dict[str, Any] = {exchange: False}
        return data_parallel(step, find_unused_parameters=True, **options)
    if sharding == "fsdp":
        return _shard(step, taps or {})
    raise RecipeError(f"unknown sharding '{sharding}'; use ddp or fsdp")


def _shard(step: nn.Module, taps: Mapping[str, Collection[str]]) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(step.parameters()).device.type, (distributed.world_size(),))
    for role, learner in step.get_submodule("learners").named_children():
        for block in _blocks(learner, taps.get(role, ())):
            fully_shard(block, mesh=mesh)
        # Gradients may enter by a tap and not by the output, at which FSDP would make the parameters whole again.
        fully_shard(learner, mesh=mesh, reshard_after_forward=False)
    # The method's parts may be called in any order, so its parameters too stay whole between forward and backward.
    fully_shard(step, mesh=mesh, reshard_after_forward=False)
    return step


def _blocks(model: nn.Module, taps: Collection[str]) -> Iterable[nn.Module]:
    """Yields large blocks that can be gathered and freed by themselves, innermost first.

    These are entries of sequences and lists, which are surely run by being called, without taps inside.
    """
    for path, module in reversed(list(model.named_modules())):
        parent = model.get_submodule(path.rpartition(".")[0])
        entry = isinstance(parent, (nn.Sequential, nn.ModuleList)) and not isinstance(
            module, (nn.ModuleList, nn.ModuleDict)
        )
        tapped_inside = any(tap.startswith(f"{path}.") for tap in taps)
        if path and entry and not tapped_inside and sum(p.numel() for p in module.parameters()) >= _GROUP_SIZE:
            yield module


def synchronised(step: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Returns a context in which gradients are exchanged only when ``last``: once a batch, not once a micro-batch."""
    if last or not isinstance(step, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return step.no_sync()


class Blueprint:
    """A module without its tensors' data, from which plain copies of it are made once it is sharded.

    Args:
        module: a module, not sharded yet.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {n: _outline(p) for n, p in module.named_parameters()}
        self._buffers = {n: _outline(b) for n, b in module.named_buffers()}
        outlines: dict[int, Any] = {id(p): self._parameters[n] for n, p in module.named_parameters()}
        outlines |= {id(b): self._buffers[n] for n, b in module.named_buffers()}
        # Taking these for copies that exist already, deepcopy copies structure alone and keeps ties between modules.
        self._module = copy.deepcopy(module, outlines)
        untap(self._module)

    def build(self, source: nn.Module) -> nn.Module:
        """Returns a plain copy with the whole values of ``source``, the module after sharding.

        All processes must call it; each gets the whole copy.
        """
        memo: dict[int, Any] = {}
        for name, parameter in source.named_parameters():
            memo[id(self._parameters[name])] = nn.Parameter(whole(parameter), parameter.requires_grad)
        for name, buffer in source.named_buffers():
            memo[id(self._buffers[name])] = whole(buffer)
        return copy.deepcopy(self._module, memo)


def _outline(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def whole(tensor: Tensor) -> Tensor:
    """Returns a copy of all of a tensor that may be sharded, without its graph; all processes must call it."""
    full = getattr(tensor, "full_tensor", None)
    return tensor.detach().clone() if full is None else full().detach().clone()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor lies in parts on several processes."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that lies in this process."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state into a module, each sharded or whole; a whole one is divided where the module is sharded."""
    live = module.state_dict()
    module.load_state_dict({name: _as_sharded(value, live.get(name, value)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads a state into an optimizer, likewise."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {key: _as_sharded(value, parameters[number]) for key, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _as_sharded(value: Any, live: Tensor) -> Any:
    if not is_sharded(live) or is_sharded(value) or getattr(value, "shape", None) != live.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, live.device_mesh, live.placements)  # type: ignore[attr-defined]


def player_gradients(losses: Mapping[str, Tensor], players: Mapping[str, list[nn.Parameter]]) -> None:
    """Adds each player's gradient of its own loss, whatever else of the graph that loss reaches.

    Sharded parameters are no leaves of the graph, so a whole backward pass is made for each player, and what it left
    elsewhere is undone.
    """
    everything = [p for parameters in players.values() for p in parameters]
    sharded = any(map(is_sharded, everything))
    for number, (who, loss) in enumerate(losses.items()):
        again = number < len(losses) - 1
        if not sharded:
            loss.backward(inputs=players[who], retain_graph=again)
            continue
        own = {id(p) for p in players[who]}
        others = [(p, p.grad) for p in everything if id(p) not in own]
        for parameter, _ in others:
            parameter.grad = None
        loss.backward(retain_graph=again)
        for parameter, gradient in others:
            parameter.grad = gradient
