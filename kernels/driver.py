"""The functions of the CUDA driver through which the extension launches."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .extension import lib
from .tables import DRIVER

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"  # which CuPy has loaded

# In the order of DRIVER.
NAMES = ("cuLaunchKernel", "cuStreamIsCapturing", "cuCtxGetCurrent", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2")
NONE = np.zeros(0, DRIVER)


@functools.cache
def _loaded(library: str) -> Any:
    """Return the driver, which has to be loaded already; None if it is not."""
    try:
        return ctypes.CDLL(library, mode=getattr(os, "RTLD_NOLOAD", ctypes.DEFAULT_MODE))
    except OSError:
        return None


@functools.cache
def _functions(library: str) -> npt.NDArray[Any]:
    driver = _loaded(library)
    if lib is None or driver is None or not all(hasattr(driver, name) for name in NAMES):
        return NONE
    return np.array([tuple(ctypes.cast(getattr(driver, name), ctypes.c_void_p).value for name in NAMES)], DRIVER)


def functions() -> npt.NDArray[Any]:
    """Return the addresses as one DRIVER; `NONE` without the extension, or if one is missing."""
    return _functions(LIBRARY)


def current_context() -> int:
    """Return the address of this thread's current context; 0 if there is none, or no driver."""
    context = ctypes.c_void_p()
    if (get := getattr(_loaded(LIBRARY), "cuCtxGetCurrent", None)) is not None:
        get(ctypes.byref(context))
    return context.value or 0
