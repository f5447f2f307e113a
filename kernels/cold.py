"""The first use of a kernel: Numba is imported and compiles, one thread at a time and never across a fork.

A child that is forked meanwhile would inherit locks, of the import system and of Numba, that nobody there frees. So a
fork waits until nothing is under way.
"""

import functools
import logging  # noqa: F401 (before the hooks below: its own, which Numba would bring, must be taken after ours)
import os
import threading
from typing import Any

lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def kernel(name: str, dtype: Any) -> Any:
    """Return the compiled kernel of a rule for a dtype; see `cpu.kernel`."""
    with lock:
        from . import cpu

        return cpu.kernel(name, dtype)


def update_for_c(name: str, dtype: Any) -> Any:
    """Return the compiled update of an array by a rule; see `cpu.update_for_c`."""
    with lock:
        from . import cpu

        return cpu.update_for_c(name, dtype)


@functools.cache
def evaluators() -> Any:
    """Return the compiled evaluators of schedules; see `schedules.evaluators`."""
    with lock:
        from . import schedules

        return schedules.evaluators()
