"""Adapter of teacher hacking: curves of Markov students against an oracle and a teacher, and the detector on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from goldens.replay import Case, replays
from limbeck.functional.teacher_hacking import power_law, sequence_divergence, sequence_log_ratio, teacher_hacking


@replays("teacher hacking diagnostics: proxy/golden curves on toy Markov LMs")
def diagnostics(case: Case) -> dict[str, Any]:
    oracle, teacher = case.input("oracle_logits"), case.input("teacher_logits")
    students = list(case.input("student_logits"))
    initial, length = case.input("initial"), int(case.config["length"])

    def curve(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([_exact(p, q, initial, length) for p, q in pairs])

    proxy, golden = curve([(teacher, s) for s in students]), curve([(oracle, s) for s in students])
    turn = teacher_hacking(proxy, golden, tolerance=float(case.config["rise_tolerance"]))
    law = power_law(proxy, fit_points=int(case.config["fit_points"]))
    return {
        "out.proxy_f": proxy,
        "out.golden_f": golden,
        "out.proxy_r": curve([(s, teacher) for s in students]),
        "out.golden_r": curve([(s, oracle) for s in students]),
        "out.golden_f_mc": torch.stack([_drawn(oracle, s, case.input("oracle_samples")) for s in students]),
        "out.golden_argmin": turn.best,
        "out.hacking": int(turn.hacking),
        "out.powerlaw_exponent": law.exponent,
        "out.powerlaw_intercept": law.intercept,
        "out.powerlaw_deviation": law.deviations,
        "out.teacher_oracle_kl": _exact(oracle, teacher, initial, length),
    }


def _exact(reference: Tensor, other: Tensor, initial: Tensor, length: int) -> Tensor:
    """The divergence after every state, times how often the reference is in that state over a sequence."""
    each = sequence_divergence(reference.unsqueeze(1), other.unsqueeze(1))
    visits, now = torch.zeros_like(initial), initial
    for _ in range(length):
        visits, now = visits + now, now @ reference.softmax(-1)
    return (visits * each).sum()


def _drawn(reference: Tensor, other: Tensor, samples: Tensor) -> Tensor:
    before, tokens = samples[:, :-1], samples[:, 1:]
    return sequence_log_ratio(reference[before], other[before], tokens).mean()
