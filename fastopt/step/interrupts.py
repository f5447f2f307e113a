"""Interrupts wait until a step is over."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # without the enums of `signal`, which take ten times as long
import threading
from _thread import get_ident
from collections.abc import Callable
from types import TracebackType
from typing import Any

# Those for which programs have handlers of Python's that may raise; the first one stays held the longest.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF", "SIGBREAK")
    if hasattr(signal, name)
)


class HeldBack:
    """Hold back the handlers of signals until the end of a ``with`` block, and call them then.

    Python calls them between two lines of the main thread, so that an exception of theirs, as KeyboardInterrupt, would
    leave a step half done. In other threads there is nothing to hold back.
    """

    __slots__ = ("handlers", "received")

    def __init__(self) -> None:
        self.handlers: list[tuple[int, Callable[..., Any]]] = []
        self.received: tuple[tuple[int, object], ...] = ()

    def __enter__(self) -> None:
        """Take the place of the handlers."""
        if get_ident() != threading.main_thread().ident:
            return
        try:
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self.handlers.append((number, handler))
                    signal.signal(number, self._receive)
        except BaseException:
            self._release()
            raise

    def _receive(self, number: int, frame: object) -> None:
        self.received = *self.received, (number, frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the handlers their place back, and call those whose signals came."""
        self._release()

    def _release(self) -> None:
        try:
            while self.handlers:
                signal.signal(*self.handlers[-1])
                self.handlers.pop()
            while self.received:
                (number, frame), self.received = self.received[0], self.received[1:]
                handler = signal.getsignal(number)
                if callable(handler):  # called, not raised once more: a wakeup descriptor has had this signal already
                    handler(number, frame)
        finally:  # if a handler has raised
            if self.handlers or self.received:
                self._release()
