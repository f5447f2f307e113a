"""Numba's disk cache, made safe for several processes and for disks that fail.

Numba reads, changes and writes an index file without a lock, trusts whatever it finds there, and raises when the disk
is full. Here one process compiles at a time, and a cache that fails costs only time.
"""

import contextlib
import ctypes
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target


def directory() -> Path | None:
    """Return Numba's cache directory for this folder's files, or None if no directory is writable."""
    try:
        return Path(FunctionCache(directory).cache_path)
    except RuntimeError:  # "cannot cache function: no locator available"
        return None


def compile_kept(function: Any, wrap: Any) -> Any:
    """Compile with ``wrap(cache=...)(function)``, using the cache; the result lives as long as the process."""
    try:
        compiled = wrap(cache=directory() is not None)(function)
    except Exception:
        # A full disk, a truncated file: a broken cache must not keep anyone from training.
        compiled = wrap(cache=False)(function)
        with contextlib.suppress(Exception):
            FunctionCache(function).flush()  # so that the next process writes it anew
    # Leaked on purpose: a daemon thread may still run this code while the interpreter shuts down.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(compiled))
    return compiled


def kept(function: Any, signature: Any) -> bool:
    """Say whether the cache has a function, as it is now and for this processor."""
    with contextlib.suppress(Exception):  # no cache directory, or a damaged file
        return FunctionCache(function).load_overload(signature, cpu_target.target_context) is not None
    return False


@contextlib.contextmanager
def one_process_at_a_time() -> Any:
    """Hold a lock across processes while compiling, if the system and the directory allow it.

    Each kernel has its own index file, so without this lock two processes would only do the same work twice; machines
    of two kinds that share a directory need it.
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
