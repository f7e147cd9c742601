"""What a model costs: parameters, and multiply-accumulate operations a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck.modes import evaluation_mode


@dataclass(frozen=True)
class Cost:
    """The size of a model.

    Attributes:
        parameters: number of parameters; a shared one counts once.
        macs: multiply-accumulate operations of one forward pass of one sample.
    """

    parameters: int
    macs: int


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters; a shared one counts once, buffers do not count.

    Example:
        >>> count_parameters(nn.Linear(10, 4))
        44
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Returns the multiply-accumulate operations of a forward pass of one sample in eval mode.

    Counted are convolutions, matrix products and attention, as PyTorch's FLOP counter does, which counts a
    multiplication and the addition after it as two; half of that is the figure the literature calls MACs (and often
    FLOPs). Normalisation, activations, pooling and biases are not counted. The model runs on the ``meta`` device,
    without memory or arithmetic; one that cannot runs on its own device.

    Args:
        model: the model; its mode, parameters and buffers are left as they are.
        input_shape: shape of one sample, without the batch.

    Example:
        >>> count_macs(nn.Linear(10, 4), (10,))
        40
    """
    # The counter knows the products inside attention only where it runs unfused.
    with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH):
        try:
            return _run_on_meta(model, input_shape) // 2
        except (RuntimeError, NotImplementedError):
            return _run(model, input_shape) // 2


def cost_of(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Returns parameters and multiply-accumulate operations of a model for samples of ``input_shape``."""
    return Cost(parameters=count_parameters(model), macs=count_macs(model, input_shape))


def _run_on_meta(model: nn.Module, input_shape: Sequence[int]) -> int:
    # A functional call lends the model shapes in place of its tensors: nothing is copied, nothing stays.
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes: dict[str, Tensor] = {name: tensor.to("meta") for name, tensor in state.items()}
    sample = torch.empty(1, *input_shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, shapes, (sample,))
    return counter.get_total_flops()


def _run(model: nn.Module, input_shape: Sequence[int]) -> int:
    parameter = next(model.parameters(), torch.empty(0))
    sample = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter:
        model(sample)
    return counter.get_total_flops()
