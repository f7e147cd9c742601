"""A teacher behind a server, as a provider."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.data.text import TextLoader, Tokenizer
from limbeck.errors import RemoteError
from limbeck.hyperparameters import Count, NonNegative, Positive, WholeNumber, validated
from limbeck.signals import Batch, Signals, TopK
from limbeck.teachers.remote.client import Client, Endpoint
from limbeck.teachers.remote.ledger import Prices
from limbeck.teachers.remote.probe import Probe, probe
from limbeck.teachers.remote.scores import Scores, read_scores, score_request

_RESOLUTION = math.log(2.0**-24)
"""Logarithm of the smallest probability that single precision can tell from none beside 1."""


class RemoteTeacher:
    """Gives the truncated distributions that a server tells of a batch's text, and log-probabilities of its tokens.

    The server scores prompts (``completions`` with ``echo`` and ``logprobs``, as limbeck's own, vLLM and others do);
    its tokenizer must be that of the data, or the batch holds the text in its tokens too. What it answers is journalled
    before it is used, so a run that was killed goes on without paying again, and so does every later run about the same
    text. The mass of the tokens that it does not list is what their probabilities leave.

    Args:
        client: the server.
        tokenizer: the tokenizer of the data, or the teacher's own.
        top: log-probabilities a place.
        concurrency: requests at a time.
        rows: sequences of one request.
        own_tokens: whether batches hold the text in the teacher's own tokens as well, and it is asked about those.

    Raises:
        RemoteError: at the first batch: the server scores no prompts, or has another tokenizer.
    """

    def __init__(
        self,
        client: Client,
        tokenizer: Tokenizer,
        *,
        top: int = 20,
        concurrency: int = 4,
        rows: int = 4,
        own_tokens: bool = False,
    ) -> None:
        self._own_tokens = own_tokens
        self.client, self._tokenizer = client, tokenizer
        self._top, self._concurrency, self._rows = top, concurrency, rows
        self._probed: Probe | None = None

    @property
    def concurrency(self) -> int:
        """Requests at a time."""
        return self._concurrency

    def start(self) -> None:
        """Probes the server, where that was not done yet."""
        self.probed()

    def finish(self) -> None:
        """Gives the journal free; what was paid is in it."""
        self.client.close()

    def probed(self) -> Probe:
        """Returns what the server can do."""
        if self._probed is None:
            self._probed = probe(self.client, self._tokenizer, top=self._top)
        return self._probed

    def fingerprint(self) -> str:
        """Returns a hash of the server's address and the model's name: all that is known of the teacher."""
        endpoint = self.client.endpoint
        return hashlib.blake2b(f"{endpoint.url}/{endpoint.model}".encode(), digest_size=16).hexdigest()

    def __call__(self, batch: Batch) -> Signals:
        """Returns ``topk`` and ``logprobs`` of a batch, zeros where nothing is to be learnt; of its views likewise.

        Raises:
            RemoteError: the server fails, or gives fewer log-probabilities than it gave before.
            CostLimitError: the limit is reached.
        """
        self.probed()
        if self._own_tokens:
            read = {key: batch[f"teacher_{key}"] for key in ("inputs", "labels", "mask")}
            return self._said(Batch(read, index=batch["index"]))
        signals = self._said(batch)
        views = {view: self._said(batch.of_view(view)) for view in batch.get("views", {})}
        return replace(signals, views=views) if views else signals

    def _said(self, batch: Batch) -> Signals:
        rows = _sequences_of(batch)
        texts = [ids for row in rows for _, ids in row]
        scored = iter(self._scored(texts))
        return _signals(
            batch, [[(start, next(scored)) for start, _ in row] for row in rows], self._tokenizer.vocabulary
        )

    def _scored(self, texts: Sequence[list[int]]) -> list[Scores]:
        # Each text is known by itself: another epoch or seed puts it beside other texts.
        keys = [self._key(ids) for ids in texts]
        journal = self.client.journal
        missing = list({key: ids for key, ids in zip(keys, texts) if key not in journal}.items())
        parts = [missing[n : n + self._rows] for n in range(0, len(missing), self._rows)]
        with ThreadPoolExecutor(self._concurrency) as pool:
            list(pool.map(self._ask, parts))
        return [Scores.of(found) for found in journal.find_all(keys)]

    def _key(self, ids: list[int]) -> str:
        model = self.client.endpoint.model
        return self.client.key_of("completions", {"model": model, **score_request([ids], top=self._top), "prompt": ids})

    def _ask(self, asked: Sequence[tuple[str, list[int]]]) -> None:
        texts = [ids for _, ids in asked]

        def read(answer: dict[str, Any]) -> list[dict[str, Any]]:
            scores = read_scores(answer, texts, self._tokenizer)
            least = min(len(place) for s in scores for place in s.top)
            if least < min(self.probed().top, self._top):
                raise ValueError(f"it gives {least} log-probabilities at a place, fewer than at the start")
            return [s.plain() for s in scores]

        self.client.ask("completions", score_request(texts, top=self._top), read, [key for key, _ in asked])


def _sequences_of(batch: Batch) -> list[list[tuple[int, list[int]]]]:
    """Returns the sequences of every row, each with the place where it begins and with the token that follows it.

    The last token of a sequence is predicted and never read; it stands in the labels. Where it does not count, what
    comes before is enough.
    """
    inputs, labels = batch["inputs"], batch["labels"].cpu()
    ids, seen = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
    segments = inputs["segment_ids"].cpu() if "segment_ids" in inputs else seen.long()
    rows = []
    for row in range(len(ids)):
        found = []
        for number in range(1, int(segments[row].max()) + 1):
            places = (segments[row] == number).nonzero()[:, 0]
            last = int(labels[row, places[-1]])
            tokens = ids[row, places].tolist() + ([last] if last >= 0 else [])
            found.append((int(places[0]), tokens))
        rows.append(found)
    return rows


def _signals(batch: Batch, rows: Sequence[Sequence[tuple[int, Scores]]], vocabulary: int) -> Signals:
    shape = tuple(batch["labels"].shape)
    kept = min(len(place) for row in rows for _, scores in row for place in scores.top)
    if kept < 1:
        raise RemoteError("the server listed no token at some place, so there is no distribution to learn from")
    logprobs, own = torch.zeros(*shape, kept), torch.zeros(shape)
    indices, tail = torch.zeros(*shape, kept, dtype=torch.long), torch.full(shape, -math.inf)
    for number, row in enumerate(rows):
        for start, scores in row:
            here = slice(start, start + len(scores.top))
            values = torch.tensor([[v for _, v in place[:kept]] for place in scores.top])
            logprobs[number, here] = values
            indices[number, here] = torch.tensor([[i for i, _ in place[:kept]] for place in scores.top])
            tail[number, here] = _rest(values) if kept < vocabulary else -math.inf
            own[number, here] = torch.tensor(scores.logprobs)
    mask = batch["mask"].cpu()
    total = torch.logaddexp(logprobs.logsumexp(-1), tail)
    logprobs = torch.where(mask.unsqueeze(-1), logprobs - total.unsqueeze(-1), torch.zeros(()))
    tail = torch.where(mask, tail - total, torch.zeros(()))
    found = Signals(topk=TopK(logprobs, indices, tail, vocabulary), logprobs=torch.where(mask, own, torch.zeros(())))
    return found.map(lambda t: t.to(batch["labels"].device))


def _rest(logprobs: Tensor) -> Tensor:
    """Returns the log of what listed probabilities ``[n, k]`` leave to the others.

    Servers compute in single precision, so where they leave nothing that it could tell, they leave its resolution: to
    say that all others are impossible would make a reverse KL infinite.
    """
    total = logprobs.double().logsumexp(-1).clamp(max=0.0)
    left = torch.where(total < 0, torch.log(-torch.expm1(total)), torch.full_like(total, -math.inf))
    return left.clamp(min=_RESOLUTION).float()


def _remote(
    *,
    url: str,
    model: str,
    top: Count = 20,
    journal: str | None = None,
    key_variable: str | None = None,
    timeout: Positive = 120.0,
    retries: WholeNumber = 6,
    wait: NonNegative = 1.0,
    requests_per_minute: Positive | None = None,
    concurrency: Count = 4,
    rows: Count = 4,
    price: dict[str, float] | None = None,
) -> dict[str, Any]:
    endpoint = Endpoint(url, model, key_variable, timeout, retries, wait, requests_per_minute)
    prices = _prices(**(price or {}))
    place = Path(journal) if journal else Path("runs") / "remote" / _name(url, model)
    return {
        "client": Client(endpoint, place, prices),
        "top": top,
        "concurrency": concurrency,
        "rows": rows,
    }


def _name(url: str, model: str) -> str:
    return hashlib.blake2b(f"{url}/{model}".encode(), digest_size=6).hexdigest()


def _prices_of(*, prompt: NonNegative = 0.0, completion: NonNegative = 0.0, limit: NonNegative | None = None) -> Prices:
    return Prices(prompt, completion, limit)


_prices = validated("remote.price", _prices_of)
_checked = validated("remote", _remote)


def remote_teacher(spec: Mapping[str, Any], loader: TextLoader, own: Tokenizer | None = None) -> RemoteTeacher:
    """Returns the teacher that a recipe's ``remote`` names.

    Args:
        spec: ``url`` and ``model``; ``top`` (20), ``journal`` (a folder of its own for each server and model, under
            ``runs/remote``), ``key_variable``, ``timeout``, ``retries``, ``wait``, ``requests_per_minute``,
            ``concurrency``, ``rows`` (sequences of one request) and ``price`` (``prompt``, ``completion``, ``limit``).
        loader: the loader of the text.
        own: the teacher's tokenizer, where it reads other tokens than the data's.

    Raises:
        RecipeError: a key is unknown or out of range.
        CacheError: the journal is in use or damaged.
    """
    tokenizer = loader.source.tokenizer if own is None else own
    return RemoteTeacher(tokenizer=tokenizer, own_tokens=own is not None, **_checked(**dict(spec)))
