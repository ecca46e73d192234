"""Ctrl-C and SIGTERM as a question that the loop asks when it can stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Within it, the first SIGINT or SIGTERM sets ``requested``; the second raises KeyboardInterrupt at once.

    ``with StopOnSignal() as stop: ... if stop.requested: save and leave``. Outside the main thread, where Python
    receives no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.requested, self.signal_name = True, signal.Signals(number).name
