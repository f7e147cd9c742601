"""Answers that were paid, kept before they are used: a kill loses none, and none is paid twice."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from limbeck.errors import CacheError
from limbeck.storage import folder_lock, is_full

FILE = "answers.jsonl"
_Place = tuple[int, int | None]
"""Where a line begins, and the number of the item in its answer; None for the whole answer."""


class Journal:
    """A file to which every answer is added, with a checksum, before anybody sees it.

    A line is on the disk when :meth:`keep` returns. A line that a kill cut off is removed when the journal is opened
    again; its request is then sent again under the same idempotency key, by which a server that knows such keys does
    not charge twice.

    Args:
        folder: where the journal is; made when absent.
        shared: write beside the process that holds the journal, in a run of several processes, of which one holds it.

    Raises:
        CacheError: another process uses it, it cannot be written, or a line in its middle is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal(folder) as journal:
        ...         journal.keep("question", {"text": "answer"}, {"prompt_tokens": 3})
        ...     with Journal(folder) as journal:
        ...         journal.find("question")
        {'text': 'answer'}
    """

    def __init__(self, folder: str | Path, *, shared: bool = False) -> None:
        self.path = Path(folder) / FILE
        self._open = ExitStack()
        self._turn = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._usages: list[dict[str, Any]] = []
        self._seen = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not shared:
                self._open.enter_context(folder_lock(self.path.parent, ".journal-lock"))
            # Both stay open as long as the journal, which closes them.
            self._file = self._open.enter_context(open(self.path, "ab"))  # noqa: SIM115
            self._reader = self._open.enter_context(open(self.path, "rb"))  # noqa: SIM115
            with self._alone():
                self._catch_up()
        except BlockingIOError:
            raise CacheError(
                f"another process uses the journal '{self.path.parent}'; wait for it, or name another in remote.journal"
            ) from None
        except CacheError:
            self._open.close()
            raise
        except OSError as error:
            self._open.close()
            raise CacheError(f"the journal '{self.path}' cannot be used: {error.strerror or error}") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the journal free for other processes."""
        self._open.close()

    def __len__(self) -> int:
        return len(self._usages)

    def __contains__(self, key: str) -> bool:
        if key not in self._places:
            with self._alone():
                self._catch_up()
        return key in self._places

    def usages(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yields the usage of every answer there is, from a number on."""
        yield from self._usages[start:]

    def find(self, key: str) -> Any:
        """Returns the answer to a request, None where it was never answered."""
        return self.find_all([key])[0]

    def find_all(self, keys: Sequence[str]) -> list[Any]:
        """Returns the answers to requests, or the parts of them that have these keys; each line is read once."""
        read: dict[int, Any] = {}
        found: list[Any] = []
        for key in keys:
            if key not in self._places:
                found.append(None)
                continue
            place, part = self._places[key]
            if place not in read:
                read[place] = self._answer(place)
            found.append(read[place] if part is None else read[place][part])
        return found

    def _answer(self, place: int) -> Any:
        with self._turn:
            self._reader.seek(place)
            line = self._reader.readline()
        return _parsed(line)["answer"]

    def keep(self, key: str, answer: Any, usage: dict[str, Any], parts: Sequence[str] = ()) -> None:
        """Writes an answer to the disk.

        Args:
            key: of the request.
            answer: anything that JSON holds.
            usage: what the server counted.
            parts: where the answer is a list, keys under which its items are found by themselves.

        Raises:
            CacheError: the disk is full; what was written before is kept.
        """
        record = {"key": key, "usage": usage, "answer": answer, **({"parts": list(parts)} if parts else {})}
        text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        with self._alone():
            self._catch_up()
            try:
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                os.truncate(self.path, self._seen)
                what = "the disk is full" if is_full(error) else str(error.strerror or error)
                raise CacheError(
                    f"the journal '{self.path}' could not be written: {what}; earlier answers are kept"
                ) from None
            self._enter(record, len(line))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other threads away, and the other processes of the run."""
        with self._turn:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Reads what was written since, by whomever; removes a last line that a kill cut off."""
        if os.fstat(self._reader.fileno()).st_size == self._seen:
            return
        self._reader.seek(self._seen)
        for line in self._reader:
            record = _parsed(line) if line.endswith(b"\n") else None
            if record is None:
                if self._reader.read(1):
                    raise CacheError(
                        f"line {len(self._usages) + 1} of the journal '{self.path}' is damaged; remove that line, its "
                        "answer will be asked for again"
                    )
                # Nobody is writing now, so whoever began this line is gone.
                os.truncate(self.path, self._seen)
                break
            self._enter(record, len(line))

    def _enter(self, record: Mapping[str, Any], length: int) -> None:
        self._places |= _placed(record, self._seen)
        self._usages.append(record["usage"])
        self._seen += length


def _placed(record: Mapping[str, Any], place: int) -> dict[str, _Place]:
    """Returns where the answer of a line is found, and each of its parts."""
    return {str(record["key"]): (place, None), **{str(k): (place, n) for n, k in enumerate(record.get("parts", ()))}}


def _parsed(line: bytes) -> Any:
    """Returns the record of a line; None where it is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        record = json.loads(text)
        return record if isinstance(record, dict) and {"key", "usage", "answer"} <= record.keys() else None
    except ValueError:
        return None
