"""What becomes of SIGTERM and SIGINT while a job is metered."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECOND_SIGNAL_S = 5.0


class Terminated(BaseException):
    """SIGTERM arrived inside the window (a scheduler's time-out, `kill`).

    Not an Exception: no job should catch it.
    """


class Signals:
    """SIGTERM raises `Terminated` in the block and SIGINT KeyboardInterrupt, once: an impatient second signal
    must not cut short what the first one set off. `hold()` makes both wait for good, `restore()` undoes it
    all.

    Only the main thread may set handlers; in any other, signals stay as they are. An ignored SIGINT stays
    ignored.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._raised_s = -math.inf
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT)
            self._before = {number: signal.getsignal(number) for number in numbers}
            for number in numbers:
                if self._before[number] is not signal.SIG_IGN:
                    signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker has to behave as if this handler were not there
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now_s = time.monotonic()
        if now_s - self._raised_s > SECOND_SIGNAL_S:
            self._raised_s = now_s
            raise (
                KeyboardInterrupt("stopped by Ctrl-C") if number == signal.SIGINT else Terminated("stopped by SIGTERM")
            )

    def hold(self) -> None:
        """From here on both signals are let pass without effect."""
        self._raised_s = math.inf

    def ignore(self) -> None:
        """The same to the very end of the process: Python takes its own handlers back before that."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def signals_for_the_main_thread() -> Iterator[None]:
    """Threads started in here, and those they start, never take SIGTERM or SIGINT.

    Python runs handlers in the main thread only, which a signal that another thread took does not wake from a
    sleep.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
