"""The lock of whoever imports Numba or compiles: one thread at a time, and never across a fork.

A child that is forked meanwhile would inherit locks, of the import system and of Numba, that nobody there frees. So a
fork waits until nothing is under way.
"""

import logging  # noqa: F401 (before the hooks below: its own, which Numba would bring, must be taken after ours)
import os
import threading

lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
