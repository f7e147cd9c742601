"""Cost: parameters, multiply-accumulate operations and bytes of the weights."""

from __future__ import annotations

from safetensors.torch import save
from torch import Tensor, nn

from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.students.cost import cost_of


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
    """Returns ``parameters``, ``macs`` and ``weights_bytes``; of the teacher too where it is a live model."""
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
    return {"parameters": counted.parameters, "macs": counted.macs, "weights_bytes": weights_bytes(model)}


def weights_bytes(model: nn.Module) -> int:
    """Returns the size of a model's parameters and buffers as a safetensors file.

    Example:
        >>> weights_bytes(nn.Linear(100, 10)) - 4 * 1010 < 200
        True
    """
    return len(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}))
