"""Rewards of what a rollout writes: text for the reward, numbers for the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import NeedsError, RecipeError
from limbeck.rewards import Judged, RewardLike, build_reward, judged_entries, score
from limbeck.rewards.scoring import Normalisation, OnError
from limbeck.transforms.rollout_rows import Row, Written


class RolloutRewards:
    """Judges completions as soon as they are written, and says what each is worth among those of its prompt.

    Args:
        reward: see :func:`limbeck.rewards.build_reward`.
        advantage: what advantages are, see :func:`limbeck.rewards.judged_entries`.
        on_error: what a failing reward becomes, see :func:`limbeck.rewards.score`.
        samples: completions a prompt.
        trust: allow ``python:`` functions.

    Raises:
        RecipeError: the reward is wrong, or groups of one completion are to be compared.
    """

    def __init__(
        self, reward: RewardLike, *, advantage: Normalisation, on_error: OnError, samples: int, trust: bool
    ) -> None:
        if samples < 2 and advantage != "none":
            raise RecipeError(
                f"transform 'rollout': advantage: {advantage} compares the completions of a prompt, of which there is "
                "one; set samples to 2 or more, or advantage: none"
            )
        self.reward = build_reward(reward, trust=trust)
        self._advantage, self._on_error = advantage, on_error
        self._tokenizer: Any = None
        self._records: Sequence[Mapping[str, Any]] = ()

    def bind(self, source: Any) -> None:
        """Takes the data, whose columns the reward reads.

        Raises:
            NeedsError: it is no text data of limbeck.
            DataError: a record lacks a column.
        """
        if not hasattr(source, "records"):
            raise NeedsError(
                f"the reward '{self.reward.name}' reads prompts and columns, but the loader has no text data of limbeck"
            )
        self._tokenizer, self._records = source.tokenizer, source.records
        self.reward.check(self._records)

    def judge(self, groups: Sequence[list[Written]]) -> list[list[Written]]:
        """Returns completions with what they are worth.

        Raises:
            RewardError: the reward fails; names sample and completion.
        """
        values = iter(
            score(self.reward, [self._told(row) for group in groups for row in group], on_error=self._on_error)
        )
        return [[replace(row, reward=next(values)) for row in group] for group in groups]

    def entries(self, rows: Sequence[Row | Written]) -> dict[str, Tensor]:
        """Returns ``reward``, ``advantage``, ``group`` and ``group_best`` of the rows of a batch, ``[B]`` each.

        Completions of one prompt that were written at the same step are a group. A row of the data is judged too, and
        is a group of its own, whose advantage is zero.
        """
        given = [row for row in rows if not isinstance(row, Written)]
        own = iter(score(self.reward, [self._told(row) for row in given], on_error=self._on_error))
        values = [float(row.reward or 0.0) if isinstance(row, Written) else next(own) for row in rows]
        keys = [(row.index, row.born) if isinstance(row, Written) else (n, None) for n, row in enumerate(rows)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return judged_entries(values, torch.tensor([numbers[key] for key in keys]), advantage=self._advantage)

    def _told(self, row: Row | Written) -> Judged:
        if isinstance(row, Written):
            ids, prompt, finished = row.ids.tolist(), row.prompt, row.ended
        else:
            ids, prompt, finished = row.tokens.ids.tolist(), row.tokens.prompt, True
        given, said = ids[:prompt], ids[prompt:]
        decode = self._tokenizer.decode
        return Judged(decode(given), decode(said), self._records[row.index], row.index, len(said), finished)
