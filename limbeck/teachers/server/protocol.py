"""The OpenAI protocol as far as a teacher needs it: models, completions with scored prompts, chat completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field

from limbeck.errors import RecipeError
from limbeck.hyperparameters import validated_model
from limbeck.teachers.server.scoring import Scored, Scorer

_Temperature = Annotated[float, Ge(0), Le(100)]
_TopP = Annotated[float, Ge(0), Le(1)]
_WholeNumber = Annotated[int, Ge(0)]
_Count = Annotated[int, Ge(1), Le(128)]
IGNORED = ("user", "logit_bias", "presence_penalty", "frequency_penalty", "metadata", "store", "best_of", "suffix")
"""Keys that are taken where they ask for nothing (null, zero, empty), and refused otherwise."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = ""
    temperature: _Temperature = 1.0
    top_p: _TopP = 1.0
    n: _Count = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    return_tokens_as_token_ids: bool = Field(False, description="name tokens `token_id:17`, which no text is")


class Completion(_Asked):
    """A request for ``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: _WholeNumber | None = 16
    logprobs: _WholeNumber | None = None
    echo: bool = False


class Chat(_Asked):
    """A request for ``/v1/chat/completions``."""

    messages: list[dict[str, Any]]
    max_tokens: _WholeNumber | None = None
    max_completion_tokens: _WholeNumber | None = None
    logprobs: bool | None = False
    top_logprobs: _WholeNumber | None = None


class Protocol:
    """Answers requests with a model.

    Args:
        scorer: the model.
        name: what the model is called.
    """

    def __init__(self, scorer: Scorer, name: str) -> None:
        self.scorer, self.name = scorer, name
        self._tokenizer = scorer.tokenizer

    def models(self) -> dict[str, Any]:
        """Returns the list of models, which is one, with what a client must know to use its log-probabilities."""
        tokenizer = self._tokenizer
        about = {
            "max_model_len": self.scorer.context,
            "max_logprobs": self.scorer.most,
            "vocabulary": tokenizer.vocabulary,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "template_fingerprint": tokenizer.template_fingerprint,
        }
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "limbeck", **about}
        return {"object": "list", "data": [model]}

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answers ``/v1/completions``.

        Raises:
            RecipeError: the request is malformed or asks for what this server does not do.
        """
        asked = validated_model(Completion, _without_idle(body), "the request")
        self._check(asked)
        prompts = self._prompts(asked.prompt)
        top = self._top(asked.logprobs)
        count = 16 if asked.max_tokens is None else asked.max_tokens
        if not count and not asked.echo:
            raise RecipeError("the request: max_tokens is 0 and echo is false, so there is nothing to answer")
        choices: list[dict[str, Any]] = []
        written = 0
        for ids in prompts:
            for number in range(asked.n):
                found = self._scored(asked, ids, top, count, number)
                written += len(found.ids) - (len(ids) if asked.echo else 0)
                choices.append(self._choice(len(choices), found, asked, count))
        usage = _usage(sum(map(len, prompts)), written)
        return self._envelope("cmpl", "text_completion", choices, usage)

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answers ``/v1/chat/completions``.

        Raises:
            RecipeError: the request is malformed or asks for what this server does not do.
            DataError: the chat template refuses the conversation.
        """
        asked = validated_model(Chat, _without_idle(body), "the request")
        self._check(asked)
        ids = self._tokenizer.encode(self._tokenizer.render(asked.messages, ask=True))
        top = self._top(asked.top_logprobs or 0)
        room = self.scorer.context - len(ids)
        count = asked.max_completion_tokens or asked.max_tokens or min(room, 512)
        choices, written = [], 0
        for number in range(asked.n):
            found = self._written(asked, ids, top, count, number)
            written += len(found.ids)
            content = [self._chat_token(found, place, asked) for place in range(len(found.ids))]
            choices.append(
                {
                    "index": number,
                    "message": {"role": "assistant", "content": self._text(found, asked)},
                    "logprobs": {"content": content} if asked.logprobs else None,
                    "finish_reason": "stop" if found.ended or _stopped(self._raw(found), asked.stop) else "length",
                }
            )
        return self._envelope("chatcmpl", "chat.completion", choices, _usage(len(ids), written))

    def _check(self, asked: _Asked) -> None:
        if asked.stream:
            raise RecipeError("the request: this server does not stream; set stream to false")
        if asked.model and asked.model != self.name:
            raise RecipeError(f"the request: there is no model '{asked.model}', only '{self.name}'")

    def _top(self, wanted: int | None) -> int:
        if wanted is not None and wanted > self.scorer.most:
            raise RecipeError(f"the request: at most {self.scorer.most} log-probabilities a place are given")
        return wanted or 0

    def _prompts(self, prompt: str | Sequence[Any]) -> list[list[int]]:
        if not prompt:
            raise RecipeError("the request: the prompt is empty")
        if isinstance(prompt, str):
            return [self._tokenizer.encode(prompt)]
        if prompt and all(isinstance(p, int) for p in prompt):
            return [list(prompt)]
        return [self._tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompt]

    def _scored(self, asked: Completion, ids: list[int], top: int, count: int, number: int) -> Scored:
        """Returns prompt and completion as far as they are asked for."""
        new = self._written(asked, ids, top, count, number) if count else Scored([], [], [])
        if not asked.echo:
            return new
        old = self.scorer.score(ids, top=top, temperature=asked.temperature)
        return Scored(old.ids + new.ids, old.logprobs + new.logprobs, old.top + new.top, new.ended)

    def _written(self, asked: _Asked, ids: list[int], top: int, count: int, number: int) -> Scored:
        seed = None if asked.seed is None else asked.seed + number
        return self.scorer.write(ids, count=count, top=top, temperature=asked.temperature, top_p=asked.top_p, seed=seed)

    def _choice(self, index: int, found: Scored, asked: Completion, count: int) -> dict[str, Any]:
        raw = self._raw(found)
        ended = found.ended or _stopped(raw, asked.stop)
        return {
            "index": index,
            "text": self._text(found, asked),
            "logprobs": None if asked.logprobs is None else self._logprobs(found, asked),
            "finish_reason": "stop" if ended else "length",
        }

    def _logprobs(self, found: Scored, asked: _Asked) -> dict[str, Any]:
        names = [self._name(i, asked) for i in found.ids]
        offsets, here = [], 0
        for i in found.ids:
            offsets.append(here)
            here += len(self._tokenizer.decode([i], special=True))
        top = [None if t is None else {self._name(i, asked): v for i, v in t} for t in found.top]
        return {"tokens": names, "token_logprobs": found.logprobs, "top_logprobs": top, "text_offset": offsets}

    def _chat_token(self, found: Scored, place: int, asked: _Asked) -> dict[str, Any]:
        top = found.top[place] or []
        entry = self._chat_entry(found.ids[place], found.logprobs[place], asked)
        return {**entry, "top_logprobs": [self._chat_entry(i, v, asked) for i, v in top]}

    def _chat_entry(self, token: int, logprob: float | None, asked: _Asked) -> dict[str, Any]:
        text = self._tokenizer.decode([token], special=True)
        return {"token": self._name(token, asked), "logprob": logprob, "bytes": list(text.encode())}

    def _name(self, token: int, asked: _Asked) -> str:
        if asked.return_tokens_as_token_ids:
            return f"token_id:{token}"
        return self._tokenizer.decode([token], special=True)

    def _raw(self, found: Scored) -> str:
        return self._tokenizer.decode(found.ids)

    def _text(self, found: Scored, asked: _Asked) -> str:
        text = self._raw(found)
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        ends = [text.index(stop) for stop in stops if stop and stop in text]
        return text[: min(ends)] if ends else text

    def _envelope(self, kind: str, form: str, choices: list[Any], usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": form,
            "created": int(time.time()),
            "model": self.name,
            "choices": choices,
            "usage": usage,
        }


def _without_idle(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a request without the keys that ask for nothing."""
    return {key: value for key, value in body.items() if not (key in IGNORED and value in (None, 0, 1, "", {}, []))}


def _stopped(text: str, stop: str | list[str] | None) -> bool:
    return any(s and s in text for s in ([stop] if isinstance(stop, str) else stop or []))


def _usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
