"""Runs jobs on the threads of an OpenMP runtime that another library has loaded."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .extension import ffi, lib


@functools.cache
def parallel_of(library: Path) -> int:
    """Return the address of ``GOMP_parallel`` in the runtime that a loaded library is linked to, or 0.

    A process may have several runtimes, for example scikit-learn's and torch's. Looking the symbol up through the
    library finds the runtime that this library uses.
    """
    try:
        return int(
            ctypes.cast(ctypes.CDLL(str(library), os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel, ctypes.c_void_p).value
            or 0
        )
    except (OSError, AttributeError):  # the library is not loaded, its runtime lacks the function, or no RTLD_NOLOAD
        return 0


def runner(kernel: Any, job_address: int, parallel: int) -> Callable[[int, int, int], None]:
    """Bind a compiled kernel to a job and a runtime; return what `pool.runner` does.

    In a forked child, which has no team, the calling thread works alone.
    """
    function = lib.fastopt_run_team
    bound = ffi.cast("fastopt_kernel", kernel.address), ffi.cast("fastopt_job *", job_address)
    runtime = ffi.cast("void *", parallel)
    return lambda chunks, grain, threads: function(*bound, chunks, grain, threads, runtime)
