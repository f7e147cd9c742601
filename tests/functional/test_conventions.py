"""What every loss of :mod:`limbeck.functional` promises, checked for every one that it exports."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import functional

B, C = 5, 6


@dataclass
class Example:
    """How to call a loss.

    Attributes:
        shapes: shapes of its floating-point inputs, the student first.
        extra: further positional arguments.
        options: keyword arguments.
        constants: which inputs get no gradient.
        logits: whether the inputs are logits, which may be of any size.
        coupled: whether a sample's loss depends on the others, masked ones excepted.
    """

    shapes: list[tuple[int, ...]]
    extra: Callable[[], tuple[Any, ...]] = tuple
    options: dict[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = (1,)
    logits: bool = False
    coupled: bool = False


LOGITS = [(B, C), (B, C)]
MAPS = [(B, 3, 4, 4), (B, 3, 4, 4)]
BOTH: dict[str, Any] = {"constants": ()}
EXAMPLES = {
    "attention_transfer": Example([(B, 3, 4, 4), (B, 5, 4, 4)], **BOTH),
    "batch_correlation": Example(LOGITS, logits=True),
    "binary_kl": Example(LOGITS, logits=True),
    "binary_kl_norm": Example(LOGITS, logits=True),
    "boosted_cross_entropy": Example(LOGITS, lambda: (torch.arange(B) % C,), {"exponent": 1.5}, logits=True),
    "class_correlation": Example(LOGITS, logits=True),
    "class_correlation_distance": Example([(B, 4), (B, 4)]),
    "conditional_mutual_information": Example(
        [(B, C)],
        lambda: (torch.arange(B) % C, torch.eye(C).log_softmax(1)),
        constants=(),
        logits=True,
    ),
    "consecutive_correlation": Example([(B, 4), (B, 4)], constants=()),
    "correlation_congruence": Example([(B, 4), (B, 7)]),
    "context_difference": Example([(B, 6, 4), (B, 6, 5)]),
    "cross_entropy": Example([(B, C)], lambda: (torch.arange(B) % C,), constants=(), logits=True),
    "decoupled_kl": Example(LOGITS, lambda: (torch.arange(B) % C,), logits=True),
    "gaussian_feature_nll": Example(MAPS, lambda: (torch.full((3,), 2.0),), **BOTH),
    "hierarchical_context": Example(MAPS, **BOTH),
    "inter_class_distance": Example(LOGITS, logits=True),
    "intra_class_distance": Example(LOGITS, logits=True),
    "js": Example(LOGITS, logits=True),
    "kl": Example(LOGITS, logits=True),
    "mean_squared_features": Example(MAPS, **BOTH),
    "neuron_selectivity": Example([(B, 3, 4, 4), (B, 5, 4, 4)], **BOTH),
    "noise_contrastive": Example([(B, 4)], lambda: (torch.tensor(1.0),), {"population": 9}, constants=(), logits=True),
    "nontarget_cross_entropy": Example(
        LOGITS, lambda: (torch.nn.functional.one_hot(torch.arange(B) % C, C).double(),), logits=True
    ),
    "norm_and_direction": Example([(B, 4), (B, 7)], lambda: (torch.eye(3, 4), torch.arange(B) % 3)),
    "normalized_kd": Example(LOGITS, lambda: (torch.arange(B) % C,), logits=True),
    "partial_distance": Example(MAPS, lambda: (torch.full((3,), -0.5),), **BOTH),
    "plackett_luce": Example([(B, C)], lambda: (torch.arange(C).expand(B, C),), constants=(), logits=True),
    "plackett_luce_distillation": Example(LOGITS, lambda: (torch.arange(B) % C,), logits=True),
    "sparse_cross_entropy": Example(
        [(B, C)], lambda: (torch.arange(2 * B).reshape(B, 2) % C, torch.full((B, 2), 0.3)), constants=(), logits=True
    ),
    "focal_cross_entropy": Example([(B, C)], lambda: (torch.arange(B) % C,), constants=(), logits=True),
    "probability_error": Example([(B, C)], lambda: (torch.arange(B) % C,), constants=(), logits=True),
    "preference_loss": Example([(B,)], constants=()),
    "probabilistic_transfer": Example([(B, 4), (B, 7)]),
    "relational_angle": Example([(B, 4), (B, 7)]),
    "relational_distance": Example([(B, 4), (B, 7)]),
    "similarity_preserving": Example([(B, 4), (B, 7)]),
    "sinkhorn_distance": Example(LOGITS, logits=True, coupled=True),
    "subclass_kl": Example(LOGITS),
    "token_contrast": Example([(B, 4), (B, 4)], options={"temperature": 0.5}, coupled=True),
}
NAMES = sorted(EXAMPLES)
MASKED = [
    n for n in NAMES if "mask" in inspect.signature(getattr(functional, n)).parameters and not EXAMPLES[n].coupled
]


def _inputs(name: str, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[Tensor]:
    torch.manual_seed(3)
    return [
        (scale * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_() for shape in EXAMPLES[name].shapes
    ]


def _values(name: str, inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    example = EXAMPLES[name]
    result = getattr(functional, name)(*inputs, *example.extra(), **{**example.options, **options})
    return tuple(result) if isinstance(result, tuple) else (result,)


def _total(name: str, inputs: list[Tensor], **options: Any) -> Tensor:
    return torch.stack(_values(name, inputs, **options)).sum()


def test_every_exported_loss_has_an_example() -> None:
    callables = {n: getattr(functional, n) for n in functional.__all__ if inspect.isfunction(getattr(functional, n))}
    losses = {n for n, f in callables.items() if "reduction" in inspect.signature(f).parameters} - {"reduce"}
    assert losses == set(EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_are_keyword_only(name: str) -> None:
    parameters = inspect.signature(getattr(functional, name)).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.annotation not in ("Tensor",))


@pytest.mark.parametrize("name", NAMES)
def test_reductions_are_of_the_same_values(name: str) -> None:
    inputs = _inputs(name)
    for parts in zip(*(_values(name, inputs, reduction=r) for r in ("none", "sum", "mean", "batchmean"))):
        none, total, mean, batchmean = parts
        torch.testing.assert_close(none.sum(), total)
        torch.testing.assert_close(none.mean(), mean)
        torch.testing.assert_close(total / none.shape[0], batchmean)
    with pytest.raises((ValueError, KeyError)):
        _values(name, inputs, reduction="average")


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences_and_constants_get_none(name: str) -> None:
    student, *others = _inputs(name)
    assert torch.autograd.gradcheck(lambda tensor: _total(name, [tensor, *(o.detach() for o in others)]), student)
    _total(name, [student, *others]).backward()
    assert student.grad is not None
    assert [o.grad is None for o in others] == [n in EXAMPLES[name].constants for n in range(1, 1 + len(others))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_inputs_are_computed_in_single_precision(name: str, dtype: torch.dtype) -> None:
    half = _inputs(name, dtype)
    loss = _total(name, half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, _total(name, [i.detach().float() for i in half]))
    loss.backward()
    assert half[0].grad is not None
    assert half[0].grad.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: str) -> None:
    inputs = _inputs(name, torch.float32)
    plain = _total(name, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(_total(name, inputs), plain, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 1e3, 2e4])
@pytest.mark.parametrize("name", [n for n in NAMES if EXAMPLES[n].logits])
def test_logits_of_any_size_give_finite_values_and_gradients(name: str, scale: float, dtype: torch.dtype) -> None:
    inputs = [i.detach().clamp(-6e4, 6e4).requires_grad_() for i in _inputs(name, dtype, scale)]
    loss = _total(name, inputs)
    loss.backward()
    assert loss.isfinite()
    assert inputs[0].grad is not None
    assert inputs[0].grad.isfinite().all()
    # Probabilities that hardly vary, or underflow, have no correlation left in single precision.
    if dtype is torch.float32 and name not in ("inter_class_distance", "intra_class_distance"):
        torch.testing.assert_close(
            loss.double(), _total(name, [i.detach().double() for i in inputs]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", MASKED)
def test_masked_positions_have_no_effect(name: str) -> None:
    inputs = _inputs(name)
    for part, unmasked in enumerate(_values(name, inputs, reduction="none")):
        mask = torch.arange(unmasked.numel()).reshape(unmasked.shape) % 3 != 1
        kept = _values(name, inputs, reduction="none", mask=mask)[part]
        torch.testing.assert_close(kept[mask], unmasked[mask])
        assert (kept[~mask] == 0).all()
        mean = _values(name, inputs, mask=mask)[part]
        torch.testing.assert_close(mean, unmasked[mask].mean())
        nothing = _values(name, inputs, mask=torch.zeros_like(mask))[part]
        assert nothing == 0
        assert nothing.requires_grad


ROW_LOSSES = ["cross_entropy", "decoupled_kl", "inter_class_distance", "js", "kl", "noise_contrastive"]


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_masked_rows_may_hold_anything(name: str) -> None:
    mask = torch.arange(B) != 2
    clean = _inputs(name)
    dirty = [i.detach().clone() for i in clean]
    for tensor in dirty:
        tensor[2] = torch.nan
        tensor.requires_grad_()
    torch.testing.assert_close(_total(name, dirty, mask=mask), _total(name, clean, mask=mask))
    _total(name, dirty, mask=mask).backward()
    assert dirty[0].grad is not None
    assert (dirty[0].grad[2] == 0).all()
    assert dirty[0].grad.isfinite().all()
    with pytest.raises(ValueError, match="mask"):
        _total(name, clean, mask=mask[:, None])


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_an_empty_batch_costs_nothing(reduction: str) -> None:
    assert functional.kl(torch.zeros(0, 3), torch.zeros(0, 3), reduction=reduction) == 0
