"""Runs a kernel on the threads of the pool or, if the extension was not built, on the calling thread alone."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable
from typing import Any

from . import limits
from .extension import ffi, lib

available: bool = lib is not None
parallel = 0  # no OpenMP

_num_threads: int | None = None


def get_num_threads() -> int:
    """Return how many threads, the caller's included, a large update may use.

    Without a call of `set_num_threads` that is ``FASTOPT_NUM_THREADS`` from the environment, else the number of
    processors that this process may use, for which a container's quota counts. Small updates run on the calling
    thread whatever the number.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If ``FASTOPT_NUM_THREADS`` is not a whole number of 1 or more.
    """
    global _num_threads
    if _num_threads is None:
        text = os.environ.get("FASTOPT_NUM_THREADS", "").strip()
        if text and not (text.isdecimal() and int(text) >= 1):
            raise ValueError(f"FASTOPT_NUM_THREADS is {text!r}; set it to a whole number of 1 or more, or unset it")
        _num_threads = int(text) if text else limits.processors()
    return _num_threads


def set_num_threads(n: int) -> None:
    """Set how many threads, the caller's included, a large update may use from now on.

    It concerns fastopt's own pool alone; the threads of Numba, PyTorch and OpenMP are left as they are.

    Parameters
    ----------
    n : int
        1 or more.

    Raises
    ------
    TypeError, ValueError
        If n is not a whole number, or below 1.
    """
    global _num_threads
    try:
        count = operator.index(n)
    except TypeError:
        count = None
    if count is None or isinstance(n, bool):
        raise TypeError(f"the number of threads must be an int, not {n!r}")
    if count < 1:
        raise ValueError(f"the number of threads must be 1 or more, not {n}")
    _num_threads = count


def runner(kernel: Any, job_address: int) -> Callable[[int, int, int], None]:
    """Bind a compiled kernel to a job; return a function of (chunks, chunks per claim, threads).

    The caller keeps the job, and all that it points to, alive and unmoved as long as the function can be called. The
    function releases the GIL.
    """
    if available:
        return functools.partial(
            lib.fastopt_run, ffi.cast("fastopt_kernel", kernel.address), ffi.cast("fastopt_job *", job_address)
        )
    return lambda chunks, grain, threads: kernel.ctypes(job_address, 0, chunks, 0)
