"""Adapters of selectors."""

from __future__ import annotations

import torch
from torch import Tensor

from goldens.replay import Case, replays
from limbeck.functional.head_mixture import mixed_log_probabilities
from limbeck.functional.selection import (
    Gain,
    k_center_greedy,
    robust_distribution,
    sample_without_replacement,
    uncertainty,
)


@replays("PCoreSet selection in the probability space (DHO student)")
def pcoreset(case: Case) -> dict[str, Tensor]:
    # The file's alpha is the share of the teacher's head, the function's that of the labels'.
    mix = {"alpha": 1 - case.config["alpha"], "beta": case.config["beta"]}
    pool, labelled = (
        mixed_log_probabilities(case.input(f"{part}_ce_logits"), case.input(f"{part}_kd_logits"), **mix).exp()
        for part in ("pool", "labelled")
    )
    cover = k_center_greedy(pool, labelled, case.config["queries"])
    return {
        "out.selected": cover.picked,
        "out.distance": cover.distance,
        "out.pool_probs": pool,
        "out.labelled_probs": labelled,
    }


def _gain(named: str) -> Gain:
    """What a file means by ``1-margin``, ``entropy`` or ``1-max p``."""
    return "margin" if "margin" in named else "entropy" if "entropy" in named else "confidence"


@replays("RAD sampling distribution over unlabelled points")
def rad(case: Case) -> dict[str, Tensor]:
    config = case.config
    gains = uncertainty(case.input("student_logits"), gain=_gain(config["gain"]))
    game = robust_distribution(gains, incorrect=config["num_incorrect"], wrong_cost=config["wrong_label_cost"])
    return {
        "out.gain": gains,
        "out.q": game.distribution,
        "out.support": torch.tensor(game.support),
        "out.value": game.value,
        "out.lp_value": game.value,
        "out.value_per_k": game.values,
        "out.pick": sample_without_replacement(
            game.distribution, config["batch"], case.input("uniform"), fallback=gains
        ),
    }
