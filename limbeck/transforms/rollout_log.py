"""What is told of rollouts: numbers of an epoch, some completions in words, and how fast they were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.transforms.rollout_rows import Written

if TYPE_CHECKING:
    from limbeck.data.text.tokenizer import Tokenizer

_DIGITS = 4


class RolloutLog:
    """Sums over the steps of an epoch, and its first completions.

    Args:
        records: completions an epoch that are kept.

    Attributes:
        tokenizer: puts tokens into words; ids alone are kept where there is none.
    """

    def __init__(self, records: int) -> None:
        self._limit = records
        self._sums: dict[str, float] = {}
        self._records: list[dict[str, Any]] = []
        self._tokens, self._seconds = 0, 0.0
        self.tokenizer: Tokenizer | None = None

    def timed(self, tokens: int, seconds: float) -> None:
        """Hears how long writing took."""
        self._tokens += tokens
        self._seconds += seconds

    @property
    def written(self) -> tuple[int, float]:
        """Tokens that this process has written, and the seconds that it took."""
        return self._tokens, self._seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens that this process has written a second."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def add(self, sums: Mapping[str, float]) -> None:
        """Adds what :func:`counted` found in a step."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def keep(self, rows: Sequence[Written]) -> None:
        """Keeps the first completions of the epoch."""
        self._records += [self._record(row) for row in rows[: max(self._limit - len(self._records), 0)]]

    def _record(self, row: Written) -> dict[str, Any]:
        new = row.completion.tolist()
        words: dict[str, Any] = {"prompt": row.ids[: row.prompt].tolist(), "completion": new}
        if self.tokenizer is not None:
            words = {key: self.tokenizer.decode(ids) for key, ids in words.items()}
        return {
            "step": row.born,
            "sample": row.index,
            "draw": row.draw,
            **words,
            "tokens": len(new),
            "ended": row.ended,
            "logprob": round(float(row.logprobs.mean()), _DIGITS) if new else None,
            **({} if row.reward is None else {"reward": row.reward}),
        }

    def summary(self) -> dict[str, float]:
        """Returns the numbers of the epoch and begins the next one."""
        sums, self._sums = self._sums, {}
        used = sum(sums.get(source, 0.0) for source in ("data", "generate", "replay"))
        if not used:
            return {}
        written, own = sums.get("generate", 0.0), used - sums.get("data", 0.0)
        found = {f"from_{source}": sums.get(source, 0.0) / used for source in ("data", "generate", "replay")}
        if own:
            found["policy_age"] = sums.get("age", 0.0) / own
        if written:
            found |= {"length": sums["tokens"] / written, "ended": sums["ended"] / written}
            found |= {"reward": sums["reward"] / written} if "reward" in sums else {}
            found |= {"accepted": sums["accepted"] / max(sums["tokens"], 1)}
        return found

    def records(self) -> list[dict[str, Any]]:
        """Returns the completions of the epoch and begins the next one."""
        records, self._records = self._records, []
        return records

    def state_dict(self) -> dict[str, Any]:
        """Returns what is known of the running epoch."""
        return {"sums": dict(self._sums), "records": list(self._records)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._sums, self._records = dict(state["sums"]), list(state["records"])


def counted(fresh: Sequence[Written], replayed: Sequence[Written], data: int, step: int) -> dict[str, float]:
    """Returns what an epoch's numbers add up, of one process and one step.

    Args:
        fresh: sequences that were written for this step.
        replayed: sequences from the buffer.
        data: how many rows are the data's.
        step: optimizer steps taken.
    """
    rewards = [row.reward for row in fresh if row.reward is not None]
    return {
        "data": float(data),
        "generate": float(len(fresh)),
        "replay": float(len(replayed)),
        "age": float(sum(step - row.born for row in (*fresh, *replayed))),
        "tokens": float(sum(len(row.completion) for row in fresh)),
        "ended": float(sum(row.ended for row in fresh)),
        "accepted": float(sum(int(row.accepted.sum()) for row in fresh)),
        **({"reward": float(sum(rewards))} if rewards else {}),
    }
