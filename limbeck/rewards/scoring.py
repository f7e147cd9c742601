"""Rewards of sampled completions, and what each is worth within its group."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import RewardError
from limbeck.functional.policy import group_statistics
from limbeck.rewards.base import Judged, Reward

OnError = Literal["raise", "zero"]
Normalisation = Literal["group", "centred", "none"]
_SHOWN = 200


def score(reward: Reward, samples: Sequence[Judged], *, on_error: OnError = "raise") -> list[float]:
    """Returns the reward of each completion.

    Args:
        reward: the reward.
        samples: the completions.
        on_error: what an exception in the reward, or a result that is no finite number, becomes: an error that names
            reward, sample and completion, or a reward of 0 and a warning.

    Raises:
        RewardError: see ``on_error``. Nothing is written by then, so the run goes on from its last checkpoint once the
            reward is mended.
    """
    return [_one(reward, sample, on_error) for sample in samples]


def _one(reward: Reward, sample: Judged, on_error: OnError) -> float:
    try:
        value: Any = reward(sample)
        # NumPy's and torch's numbers have an item; a bool is a number here.
        number = float(value.item() if hasattr(value, "item") else value)
    except Exception as error:  # A reward may be anybody's function; it may fail in any way.
        said = str(error).splitlines()[0] if str(error) else ""
        return _failed(reward, sample, f"failed with {type(error).__name__}: {said}", on_error, error)
    if math.isfinite(number):
        return number
    return _failed(reward, sample, f"gave {number}, but a reward is a finite number", on_error)


def _failed(reward: Reward, sample: Judged, why: str, on_error: OnError, cause: BaseException | None = None) -> float:
    if on_error == "raise":
        raise _refused(reward, sample, why) from cause
    # The sample is left out, so that a reward that always fails in the same way says so once.
    warnings.warn(f"the reward '{reward.name}' {why}; such completions count as 0", stacklevel=4)
    return 0.0


def _refused(reward: Reward, sample: Judged, why: str) -> RewardError:
    shown = sample.completion if len(sample.completion) <= _SHOWN else sample.completion[:_SHOWN] + "..."
    return RewardError(
        f"the reward '{reward.name}' {why}. Sample {sample.index}, completion {shown!r}. Mend the reward and run the "
        "same command to go on, or set on_error: zero to count such completions as 0"
    )


def judged_entries(
    values: Sequence[float] | Tensor, groups: Tensor, *, advantage: Normalisation = "group"
) -> dict[str, Tensor]:
    """Returns what rewards add to a batch: ``reward``, ``advantage``, ``group`` and ``group_best``, ``[B]`` each.

    Args:
        values: reward of each completion, ``[B]``.
        groups: ``[B]`` number of the prompt that each belongs to. A group is within one process and one batch.
        advantage: ``group`` centres rewards in their group and divides by its deviation (GRPO), ``centred`` only
            centres them, ``none`` takes them as they are.

    Example:
        >>> entries = judged_entries([1.0, 0.0, 1.0, 1.0], torch.tensor([0, 0, 1, 1]), advantage="centred")
        >>> entries["advantage"].tolist(), entries["group_best"].tolist()
        ([0.5, -0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    """
    rewards = torch.as_tensor(values, dtype=torch.float32, device=groups.device)
    found = group_statistics(rewards, groups, scale=advantage == "group")
    worth = rewards if advantage == "none" else found.advantage
    return {"reward": rewards, "advantage": worth, "group": groups, "group_best": found.best}
