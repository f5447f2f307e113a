"""The lock for importing Numba and for compiling: one thread at a time, and never across a fork.

A child forked in the middle would inherit locks of the import system and of Numba that nobody there releases, so a fork
waits for this lock.
"""

import logging  # noqa: F401 (before the hooks below: its own fork hooks, which Numba would import, must run after ours)
import os
import threading

lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
