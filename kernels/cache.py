"""Compiled once, kept on disk: Numba's cache with what it leaves to its users.

Numba reads, changes and writes an index file without a lock, believes whatever it finds there, and raises where a disk
is full. Here one process compiles at a time, and a cache that fails costs time and nothing else.
"""

import contextlib
import ctypes
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target


def directory() -> Path | None:
    """Where Numba keeps what this folder's files define, or None where no directory is writable."""
    try:
        return Path(FunctionCache(directory).cache_path)
    except RuntimeError:  # "cannot cache function: no locator available"
        return None


def compile_kept(function: Any, wrap: Any) -> Any:
    """Compile by ``wrap(cache=...)(function)``, from the cache or into it; the result lives as long as the process."""
    try:
        compiled = wrap(cache=directory() is not None)(function)
    except Exception:
        # A full disk, a file cut short: whatever a cache may suffer, it must not keep anyone from training.
        compiled = wrap(cache=False)(function)
        with contextlib.suppress(Exception):
            FunctionCache(function).flush()  # so that the next process writes it anew
    # One reference too many, on purpose: a daemon thread may still run this code while the interpreter shuts down.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(compiled))
    return compiled


def kept(function: Any, signature: Any) -> bool:
    """Whether a function would be taken from the cache, as it is now and on this processor."""
    with contextlib.suppress(Exception):  # nowhere to look, or a damaged file
        return FunctionCache(function).load_overload(signature, cpu_target.target_context) is not None
    return False


@contextlib.contextmanager
def one_process_at_a_time() -> Any:
    """Hold a lock between processes while compiling, where the system and the directory allow it.

    Each kernel has an index of its own, so that without this lock two processes do the same work twice; with machines
    of two kinds on one shared directory, it is needed.
    """
    kept_in = directory()
    try:
        import fcntl

        if kept_in is None:
            raise OSError("no cache directory")
        kept_in.mkdir(parents=True, exist_ok=True)
        file = open(kept_in / "fastopt.lock", "a")  # noqa: SIM115 (closed below, which also unlocks)
    except (ImportError, OSError):
        yield
        return
    with file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
