"""Runs jobs on the team of threads of an OpenMP runtime that another library has brought into the process."""

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

    A process may have several runtimes, scikit-learn's beside torch's for one. Looked up by way of the library, the
    symbol is the one of the runtime that the library itself uses.
    """
    try:
        return int(
            ctypes.cast(ctypes.CDLL(str(library), os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel, ctypes.c_void_p).value
            or 0
        )
    except (OSError, AttributeError):  # no such library, or no runtime with that function, or no such system
        return 0


def runner(kernel: Any, job_address: int, parallel: int) -> Callable[[int, int, int], None]:
    """Bind a compiled kernel to a job and a runtime, as `pool.runner` does: (chunks, chunks a claim, threads).

    In a forked child, which has no team, the calling thread works alone.
    """
    function = lib.fastopt_run_team
    bound = ffi.cast("fastopt_kernel", kernel.address), ffi.cast("fastopt_job *", job_address)
    runtime = ffi.cast("void *", parallel)
    return lambda chunks, grain, threads: function(*bound, chunks, grain, threads, runtime)
