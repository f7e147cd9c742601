"""Text that a remote teacher writes: training data for students that see no probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from limbeck.data.text import Chat, Document, Example, Pair
from limbeck.errors import DataError, RemoteError
from limbeck.storage import write_durably
from limbeck.teachers.remote.client import Client


def complete_prompts(
    client: Client,
    examples: Sequence[Example],
    out: str | Path,
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    concurrency: int = 4,
) -> int:
    """Writes a JSONL file of what a server writes after prompts: sequence-level distillation from a black box.

    Pairs give their prompt, conversations their messages up to the first answer. A killed call continues without
    paying again. Completions that were cut off by ``max_tokens`` or are empty are left out, since a student would
    learn to stop there.

    Args:
        client: the server.
        examples: where the prompts come from.
        out: the file, with ``prompt`` and ``completion``, or ``messages``.
        max_tokens: longest completion.
        temperature: of sampling.
        samples: completions of each prompt.
        seed: seed of the first completion; the others follow.
        concurrency: requests at a time.

    Returns:
        Number of lines.

    Raises:
        DataError: a sample has no prompt.
        RemoteError: the server fails, or every completion was cut off.
        CostLimitError: the limit is reached.
    """
    shared = {"max_tokens": max_tokens, "temperature": temperature}
    jobs = [(example, {**shared, "seed": seed + n}) for example in examples for n in range(samples)]
    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(lambda job: _complete(client, *job), jobs))
    lines = [_line(example, text) for (example, _), (text, whole) in zip(jobs, answers) if whole and text.strip()]
    if not lines:
        raise RemoteError("every completion was empty or longer than max_tokens; raise max_tokens")
    write_durably(Path(out), [("\n".join(lines) + "\n").encode()])
    return len(lines)


def _complete(client: Client, example: Example, options: dict[str, Any]) -> tuple[str, bool]:
    """Returns a completion and whether it came to its own end."""
    if isinstance(example, Document):
        raise DataError("a document has no prompt to complete; give pairs of prompt and completion, or conversations")
    if isinstance(example, Pair):
        body = {"prompt": example.prompt, **options}
        found = client.ask("completions", body, lambda answer: _read(answer["choices"][0], "text"))
    else:
        body = {"messages": _asked(example), **options}
        found = client.ask("chat/completions", body, lambda answer: _read(answer["choices"][0], "message"))
    return str(found["text"]), bool(found["whole"])


def _read(choice: dict[str, Any], where: str) -> dict[str, Any]:
    text = choice["text"] if where == "text" else choice["message"]["content"]
    if not isinstance(text, str):
        raise ValueError("it holds no text")
    return {"text": text, "whole": choice.get("finish_reason") == "stop"}


def _asked(chat: Chat) -> list[dict[str, str]]:
    """Returns the messages before the first answer."""
    messages = chat.as_dicts()
    first = next(n for n, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:first]


def _line(example: Example, text: str) -> str:
    if isinstance(example, Pair):
        return json.dumps({"prompt": example.prompt, "completion": text}, ensure_ascii=False)
    assert isinstance(example, Chat)
    return json.dumps({"messages": [*_asked(example), {"role": "assistant", "content": text}]}, ensure_ascii=False)
