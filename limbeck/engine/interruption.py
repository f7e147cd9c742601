"""Ctrl-C and SIGTERM end a run between two steps, after its state is on disk."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from limbeck.engine import distributed
from limbeck.errors import LimbeckError


class Interrupted(LimbeckError):  # noqa: N818 - not an error, and named as people speak of it
    """The run was asked to stop; its state is saved."""

    everywhere = True


class StopRequest:
    """While active, the first SIGINT or SIGTERM only sets :attr:`requested`.

    A second SIGINT stops at once, except under torchrun.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # torchrun repeats the terminal's signal, and kills by itself what takes too long.
        if self.requested and number == signal.SIGINT and distributed.world_size() == 1:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopRequest:
        """Starts to listen; Python allows it in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
