from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from limbeck import storage
from limbeck.storage import folder_lock, is_full, write_durably


def test_content_appears_whole(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", [b"one", memoryview(b"two")])
    assert (tmp_path / "file").read_bytes() == b"onetwo"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    write_durably(tmp_path / "file", [b"old"])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, broken, fail)
    with pytest.raises(OSError, match="No space") as caught:
        write_durably(tmp_path / "file", [b"new"])
    assert is_full(caught.value)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _hold(folder: Path, ready, release) -> None:
    with folder_lock(folder):
        ready.set()
        release.wait(30)


def test_one_owner_at_a_time_and_none_after_a_kill(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    owner = context.Process(target=_hold, args=(tmp_path, ready, release))
    owner.start()
    assert ready.wait(30)
    with pytest.raises(BlockingIOError), folder_lock(tmp_path):
        pass
    owner.kill()
    owner.join()
    with folder_lock(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []
