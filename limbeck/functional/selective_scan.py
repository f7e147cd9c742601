"""Selective state-space recurrences, the core of Mamba's blocks, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from limbeck.functional.precision import full_precision


@full_precision
def selective_scan(
    u: Tensor,
    dt: Tensor,
    a_log: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    r"""Runs a selective state-space model along a sequence.

    .. math:: h_l = e^{\Delta_l A} h_{l-1} + \Delta_l B_l u_l, \qquad y_l = \langle C_l, h_l \rangle + D u_l, \qquad
              \Delta = \mathrm{softplus}(\mathrm{dt} + \mathrm{bias}), \quad A = -e^{A_{\log}}

    for each channel by itself, times :math:`\mathrm{silu}` of the gate. Steps of a chunk are computed together, in a
    number of operations that grows with its logarithm; chunks follow each other. Factors lie in (0, 1], so nothing
    overflows however long the sequence is.

    Args:
        u: ``[B, L, D]`` inputs.
        dt: ``[B, L, D]`` step sizes before the softplus.
        a_log: ``[D, N]`` logarithm of the decay rates.
        b: ``[B, L, N]`` input coefficients.
        c: ``[B, L, N]`` output coefficients.
        d: ``[D]`` weight of the direct path; none when None.
        gate: ``[B, L, D]``; none when None.
        dt_bias: ``[D]``; none when None.
        initial_state: ``[B, D, N]``; zero when None.
        chunk: steps computed together; 1 is the plain recurrence.

    Returns:
        Outputs ``[B, L, D]`` and the last state ``[B, D, N]``.

    Raises:
        ValueError: ``chunk`` is not positive.

    References:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> y, state = selective_scan(2 * one, one, torch.zeros(1, 1), 3 * one, one)
        >>> torch.allclose(y, 6 * torch.nn.functional.softplus(one))
        True
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, but should be at least 1")
    step = softplus(dt if dt_bias is None else dt + dt_bias)
    rate = -torch.exp(a_log)
    state = u.new_zeros(u.shape[0], u.shape[2], a_log.shape[1]) if initial_state is None else initial_state
    outputs = []
    for start in range(0, u.shape[1], chunk):
        part = slice(start, start + chunk)
        decay = torch.exp(step[:, part, :, None] * rate)
        inflow = (step[:, part] * u[:, part]).unsqueeze(-1) * b[:, part, None, :]
        states = _states(decay, inflow, state)
        outputs.append((states * c[:, part, None, :]).sum(-1))
        state = states[:, -1]
    y = torch.cat(outputs, dim=1) if outputs else u
    if d is not None:
        y = y + d * u
    return (y if gate is None else y * silu(gate)), state


def _states(decay: Tensor, inflow: Tensor, before: Tensor) -> Tensor:
    """Returns the states ``[B, l, D, N]`` of ``h_i = decay_i h_{i-1} + inflow_i``: the reach doubles with each pass."""
    reach = 1
    while reach < decay.shape[1]:
        earlier, now = slice(None, -reach), slice(reach, None)
        inflow = torch.cat([inflow[:, :reach], inflow[:, now] + decay[:, now] * inflow[:, earlier]], dim=1)
        decay = torch.cat([decay[:, :reach], decay[:, now] * decay[:, earlier]], dim=1)
        reach *= 2
    return inflow + decay * before.unsqueeze(1)


def combined_logits(previous: Tensor, newest: Tensor, *, combine: str = "sum") -> Tensor:
    """Returns the logits of a growing ensemble, of which only the newest member is trained.

    Args:
        previous: ``[k - 1, B, C]`` logits of the members before, constants; none for the first member.
        newest: ``[B, C]`` logits of the newest member.
        combine: ``sum``, with which each member mends what those before left over, or ``mean``.

    Returns:
        ``[B, C]``.

    Raises:
        ValueError: ``combine`` is unknown.

    Example:
        >>> combined_logits(torch.ones(2, 1, 1), torch.full((1, 1), 4.0)), combined_logits(torch.ones(2, 1, 1),
        ...     torch.full((1, 1), 4.0), combine="mean")
        (tensor([[6.]]), tensor([[2.]]))
    """
    if combine not in ("sum", "mean"):
        raise ValueError(f"combine should be sum or mean, not '{combine}'")
    total = previous.detach().sum(0) + newest
    return total if combine == "sum" else total / (len(previous) + 1)
