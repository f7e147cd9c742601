"""Sequences that were written before, kept for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.functional.off_policy import Share
from limbeck.hyperparameters import Count, WholeNumber, validated
from limbeck.transforms.rollout_rows import Written

Group = list[Written]
"""The completions of one prompt."""


class ReplayBuffer:
    """The newest groups of completions, the oldest given up first.

    All processes hold the same, so what is drawn does not depend on their number.

    Args:
        size: sequences that it holds.
        age: optimizer steps after which a sequence is given up; never when None.
        share: which part of the student's text is written anew rather than drawn from here, see
            :func:`limbeck.functional.off_policy.fresh_share`.
    """

    def __init__(self, *, size: Count, age: WholeNumber | None = None, share: Share = "constant") -> None:
        self.size, self.age, self.share = size, age, share
        self._groups: list[Group] = []

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups)

    def prune(self, step: int) -> None:
        """Gives up what is too old at ``step``."""
        if self.age is not None:
            self._groups = [g for g in self._groups if step - g[0].born <= self.age]

    @property
    def full(self) -> bool:
        """Whether something would be given up if more came."""
        return len(self) >= self.size

    def push(self, groups: Sequence[Group]) -> None:
        """Adds groups."""
        self._groups += groups
        while len(self) > self.size and len(self._groups) > 1:
            self._groups.pop(0)

    def draw(self, seed: int, step: int, count: int) -> list[Group]:
        """Returns ``count`` groups at random, none twice as long as there are enough; the same for every process."""
        order = streams.permutation(seed, "rollout/replay", step, len(self._groups))
        return [self._groups[order[n % len(order)]] for n in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that it holds."""
        return {"groups": packed(self._groups)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._groups = unpacked(state["groups"])


ReplayBuffer.__init__ = validated("replay", ReplayBuffer.__init__)  # type: ignore[method-assign]

_NUMBERS = ("prompt", "index", "draw", "born", "ended")
_SERIES = ("ids", "logprobs", "proposal_logprobs", "accepted")


def packed(groups: Sequence[Group]) -> dict[str, Any]:
    """Returns groups as few tensors and plain data, for a checkpoint."""
    rows = [row for group in groups for row in group]
    keys = sorted({key for row in rows for key in row.entries})
    return {
        "sizes": [len(group) for group in groups],
        "lengths": {name: [len(getattr(row, name)) for row in rows] for name in _SERIES},
        **{name: _joined([getattr(row, name) for row in rows]) for name in _SERIES},
        **{name: [int(getattr(row, name)) for row in rows] for name in _NUMBERS},
        "reward": [row.reward for row in rows],
        "entries": {key: [row.entries.get(key) for row in rows] for key in keys},
    }


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if tensors else torch.empty(0)


def unpacked(state: Mapping[str, Any]) -> list[Group]:
    """Returns the groups of :func:`packed`."""
    count = len(state["reward"])
    series = {name: torch.as_tensor(state[name]).split(state["lengths"][name]) if count else () for name in _SERIES}
    rows = [
        Written(
            **{name: series[name][n].clone() for name in _SERIES},
            **{name: state[name][n] for name in _NUMBERS if name != "ended"},
            ended=bool(state["ended"][n]),
            reward=state["reward"][n],
            entries={key: values[n] for key, values in state["entries"].items() if values[n] is not None},
        )
        for n in range(count)
    ]
    ends = np.cumsum(state["sizes"]).tolist()
    return [rows[end - size : end] for end, size in zip(ends, state["sizes"])]


def judged(group: Group, rewards: Sequence[float]) -> Group:
    """Returns a group with what each of its completions is worth."""
    return [replace(row, reward=value) for row, value in zip(group, rewards)]
