"""Text that a remote teacher writes: training data for students that see no probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from limbeck.data.text import Chat, Document, Example, Pair
from limbeck.data.text.pairs import asked
from limbeck.errors import DataError, RemoteError
from limbeck.generation.answers import Lines
from limbeck.generation.written import Completion
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
    prompts = [_asks(example) for example in examples]
    options = {"max_tokens": max_tokens, "temperature": temperature}
    found = RemoteWriter(client, options, samples=samples, seed=seed, concurrency=concurrency).write(prompts)
    made = Lines(keep_cut_off=False)
    for prompt, answers in zip(prompts, found):
        made.add(prompt, made.usable(prompt, answers))
    if not made.lines:
        raise RemoteError("every completion was empty or longer than max_tokens; raise max_tokens")
    write_durably(Path(out), [("\n".join(made.lines) + "\n").encode()])
    return len(made.lines)


class RemoteWriter:
    """Writes through a server; every answer is paid once.

    Args:
        client: the server.
        options: what requests say of sampling: ``max_tokens``, ``temperature``, ``top_p``.
        samples: completions a prompt.
        seed: seed of the first completion; the others follow.
        concurrency: requests at a time.
    """

    def __init__(
        self, client: Client, options: Mapping[str, Any], *, samples: int = 1, seed: int = 0, concurrency: int = 4
    ) -> None:
        self._client, self._options = client, dict(options)
        self._samples, self._seed, self._concurrency = samples, seed, concurrency

    def write(self, prompts: Sequence[Pair | Chat], numbers: Sequence[int] = ()) -> list[list[Completion]]:
        """Returns the completions of each prompt.

        Raises:
            RemoteError: the server fails.
            CostLimitError: the limit is reached.
        """
        jobs = [(p, {**self._options, "seed": self._seed + n}) for p in prompts for n in range(self._samples)]
        with ThreadPoolExecutor(self._concurrency) as pool:
            found = list(pool.map(lambda job: _complete(self._client, *job), jobs))
        return [found[n : n + self._samples] for n in range(0, len(found), self._samples)]


def _asks(example: Example) -> Pair | Chat:
    if isinstance(example, Document):
        raise DataError("a document has no prompt to complete; give pairs of prompt and completion, or conversations")
    return example


def _complete(client: Client, example: Pair | Chat, options: dict[str, Any]) -> Completion:
    if isinstance(example, Pair):
        body = {"prompt": example.prompt, **options}
        found = client.ask("completions", body, lambda answer: _read(answer, "text"))
    else:
        body = {"messages": Chat(asked(example)).as_dicts(), **options}
        found = client.ask("chat/completions", body, lambda answer: _read(answer, "message"))
    return Completion(str(found["text"]), bool(found["whole"]), int(found.get("tokens") or 0))


def _read(answer: dict[str, Any], where: str) -> dict[str, Any]:
    choice = answer["choices"][0]
    text = choice["text"] if where == "text" else choice["message"]["content"]
    if not isinstance(text, str):
        raise ValueError("it holds no text")
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    return {"text": text, "whole": choice.get("finish_reason") == "stop", "tokens": tokens}
