"""Compiling ahead, so that no path waits for a compiler."""

from __future__ import annotations

from ...kernels import lazy
from ...progress import track
from .landscapes import LANDSCAPES
from .marbles import KINDS
from .walk import roll, update_of


def compile_all() -> None:
    """Compile the loop, all rules and all landscapes, or read them from the cache; show a progress bar."""
    updates = [lambda rule=kind.rule: update_of(rule) for kind in KINDS.values()]
    slopes = [lambda each=each: each.slope for each in LANDSCAPES.values()]
    for compile_one in track([roll, lazy.evaluators, *slopes, *updates], "Compiling"):
        compile_one()
