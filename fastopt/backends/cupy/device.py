"""The GPUs on which arrays of CuPy are updated."""

from __future__ import annotations

import functools
from typing import Any

from ...extras import require
from ...step.gpu import Gpu


def installed_cupy() -> Any:
    """Import CuPy; which of the two extras brings it, nothing here can tell."""
    return require("cupy", "cuda13")


@functools.cache
def gpu_of_cupy(cupy: Any, index: int) -> Gpu:
    """Return a device as CuPy uses it."""
    return Gpu(cupy, index, lambda: cupy.cuda.get_current_stream(index))
