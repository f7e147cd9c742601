"""What is written after prompts, kept part by part: a kill loses one part at most, and none is written twice."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from limbeck.data.text.examples import Chat, Pair
from limbeck.errors import CacheError
from limbeck.storage import folder_lock, is_full, write_durably

PLAN = "plan.json"
_SHOWN = 120


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt.

    Attributes:
        text: the text, without special tokens.
        ended: whether the writer ended it, and was not cut off.
        tokens: number of tokens.
    """

    text: str
    ended: bool
    tokens: int


class Writer(Protocol):
    """Writes after prompts."""

    def write(self, prompts: Sequence[Pair | Chat], numbers: Sequence[int]) -> list[list[Completion]]:
        """Returns the completions of each prompt.

        Args:
            prompts: examples, of which what comes before the answer is the prompt.
            numbers: number of each, from which its random numbers come.
        """


class Parts:
    """A folder of completions, a file for so many prompts.

    A part appears by one rename and holds a checksum; what is damaged counts as missing and is written again.

    Args:
        folder: the folder; made when absent.
        plan: everything that decides what is written. A folder with another plan is refused.
        prompts: number of prompts.
        size: prompts of a part.

    Raises:
        CacheError: the folder holds the parts of another plan, or cannot be written.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], *, prompts: int, size: int) -> None:
        self.folder, self.prompts, self.size = folder, prompts, size
        self._plan = {**plan, "prompts_a_part": size}
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            refuse_another(folder / PLAN, self._plan, f"'{folder}'")
            if not (folder / PLAN).exists():
                write_durably(folder / PLAN, [json.dumps(self._plan, indent=1, sort_keys=True).encode()])

    def __len__(self) -> int:
        return -(-self.prompts // self.size)

    def numbers(self, part: int) -> range:
        """Returns the numbers of a part's prompts."""
        return range(part * self.size, min((part + 1) * self.size, self.prompts))

    def missing(self) -> list[int]:
        """Returns the parts that are not there, or not whole."""
        return [part for part in range(len(self)) if self._read(part) is None]

    def store(self, part: int, completions: Sequence[Sequence[Completion]]) -> None:
        """Writes a part.

        Raises:
            CacheError: the disk is full, or the folder cannot be written; finished parts are kept.
        """
        body = "".join(json.dumps([asdict(c) for c in group], ensure_ascii=False) + "\n" for group in completions)
        with _explained(self.folder):
            write_durably(self._path(part), [f"{zlib.crc32(body.encode()):08x}\n".encode(), body.encode()])

    def completions(self) -> Iterator[list[Completion]]:
        """Yields the completions of every prompt, in order.

        Raises:
            CacheError: a part is missing.
        """
        for part in range(len(self)):
            found = self._read(part)
            if found is None:
                raise CacheError(f"part {part} of '{self.folder}' is missing; run the same command again")
            yield from found

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.jsonl"

    def _read(self, part: int) -> list[list[Completion]] | None:
        try:
            content = self._path(part).read_bytes()
        except FileNotFoundError:
            return None
        checksum, _, body = content.partition(b"\n")
        if checksum != b"%08x" % zlib.crc32(body):
            return None
        # Not `splitlines`, for which a line separator within an answer would end a line too.
        groups = [[Completion(**c) for c in json.loads(line)] for line in body.decode().split("\n")[:-1]]
        return groups if len(groups) == len(self.numbers(part)) else None


def write_parts(
    parts: Parts,
    prompts: Sequence[Pair | Chat],
    writer: Writer,
    *,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Has the missing parts written.

    Args:
        parts: where they go.
        prompts: all prompts.
        writer: writes.
        share: number of this process and number of processes: each writes every so many of the missing parts.
        progress: called with the prompts that are done and all of them.
    """
    missing = parts.missing()
    done = parts.prompts - sum(len(parts.numbers(part)) for part in missing)
    for part in missing[share[0] :: share[1]]:
        if progress is not None:
            progress(done, parts.prompts)
        numbers = parts.numbers(part)
        parts.store(part, writer.write([prompts[n] for n in numbers], numbers))
        done += len(numbers) * share[1]
    if progress is not None:
        progress(parts.prompts, parts.prompts)


def refuse_another(path: Path, plan: Mapping[str, Any], owner: str) -> None:
    """Refuses a file that says that something else was written.

    Raises:
        CacheError: says what differs, both values and the way out.
    """
    try:
        known = json.loads(path.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise CacheError(f"{owner} was not written by limbeck ('{path.name}' cannot be read); choose another place")
    for key in sorted({*known, *plan}):
        if known.get(key) != plan.get(key):
            held, asked = (str(side.get(key))[:_SHOWN] for side in (known, plan))
            raise CacheError(
                f"{owner} holds text that was written with another '{key}': {held}, and now it is {asked}; choose "
                "another place, or delete it to write anew"
            )


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Owns a folder of parts while the context lasts.

    Raises:
        CacheError: another process writes there.
    """
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(folder):
            yield
    except BlockingIOError:
        raise CacheError(f"another process writes into '{folder}'; wait for it, or choose another place") from None


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "the disk is full" if is_full(error) else str(error.strerror or error)
        raise CacheError(f"'{folder}' could not be written: {what}; what was finished before is kept") from None
