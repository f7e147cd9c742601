"""What a server can do, found out by asking it once before anything depends on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from limbeck.data.text import Tokenizer
from limbeck.errors import RemoteError, UnreachableError
from limbeck.teachers.remote.client import Client
from limbeck.teachers.remote.scores import Scores, read_scores, score_request

_TEXT = "The probe of a teacher: 12 words, é, 東京 and a line\nbreak."


@dataclass(frozen=True)
class Probe:
    """What a server can do.

    Attributes:
        top: log-probabilities that it gives at each place of a prompt; 0 where it scores no prompts.
        honours_temperature: whether log-probabilities are those at the temperature of the request; else they are raw.
        by_id: whether it names tokens by their ids.
    """

    top: int
    honours_temperature: bool
    by_id: bool


def probe(client: Client, tokenizer: Tokenizer, *, top: int) -> Probe:
    """Asks a server for the log-probabilities of a short text at two temperatures.

    Args:
        client: the server.
        tokenizer: the tokenizer whose ids are sent.
        top: log-probabilities a place that are wanted.

    Raises:
        RemoteError: the server cannot be reached, has another tokenizer, scores no prompts, or gives no
            log-probabilities; says which.
    """
    _check_tokenizer(client, tokenizer)
    ids = tokenizer.encode(_TEXT)
    try:
        plain, half = (_scores(client, tokenizer, ids, top, temperature) for temperature in (1.0, 0.5))
    except UnreachableError:
        raise
    except RemoteError as error:
        raise RemoteError(
            f"the server does not score prompts (completions with echo and logprobs), so it can give text only: {error}"
        ) from None
    gap = max(abs(a - b) for a, b in zip(plain.logprobs, half.logprobs))
    return Probe(min(len(place) for place in plain.top), gap > 1e-3, plain.by_id)


def _scores(client: Client, tokenizer: Tokenizer, ids: list[int], top: int, temperature: float) -> Scores:
    body = score_request([ids], top=top, temperature=temperature)
    found = client.ask("completions", body, lambda answer: [s.plain() for s in read_scores(answer, [ids], tokenizer)])
    scores = Scores.of(found[0])
    if not scores.top or not all(scores.top):
        raise RemoteError("it gives no log-probabilities of the most likely tokens")
    if any(not math.isfinite(v) for v in scores.logprobs):
        raise RemoteError("its log-probabilities are not finite")
    return scores


def _check_tokenizer(client: Client, tokenizer: Tokenizer) -> None:
    """Compares tokenizers where the server tells its own: limbeck's does."""
    listed: Any = client.get("models") or {}
    for model in listed.get("data") or []:
        theirs = model.get("tokenizer_fingerprint") if isinstance(model, dict) else None
        if model.get("id") == client.endpoint.model and theirs not in (None, tokenizer.fingerprint):
            raise RemoteError(
                f"the server's model '{client.endpoint.model}' has another tokenizer ({theirs}) than the data "
                f"({tokenizer.fingerprint}); give the data the server's (data.options.tokenizer)"
            )
