"""Lazy compilation: Numba is imported, and compiles, when a kernel or a schedule's value is first needed."""

import functools
from typing import Any

from .lock import lock


def kernel(name: str, dtype: Any, *others: Any) -> Any:
    """Return a rule's compiled kernel for a dtype; see `cpu.kernel` for the others."""
    with lock:
        from . import cpu

        return cpu.kernel(name, dtype, *others)


def update_for_c(name: str, dtype: Any) -> Any:
    """Return the compiled update of an array by a rule; see `cpu.update_for_c`."""
    with lock:
        from . import cpu

        return cpu.update_for_c(name, dtype)


def coder(name: str) -> Any:
    """Return the compiled coder of states in 8 bits; see `cpu.coder`."""
    with lock:
        from . import cpu

        return cpu.coder(name)


@functools.cache
def evaluators() -> Any:
    """Return the compiled evaluators of schedules; see `schedules.evaluators`."""
    with lock:
        from . import schedules

        return schedules.evaluators()
