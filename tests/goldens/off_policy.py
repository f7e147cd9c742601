"""Adapter of the rule that says where the text of a step comes from."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from goldens.replay import Case, replays
from limbeck.schedules import Progress
from limbeck.transforms.replay import ReplayBuffer
from limbeck.transforms.rollout_rows import Written
from limbeck.transforms.rollout_sources import Adaptive, Sources

_ACTIONS = {"data": 0, "generate": 1, "replay": 2}


@replays("DistiLLM adaptive off-policy sampler")
def adaptive_sampler(case: Case) -> dict[str, Tensor]:
    config, losses, chances = case.config, case.input("val_loss"), case.input("uniform")
    adaptive = Adaptive(start=config["init_threshold"], margin=config["loss_eps"])
    thresholds = []
    for loss in losses.tolist():
        adaptive.judged(loss)
        thresholds.append(adaptive.threshold)
    buffer = ReplayBuffer(size=config["capacity"], share=config["replay_ratio"])
    sources = Sources(0, adaptive, "batch", buffer)
    actions = []
    total, rows = config["total_iters"], config["batch_size"]
    for step, chance in enumerate(chances.tolist()):
        adaptive.threshold = thresholds[step * len(thresholds) // total]
        # The file gives the random numbers that the run would draw.
        with patch("limbeck.streams.uniform", lambda *_, chance=chance: np.array([[chance]])):
            (chosen, *_) = sources.origins(list(range(rows)), 0, Progress(step, total, 1))
        if chosen == "generate":
            buffer.push([[_row(number, step)] for number in range(rows)])
        actions.append(_ACTIONS[chosen])
    return {
        "out.threshold": torch.tensor([t.value for t in thresholds], dtype=torch.float64),
        "out.prev_loss": torch.tensor([t.reference for t in thresholds], dtype=torch.float64),
        "out.action": torch.tensor(actions),
    }


def _row(number: int, step: int) -> Written:
    nothing: dict[str, Any] = {
        "logprobs": torch.zeros(1), "proposal_logprobs": torch.zeros(1), "accepted": torch.ones(1, dtype=torch.bool),
    }  # fmt: skip
    return Written(
        ids=torch.zeros(2, dtype=torch.long), prompt=1, index=number, draw=0, born=step, ended=True, **nothing
    )
