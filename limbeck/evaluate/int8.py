"""Size and accuracy after weights have been rounded to eight bits."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.predictions import predict
from limbeck.functional import metrics

_LEVELS = 127
_BYTES_OF_A_SCALE = 4


@evaluations.register(
    "int8",
    title="Size and accuracy after rounding weights to eight bits, a scale for each output channel",
    measures=(
        Measure("int8.weights_bytes", "Weights, int8", "bytes", "lower", "Size of the weights with 8 bits each."),
        Measure("int8.accuracy", "Accuracy, int8", "fraction", "higher", "Accuracy with the rounded weights."),
        Measure("int8.drop", "Lost by int8", "fraction", "lower", "Accuracy before minus after rounding."),
    ),
)
def int8(subject: Subject) -> Results:
    """Returns ``weights_bytes``, ``accuracy``, ``drop``, and ``agreement`` with the unrounded model.

    Weights of convolutions, linear layers and embeddings are rounded to 255 levels about 0, with one scale for each
    output channel; everything else and all arithmetic stay as they are. That is weight-only quantisation after
    training, simulated: it tells what the rounding costs, not what a given chip's kernels do.
    """
    models = {role: rounded_copy(model) for role, model in subject.modules.items()}
    found = predict(models, subject.loader, subject.task, device=subject.device)
    results: Results = {}
    for role, logits in found.logits.items():
        before = subject.predictions.logits[role]
        after = metrics.accuracy(logits, found.labels).item()
        results[role] = {
            "weights_bytes": rounded_bytes(subject.modules[role]),
            "accuracy": after,
            "drop": metrics.accuracy(before, found.labels).item() - after,
            "agreement": metrics.agreement(logits, before).item(),
        }
    return {**results.pop("student"), **results}


def rounded_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a model whose weights of convolutions, linear layers and embeddings lie on eight-bit levels."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in _roundable(changed).items():
            changed.get_parameter(name).copy_(rounded(weight, _channel_axis(changed, name)))
    return changed


def rounded(weight: Tensor, axis: int = 0) -> Tensor:
    """Returns weights on 255 levels about 0 whose distance fits the largest of each channel.

    Args:
        weight: ``[channels, ...]`` where ``axis`` is 0.
        axis: where the output channels are.

    Example:
        >>> rounded(torch.tensor([[127.0, 3.4, -0.6]]))
        tensor([[127.,   3.,  -1.]])
    """
    others = [d for d in range(weight.dim()) if d != axis]
    scale = weight.detach().float().abs().amax(others) / _LEVELS
    # A channel of zeros has no scale of its own; any will do.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, axis, -_LEVELS, _LEVELS).to(weight.dtype)


def rounded_bytes(model: nn.Module) -> int:
    """Returns the bytes of a model's weights where those that can be rounded take one each, and a scale a channel."""
    chosen = _roundable(model)
    rounded_storages = {weight.data_ptr() for weight in chosen.values()}
    small = sum(w.numel() + _BYTES_OF_A_SCALE * w.shape[_channel_axis(model, name)] for name, w in chosen.items())
    rest = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.data_ptr() not in rounded_storages}
    return small + sum(t.numel() * t.element_size() for t in rest.values())


def _roundable(model: nn.Module) -> dict[str, Tensor]:
    """Weights with one scale a channel, shared ones once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)):
            found.setdefault(id(module.weight), (f"{name}.weight" if name else "weight", module.weight))
    return dict(found.values())


def _channel_axis(model: nn.Module, name: str) -> int:
    owner = model.get_submodule(name.rpartition(".")[0])
    return 1 if isinstance(owner, nn.modules.conv._ConvTransposeNd) else 0
