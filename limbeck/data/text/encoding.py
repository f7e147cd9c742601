"""From an example to token ids, and which of them are to be learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.data.hashing import hash_bytes
from limbeck.data.text.examples import Chat, Document, Example, Pair
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sequence.

    Attributes:
        ids: ``[n]`` int64.
        learn: ``[n]`` bool, which tokens are to be predicted; the first never counts, since nothing predicts it.
        prompt: number of tokens before the first that belongs to a completion; 0 for documents.
        record: what the line of data says beside its text; no part of the sequence's key.
        chat: the conversation that this is, which another tokenizer's template writes in its own way.
    """

    ids: np.ndarray
    learn: np.ndarray
    prompt: int = 0
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    chat: Chat | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Number of tokens that are to be predicted."""
        return int(self.learn[1:].sum())

    def key(self) -> int:
        """Returns a 64-bit hash of the ids and of what is to be learnt: equal sequences have equal keys."""
        return hash_bytes(self.ids.astype("<i8").tobytes() + np.packbits(self.learn).tobytes(), "sequence")

    def cut(self, length: int) -> Encoded:
        """Returns the first ``length`` tokens."""
        return Encoded(self.ids[:length], self.learn[:length], min(self.prompt, length), self.record, self.chat)


def encode_example(example: Example, tokenizer: Tokenizer, *, bos: bool = False, where: str = "a sample") -> Encoded:
    """Returns the tokens of an example.

    A document ends with the end-of-sequence token. Prompt and completion are tokenized apart, so that the prompt is
    what a model sees before it generates, and the end-of-sequence token belongs to the completion, unless the line of
    data says that it was cut off (``ended: false``). Of a conversation
    the assistant's turns are to be learnt, each with the token that ends it.

    Args:
        example: what to encode.
        tokenizer: the tokenizer.
        bos: begin with the begin-of-sequence token; a chat template says that itself.
        where: the example's name, for errors.

    Raises:
        DataError: the chat template cannot render it, or does not let the assistant's turns be found.
    """
    if isinstance(example, Chat):
        return _encode_chat(example, tokenizer, where)
    start = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
    if isinstance(example, Document):
        ids = [*start, *tokenizer.encode(example.text), tokenizer.eos_id]
        return Encoded(np.array(ids, np.int64), np.arange(len(ids)) >= len(start))
    assert isinstance(example, Pair)
    prompt = [*start, *tokenizer.encode(example.prompt)]
    ids = [*prompt, *tokenizer.encode(example.completion), *([tokenizer.eos_id] if example.ended else [])]
    return Encoded(np.array(ids, np.int64), np.arange(len(ids)) >= len(prompt), len(prompt), example.record)


def _encode_chat(chat: Chat, tokenizer: Tokenizer, where: str) -> Encoded:
    messages = chat.as_dicts()
    if _GENERATION.search(tokenizer.template):
        found = tokenizer.backend.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, learn = np.array(found["input_ids"], np.int64), np.array(found["assistant_masks"], bool)
        learn &= _from_message(chat, messages, tokenizer, where)
    else:
        text = tokenizer.render(messages)
        spans = _assistant_spans(messages, text, tokenizer, where, chat.learn_from)
        tokens, offsets = tokenizer.encode_with_offsets(text)
        ids = np.array(tokens, np.int64)
        learn = np.array([any(a <= start < b for a, b in spans) for start, _ in offsets], bool)
    first = np.flatnonzero(learn)
    if not len(first):
        raise DataError(f"{where}: the chat template leaves nothing of the assistant's turns to learn")
    return Encoded(ids, learn, int(first[0]), chat.record, chat)


def _from_message(chat: Chat, messages: list[dict[str, str]], tokenizer: Tokenizer, where: str) -> np.ndarray | bool:
    """Returns which tokens come after the messages that are given; True where all may be learnt."""
    if not chat.learn_from:
        return True
    given, text = tokenizer.render(messages[: chat.learn_from]), tokenizer.render(messages)
    if not text.startswith(given):
        raise DataError(
            f"{where}: the chat template of '{tokenizer.name}' writes the prompt differently once an answer follows, "
            "so the two cannot be told apart"
        )
    return np.array([start >= len(given) for start, _ in tokenizer.encode_with_offsets(text)[1]], bool)


def _assistant_spans(
    messages: list[dict[str, str]], text: str, tokenizer: Tokenizer, where: str, learn_from: int = 0
) -> list[tuple[int, int]]:
    """Returns the characters ``[start, stop)`` that the assistant writes, found by rendering ever longer beginnings."""
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number < learn_from:
            continue
        before = tokenizer.render(messages[:number], ask=True)
        after = tokenizer.render(messages[: number + 1])
        if not (after.startswith(before) and text.startswith(after)):
            raise DataError(
                f"{where}: the chat template of '{tokenizer.name}' writes earlier turns differently once later ones "
                "follow, so it cannot be told what the assistant wrote; mark it with {% generation %} in the "
                "template, or split the conversation into prompt and completion"
            )
        # What follows the token that ends a turn (a line break, mostly) is the template's, not the assistant's.
        spans.append((len(before), len(after.rstrip())))
    return spans
