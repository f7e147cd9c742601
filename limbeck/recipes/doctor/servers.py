"""What a server, or a cache, leaves out of a teacher's distributions."""

from __future__ import annotations

from torch import Tensor

from limbeck.recipes.doctor.finding import Finding
from limbeck.teachers.remote.probe import Probe

_MUCH = 0.1


def check_server(role: str, found: Probe, *, asked: int, temperature: float, on_policy: bool = False) -> list[Finding]:
    """Returns how what a server gives differs from what was asked.

    Args:
        role: the teacher's role.
        found: what the probe found.
        asked: log-probabilities a place that the recipe asks for.
        temperature: the method's temperature.
        on_policy: whether the server is to write completions.
    """
    findings = []
    if found.top < asked:
        findings.append(
            Finding(
                "warning",
                f"{role} gives fewer log-probabilities than asked",
                f"{found.top} a place, not {asked}",
                f"start the server with --max-logprobs {asked}, or set top: {found.top}",
            )
        )
    if not found.honours_temperature:
        findings.append(
            Finding(
                "error" if temperature != 1.0 else "note",
                f"{role} gives the same log-probabilities at every temperature",
                "two requests at temperatures 1 and 0.5 were answered alike, so they are those at 1"
                + (f"; the method wants {temperature:g}" if temperature != 1.0 else ""),
                "start vLLM with --logprobs-mode processed_logprobs, or keep the method's temperature at 1"
                if temperature != 1.0
                else "nothing: a temperature of 1 is what they are",
            )
        )
    if not found.by_id:
        findings.append(
            Finding(
                "note",
                f"{role} names tokens by their text",
                "tokens whose text is no valid UTF-8 are found by what is left",
                "limbeck serve and vLLM name ids (return_tokens_as_token_ids)",
            )
        )
    return findings


def check_tail(role: str, tail: Tensor, mask: Tensor, listed: int) -> list[Finding]:
    """Returns how much probability the tokens hold that a teacher does not list.

    Args:
        role: the teacher's role.
        tail: ``[B, T]`` log of the mass of the rest.
        mask: ``[B, T]`` which positions count.
        listed: tokens listed a place.
    """
    counted = tail[mask.bool()]
    mass = float(counted.exp().mean()) if counted.numel() else 0.0
    if mass < _MUCH:
        return []
    return [
        Finding(
            "warning",
            f"{role} keeps much of its probability to itself",
            f"the {listed} tokens it lists hold {1 - mass:.0%} on average, the rest {mass:.0%}",
            "list more tokens (k or top), or cache drawn tokens (limbeck cache --codec sampled), which are unbiased",
        )
    ]
