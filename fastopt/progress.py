"""A progress bar on stderr: rich's if rich is installed, else a count."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from .extras import require

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield items, and show how many are done.

    On a terminal this thread redraws the line after each item; a second thread would disturb a benchmark's
    measurements. Elsewhere, in a log for instance, one line is written at the end.

    Parameters
    ----------
    items : iterable
    description : str
        The text before the bar.
    total : int, optional
        How many items there will be; by default their length, if they have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    try:
        from rich.progress import track as rich_track
    except ImportError:
        return _count(items, description, total)
    on_stderr = console(stderr=True, force_jupyter=False)  # in a notebook rich would warn that it wants ipywidgets
    return iter(rich_track(items, description, total, auto_refresh=False, console=on_stderr))


def console(**options: Any) -> Any:
    """Make a rich console that raises BrokenPipeError as print does; rich's own exits the process."""
    rich_console = require("rich.console", "bench").Console

    class Console(rich_console):  # type: ignore[misc, valid-type]
        def on_broken_pipe(self) -> None:
            raise  # rich calls this while it handles a BrokenPipeError

    return Console(**options)


def _count(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    of_total = "" if total is None else f"/{total}"
    start = "\r" if sys.stderr.isatty() else ""
    done = 0
    try:
        for item in items:
            if start:
                print(f"{start}{description} {done}{of_total}", end="", file=sys.stderr, flush=True)
            yield item
            done += 1
    finally:
        print(f"{start}{description} {done}{of_total}", file=sys.stderr)
