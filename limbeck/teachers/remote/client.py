"""Requests to a server that speaks the OpenAI protocol: retried, paced, journalled, paid once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck import streams
from limbeck.errors import RecipeError, RemoteError, UnreachableError
from limbeck.teachers.remote.journal import Journal
from limbeck.teachers.remote.ledger import Ledger, Prices

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_SHUT_OUT = {401, 402, 403, 404}
_UNUSABLE = "its answer cannot be used"
_SECRET = re.compile(r"[^ -~]")


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher is and how to treat it.

    Attributes:
        url: base address, ending in ``/v1`` mostly.
        model: what the server calls the model.
        key_variable: environment variable with the key; a key never stands in a recipe. No key is sent when None.
        timeout: seconds until a request without an answer is given up.
        retries: how often a request is repeated that failed for a reason that may pass.
        wait: seconds before the first repetition; they double each time, up to a minute.
        requests_per_minute: no more requests than that are sent; no bound when None.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 120.0
    retries: int = 6
    wait: float = 1.0
    requests_per_minute: float | None = None

    def key(self) -> str | None:
        """Returns the key.

        Raises:
            RecipeError: the environment variable is empty or holds what cannot be sent.
        """
        if self.key_variable is None:
            return None
        value = os.environ.get(self.key_variable, "").strip()
        if not value or _SECRET.search(value):
            raise RecipeError(f"the environment variable {self.key_variable} holds no key for {self.url}")
        return value


Reader = Callable[[dict[str, Any]], Any]
"""Takes what matters out of an answer; raises ValueError where the answer is not what was asked for."""


class Client:
    """Asks an endpoint, at most once for the same thing.

    Args:
        endpoint: where.
        journal: folder of the answers.
        prices: what tokens cost, and when to stop.

    Attributes:
        ledger: what answers cost, those of earlier runs included.

    Raises:
        RecipeError: the address is none.
        CacheError: the journal is in use or damaged.
    """

    ledger: Ledger

    def __init__(self, endpoint: Endpoint, journal: str | Path, prices: Prices | None = None) -> None:
        if not endpoint.url.startswith(("http://", "https://")):
            raise RecipeError(f"the address '{endpoint.url}' of a server should begin with http:// or https://")
        self.endpoint = endpoint
        self._place, self._prices = journal, prices or Prices()
        self._journal: Journal | None = None
        self._process, self._processes = _of_run()
        self._entered = 0
        self._turn = threading.Lock()
        self._next = 0.0
        self._opened()

    @property
    def journal_folder(self) -> Path:
        """Where answers are kept."""
        return Path(self._place)

    @property
    def journal(self) -> Journal:
        """Answers that were paid."""
        return self._opened()

    def _opened(self) -> Journal:
        """Returns the journal, opened again after it was given free, and enters what it holds into the ledger."""
        with self._turn:
            if self._journal is None:
                self._journal = Journal(self._place, shared=self._process > 0)
                self.ledger, self._entered = Ledger(self._prices), 0
            # What other processes of this run have paid counts too.
            for usage in self._journal.usages(self._entered):
                self.ledger.add(usage)
                self._entered += 1
            return self._journal

    def close(self) -> None:
        """Gives the journal free for other processes, until something is asked again."""
        with self._turn:
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def key_of(self, path: str, body: Mapping[str, Any]) -> str:
        """Returns what tells requests apart: server, model and everything that is asked."""
        text = json.dumps([self.endpoint.url, path, body], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def ask(self, path: str, body: Mapping[str, Any], read: Reader, parts: Sequence[str] = ()) -> Any:
        """Returns what ``read`` takes out of the answer to a request, from the journal where it was paid before.

        Args:
            path: below the base address, such as ``completions``.
            body: the request, without the model.
            read: takes what is to be kept out of an answer.
            parts: of a request about several things, whose answer ``read`` makes a list: keys (:meth:`key_of`) under
                which the journal finds each by itself, whatever it is asked together with later.

        Raises:
            RemoteError: the server refuses the request, or does not answer it as it should, however often;
                :class:`~limbeck.errors.UnreachableError` where it does not answer at all, or not this client.
            CostLimitError: the limit is reached.
            CacheError: the journal cannot be written.
        """
        whole = {"model": self.endpoint.model, **body}
        key = self.key_of(path, whole)
        if key in self.journal:
            return self.journal.find(key)
        problem = ""
        for attempt in range(self.endpoint.retries + 1):
            if attempt:
                self._rest(key, attempt, problem)
            self._opened()
            self.ledger.check()
            self._pace()
            answer, problem = self._send(path, whole, key)
            if answer is None:
                continue
            usage = {k: v for k, v in (answer.get("usage") or {}).items() if isinstance(v, int)}
            try:
                found = read(answer)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                # The server was paid for this too, though nothing can be made of it.
                self.journal.keep(f"{key}/unusable/{attempt}/{time.time_ns()}", None, usage)
                problem = f"{_UNUSABLE}: {error or type(error).__name__}"
                continue
            self.journal.keep(key, found, usage, parts)
            self._opened()
            return found
        kind = RemoteError if problem.startswith(_UNUSABLE) else UnreachableError
        raise kind(
            f"{self.endpoint.url} did not answer in {self.endpoint.retries + 1} attempts; the last time {problem}. "
            f"{len(self.journal):,} answers are kept; the same command goes on from there"
        )

    def get(self, path: str) -> dict[str, Any] | None:
        """Returns what the server says at a path that costs nothing; None where it says nothing."""
        request = urllib.request.Request(f"{self.endpoint.url.rstrip('/')}/{path}", headers=self._headers())
        try:
            with urllib.request.urlopen(request, timeout=self.endpoint.timeout) as response:
                found = json.loads(response.read())
        except (OSError, HTTPException, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _headers(self) -> dict[str, str]:
        key = self.endpoint.key()
        return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def _send(self, path: str, body: Mapping[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
        """Returns an answer, or None and why there is none that could not come later.

        Raises:
            RemoteError: repeating would not help.
        """
        request = urllib.request.Request(
            f"{self.endpoint.url.rstrip('/')}/{path}",
            data=json.dumps(body).encode(),
            headers={**self._headers(), "Idempotency-Key": key},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=self.endpoint.timeout) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error)
            if error.code not in _RETRIED:
                kind = UnreachableError if error.code in _SHUT_OUT else RemoteError
                raise kind(f"{self.endpoint.url} refuses the request ({error.code}): {said}") from None
            self._hold(error.headers.get("Retry-After"))
            return None, f"it said {error.code}: {said}"
        except (OSError, HTTPException) as error:
            return None, f"it could not be reached: {getattr(error, 'reason', None) or error or type(error).__name__}"
        except ValueError:
            return None, "its answer was not JSON"
        return (answer, "") if isinstance(answer, dict) else (None, "its answer was not a JSON object")

    def _hold(self, seconds: str | None) -> None:
        """Sends nothing for as long as the server asks."""
        try:
            wait = min(float(seconds or 0), 600.0)
        except ValueError:
            wait = 0.0
        with self._turn:
            self._next = max(self._next, time.monotonic() + wait)

    def _pace(self) -> None:
        """Waits until another request may be sent."""
        gap = 60.0 * self._processes / self.endpoint.requests_per_minute if self.endpoint.requests_per_minute else 0.0
        with self._turn:
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + gap
        time.sleep(max(start - now, 0.0))

    def _rest(self, key: str, attempt: int, problem: str) -> None:
        """Waits before another attempt: longer each time, and not as long as the others that failed with it."""
        chance = float(streams.uniform(int(key[:8], 16), "retry", attempt, np.array([0]), 1)[0, 0])
        time.sleep(min(self.endpoint.wait * 2 ** (attempt - 1), 60.0) * (0.5 + chance))


def _of_run() -> tuple[int, int]:
    """Returns the number of this process in its run, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _said(error: urllib.error.HTTPError) -> str:
    """Returns a server's explanation, in one line."""
    try:
        content = error.read(4096)
        message = json.loads(content)["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError, HTTPException):
        message = error.reason
    return " ".join(str(message).split())[:300]
