"""The log-probabilities of a prompt in a server's answer: asked for, read, and refused where they make no sense."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from limbeck.data.text import Tokenizer

_BY_ID = re.compile(r"token_id:(\d+)\Z")
_SLACK = 1e-2


@dataclass(frozen=True)
class Scores:
    """What a server says of a text of ``n`` tokens.

    Attributes:
        logprobs: ``n - 1`` log-probabilities, of each token but the first given those before it.
        top: at each of these places the most likely tokens, ``(id, log-probability)`` from the likeliest on.
        by_id: whether the server named tokens by their ids.
    """

    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    by_id: bool

    def plain(self) -> dict[str, Any]:
        """Returns what JSON can hold, as short as it can be."""
        return {
            "logprobs": [round(v, 6) for v in self.logprobs],
            "ids": [[i for i, _ in place] for place in self.top],
            "values": [[round(v, 6) for _, v in place] for place in self.top],
            "by_id": self.by_id,
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Scores:
        """Returns what :meth:`plain` wrote."""
        top = [list(zip(ids, values)) for ids, values in zip(plain["ids"], plain["values"])]
        return cls(list(plain["logprobs"]), top, bool(plain["by_id"]))


def score_request(prompts: Sequence[Sequence[int]], *, top: int, temperature: float = 1.0) -> dict[str, Any]:
    """Returns the body of a request that scores prompts given as ids and writes nothing."""
    return {
        "prompt": [list(ids) for ids in prompts],
        "max_tokens": 0,
        "echo": True,
        "logprobs": top,
        "temperature": temperature,
        "return_tokens_as_token_ids": True,
    }


def read_scores(answer: Mapping[str, Any], prompts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[Scores]:
    """Returns the scores of every prompt.

    Tokens that a server names by their text are found where one token alone has that text; others count as tail.

    Raises:
        ValueError: the answer has fewer prompts, fewer places, NaN, positive log-probabilities, or more than
            all of the probability; says which.
    """
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    if len(choices) != len(prompts):
        raise ValueError(f"it has {len(choices)} of {len(prompts)} prompts")
    return [_read(choice["logprobs"], ids, tokenizer) for choice, ids in zip(choices, prompts)]


def _read(found: Mapping[str, Any] | None, ids: Sequence[int], tokenizer: Tokenizer) -> Scores:
    if not found or found.get("token_logprobs") is None or found.get("top_logprobs") is None:
        raise ValueError("it has no log-probabilities")
    own, top = found["token_logprobs"], found["top_logprobs"]
    if len(own) != len(ids) or len(top) != len(ids):
        raise ValueError(f"it has log-probabilities of {len(own)} of {len(ids)} tokens")
    names = [name for place in top[1:] for name in place]
    by_id = bool(names) and all(_BY_ID.match(name) for name in names)
    places = [_place(place, by_id, tokenizer) for place in top[1:]]
    return Scores([_logprob(v) for v in own[1:]], places, by_id)


def _place(place: Mapping[str, float], by_id: bool, tokenizer: Tokenizer) -> list[tuple[int, float]]:
    known = {} if by_id else _ids_by_text(tokenizer)
    pairs = []
    for name, value in place.items():
        match = _BY_ID.match(name)
        token = int(match[1]) if match else known.get(name)
        if token is not None and 0 <= token < tokenizer.vocabulary:
            pairs.append((token, _logprob(value)))
    total = math.fsum(math.exp(v) for _, v in pairs)
    if total > 1 + _SLACK:
        raise ValueError(f"its probabilities at one place sum to {total:.3f}")
    return sorted(pairs, key=lambda pair: -pair[1])


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value > _SLACK:
        raise ValueError(f"{value!r} is no log-probability")
    # Servers write "impossible" as minus infinity or as a very low number.
    return min(max(float(value), -1e4), 0.0)


@lru_cache(maxsize=4)
def _ids_by_text(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the id of every text that one token alone has."""
    found: dict[str, int | None] = {}
    for token in range(tokenizer.vocabulary):
        text = tokenizer.decode([token], special=True)
        found[text] = None if text in found else token
    return {text: token for text, token in found.items() if token is not None}
