"""The GPUs on which arrays of CuPy are updated."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ...extras import require
from ...step.gpu import Gpu


def installed_cupy() -> Any:
    """Import CuPy; the error names one of its two extras, since nothing tells which CUDA is wanted."""
    return require("cupy", "cuda13")


@functools.cache
def gpu_of_cupy(cupy: Any, index: int) -> Gpu:
    """Return a GPU, with CuPy's current stream."""

    def new_number() -> tuple[Any, int]:
        with cupy.cuda.Device(index):
            number = cupy.empty((), np.float64)
        return number, int(number.data.ptr)

    return Gpu(cupy, index, lambda: cupy.cuda.get_current_stream(index), new_number)
