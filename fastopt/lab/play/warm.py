"""Compiling ahead, so that no path waits for a compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...kernels import lazy
from ...progress import track
from .landscapes import LANDSCAPES
from .marbles import KINDS
from .walk import roll, update_of


def compile_all() -> None:
    """Compile the loop, all rules and all landscapes, or read them from the cache; show a progress bar."""
    updates = [partial(update_of, kind.rule) for kind in KINDS.values()]
    slopes = [partial(getattr, each, "slope") for each in LANDSCAPES.values()]
    work: list[Callable[[], Any]] = [roll, lazy.evaluators, *slopes, *updates]
    for compile_one in track(work, "Compiling"):
        compile_one()
