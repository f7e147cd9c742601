"""Cost: parameters, multiply-accumulate operations, bytes of the weights, and a proxy of the energy."""

from __future__ import annotations

from safetensors.torch import save
from torch import Tensor, nn

from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.students.cost import cost_of

# Picojoules in 45 nm CMOS: a 32-bit multiplication and addition, and 32 bits from DRAM.
_MAC_PJ = 3.7 + 0.9
_DRAM_PJ = 640.0


@evaluations.register(
    "cost",
    title="Cost: parameters, multiply-accumulate operations a sample, bytes of the weight file",
    measures=(
        Measure("cost.parameters", "Parameters", "count", "lower", "Numbers that training sets."),
        Measure("cost.macs", "MACs", "count", "lower", "Multiply-accumulate operations of one sample's forward pass."),
        Measure("cost.weights_bytes", "Weights", "bytes", "lower", "Size of the weights as a safetensors file."),
    ),
)
def cost(subject: Subject) -> Results:
    """Returns ``parameters``, ``macs``, ``weights_bytes`` and ``energy_mj``; of the teacher too where it is live.

    ``energy_mj`` stands for the millijoules of one sample: every multiply-accumulate operation in 32 bits, and every
    weight read once from memory, at the prices of a 45 nm chip. It is a proxy to rank models by, not a measurement;
    activations, caches and the machine's own consumption are left out. Reference: Horowitz, "Computing's energy problem
    (and what we can do about it)", ISSCC 2014.
    """
    costs = {role: _cost(subject, role, model) for role, model in subject.modules.items()}
    student = costs.pop("student")
    return {**student, **costs}


def _cost(subject: Subject, role: str, model: nn.Module) -> Results:
    inputs = subject.example(1).inputs_for(role)
    if not isinstance(inputs, Tensor):
        raise DataError(
            f"the cost of role '{role}' is counted for inputs that are one tensor, not {type(inputs).__name__}"
        )
    counted = cost_of(model, inputs.shape[1:])
    weights = weights_bytes(model)
    return {
        "parameters": counted.parameters,
        "macs": counted.macs,
        "weights_bytes": weights,
        "energy_mj": energy_millijoules(counted.macs, weights),
    }


def energy_millijoules(macs: int, weight_bytes: int) -> float:
    """Returns millijoules of one sample: its operations in 32 bits, and its weights read once from memory.

    Example:
        >>> energy_millijoules(1_000_000_000, 0)
        4.6
    """
    return round((macs * _MAC_PJ + weight_bytes / 4 * _DRAM_PJ) * 1e-9, 9)


def weights_bytes(model: nn.Module) -> int:
    """Returns the size of a model's parameters and buffers as a safetensors file.

    Example:
        >>> weights_bytes(nn.Linear(100, 10)) - 4 * 1010 < 200
        True
    """
    return len(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}))
