from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from limbeck.functional.selective_scan import combined_logits, selective_scan

B, L, D, N = 2, 13, 3, 4


def _inputs(length: int = L, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "u": (B, length, D),
        "dt": (B, length, D),
        "a_log": (D, N),
        "b": (B, length, N),
        "c": (B, length, N),
        "d": (D,),
    }
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}


def _recurrence(u: Tensor, dt: Tensor, a_log: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, one number at a time."""
    y, state = torch.zeros_like(u), torch.zeros(B, D, N, dtype=u.dtype)
    for i in range(B):
        for step in range(u.shape[1]):
            for channel in range(D):
                size = softplus(dt[i, step, channel])
                for n in range(N):
                    decay = torch.exp(size * -torch.exp(a_log[channel, n]))
                    state[i, channel, n] = decay * state[i, channel, n] + size * b[i, step, n] * u[i, step, channel]
                y[i, step, channel] = (c[i, step] * state[i, channel]).sum() + d[channel] * u[i, step, channel]
    return y, state


@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 64])
def test_scan_is_the_recurrence_whatever_the_chunk(chunk: int) -> None:
    inputs = _inputs()
    y, state = selective_scan(**inputs, chunk=chunk)
    expected, last = _recurrence(**inputs)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = {n: t.requires_grad_() for n, t in _inputs(5).items()}
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, chunk=3), tuple(inputs.values()))


def test_one_step_has_a_closed_form() -> None:
    i = _inputs(1)
    size = softplus(i["dt"])
    expected = size * i["u"] * (i["b"] * i["c"]).sum(-1, keepdim=True) + i["d"] * i["u"]
    torch.testing.assert_close(selective_scan(**i)[0], expected)
    gate = torch.randn(B, 1, D, dtype=torch.float64)
    torch.testing.assert_close(selective_scan(**i, gate=gate)[0], expected * silu(gate))


def test_constant_coefficients_are_a_convolution() -> None:
    i = _inputs()
    constant: Any = {**i, **{n: i[n][:, :1].expand_as(i[n]) for n in ("dt", "b", "c")}}
    size = softplus(i["dt"][:, 0])
    lags = torch.arange(L).view(-1, 1, 1, 1)
    decay = torch.exp(-size[None, :, :, None] * torch.exp(i["a_log"]) * lags)
    kernel = (decay * size[None, :, :, None] * (i["b"] * i["c"])[None, :, :1]).sum(-1)
    expected = torch.stack(
        [sum(kernel[lag] * i["u"][:, step - lag] for lag in range(step + 1)) for step in range(L)],
        1,  # type: ignore[misc]
    )
    torch.testing.assert_close(selective_scan(**constant)[0], expected + i["d"] * i["u"])


def test_a_sequence_can_be_continued() -> None:
    i = _inputs()
    whole, last = selective_scan(**i)
    parts = [{n: t[:, s] if t.dim() == 3 else t for n, t in i.items()} for s in (slice(0, 6), slice(6, None))]
    first, state = selective_scan(**parts[0])
    second, end = selective_scan(**parts[1], initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_long_sequences_and_extreme_steps_stay_finite(dtype: torch.dtype) -> None:
    i = _inputs(700, dtype)
    i["dt"] = 50 * i["dt"]
    i["u"] = i["u"].requires_grad_()
    y, state = selective_scan(**i)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    assert state.isfinite().all()
    assert i["u"].grad is not None
    assert i["u"].grad.isfinite().all()


def test_combined_logits_train_the_newest_only() -> None:
    previous, newest = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    for combine, count in (("sum", 1), ("mean", 3)):
        combined = combined_logits(previous, newest, combine=combine)
        torch.testing.assert_close(combined, (previous.sum(0) + newest) / count)
        gradients = torch.autograd.grad(combined.sum(), [previous, newest], allow_unused=True)
        assert gradients[0] is None
        assert gradients[1] is not None
    with pytest.raises(ValueError, match="max"):
        combined_logits(previous, newest, combine="max")
    with pytest.raises(ValueError, match="chunk"):
        selective_scan(**_inputs(), chunk=0)
