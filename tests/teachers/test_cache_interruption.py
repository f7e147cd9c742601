from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from caching import SAMPLES, cache_of, content, teacher_of

from limbeck import storage
from limbeck.errors import CacheError
from limbeck.teachers.cache import CacheReader, verify

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a cache that was written without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    cache_of(folder)
    return content(folder)


def _write_slowly(folder: Path) -> None:
    teacher = teacher_of()
    teacher.model.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    cache_of(folder, teacher=teacher)


def test_killed_at_random_moments_and_continued(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """SIGKILL after random delays, until one attempt lives to the end."""
    delays, kills = random.Random(4), 0
    folder = tmp_path / "cache"
    while True:
        writer = FORK.Process(target=_write_slowly, args=(folder,))
        writer.start()
        writer.join(delays.uniform(0.005, 0.05) if kills < 15 else 60)
        if writer.exitcode is None:
            writer.kill()
            writer.join()
            kills += 1
            if not (folder / "cache.json").exists() and folder.exists() and (folder / "plan.json").exists():
                with pytest.raises(CacheError, match="unfinished"):
                    CacheReader(folder)
            continue
        assert writer.exitcode == 0
        break
    assert kills >= 5
    assert content(folder) == whole


def _write_and_die(folder: Path, operation: str, count: int) -> None:
    """Writes, and dies by SIGKILL just before or just after the ``count``-th operation on the disk."""
    name, moment = operation.split()
    original = getattr(storage.os, name)
    calls = 0

    def fatal(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args)
        if calls == count and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(storage.os, name, fatal)
    cache_of(folder, epochs=1, rows_per_shard=32)


@pytest.mark.parametrize("operation", ["fsync before", "replace before", "replace after"])
def test_killed_at_every_disk_operation(tmp_path: Path, operation: str) -> None:
    cache_of(tmp_path / "whole", epochs=1, rows_per_shard=32)
    expected = content(tmp_path / "whole")
    count = 0
    while True:
        count += 1
        folder = tmp_path / str(count)
        writer = FORK.Process(target=_write_and_die, args=(folder, operation, count))
        writer.start()
        writer.join()
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
        cache_of(folder, epochs=1, rows_per_shard=32)
        assert content(folder) == expected, f"killed {operation} {count}"
        shutil.rmtree(folder)
    files = len(expected) + 1  # and the plan
    assert count > files


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]) -> None:
    folder, calls, original = tmp_path / "cache", 0, os.fsync

    def fail_at_the_fifteenth(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", fail_at_the_fifteenth)
        with pytest.raises(CacheError, match=r"disk is full.*run the same command to continue"):
            cache_of(folder)
    assert not (folder / "cache.json").exists()
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob(".lock"))
    done = {name: raw for name, raw in content(folder).items() if name != "plan.json"}
    assert 1 < len(done) < len(whole)
    assert all(whole[name] == raw for name, raw in done.items())
    cache_of(folder)
    assert content(folder) == whole


def _write_with_a_limit(folder: Path, limit: int, answer) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        cache_of(folder)
    except CacheError as error:
        answer.put(str(error))


def test_the_kernel_refuses_a_write(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """A real failed write of part of a file: the shards are larger than the process may write."""
    limit = min(len(raw) for name, raw in whole.items() if name.startswith("view")) - 40
    answer = FORK.SimpleQueue()
    writer = FORK.Process(target=_write_with_a_limit, args=(tmp_path / "cache", limit, answer))
    writer.start()
    writer.join()
    assert "could not be written: File too large" in answer.get()
    cache_of(tmp_path / "cache")
    assert content(tmp_path / "cache") == whole


def test_two_writers_in_one_folder(tmp_path: Path) -> None:
    refused: list[str] = []

    def write_again(*_: int) -> None:
        with pytest.raises(CacheError, match="another process is writing the cache") as caught:
            cache_of(tmp_path)
        refused.append(str(caught.value))

    cache_of(tmp_path, progress=write_again)
    assert refused
    assert verify(tmp_path) == 2 * SAMPLES
