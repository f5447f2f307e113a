"""The dtypes that parameters and gradients may have: one table, with one row per dtype.

The conversions between memory and arithmetic are in ``cpu.py`` and ``fused.cu``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DType:
    """One dtype.

    Attributes
    ----------
    name : str
        As in PyTorch, and in NumPy and CuPy if they have the dtype.
    stored : type
        NumPy's type for an element in memory. Numba has no arrays of float16 or bfloat16: they are stored as bits in
        two different integer types, which overloads tell apart.
    real : type
        NumPy's type for what kernels compute in, and for the states.
    cuda : str
        Its type in CUDA C++, as in ``fused.cu``.
    dlpack : int
        DLPack's code for its kind of number.
    buffer : str
        Its character in the buffer protocol; empty if that has none.
    pairs : str
        PyTorch's complex dtype whose elements are pairs of this one; empty if there is none.
    """

    name: str
    stored: Any
    real: Any
    cuda: str
    dlpack: int
    buffer: str = ""
    pairs: str = ""

    @functools.cached_property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(self.stored).itemsize)

    @functools.cached_property
    def real_name(self) -> str:
        """The name of the dtype that kernels compute in."""
        return str(np.dtype(self.real).name)

    @functools.cached_property
    def largest(self) -> float:
        """The largest finite number in what kernels compute in."""
        return float(np.finfo(self.real).max)


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("float32", np.float32, np.float32, "float", 2, "f", "complex64"),
        DType("float64", np.float64, np.float64, "double", 2, "d", "complex128"),
        DType("float16", np.uint16, np.float32, "fastopt::cuda::Float16", 2, "e"),
        DType("bfloat16", np.int16, np.float32, "fastopt::cuda::Bfloat16", 4),
    )
}
# Codes of states in 8 bits: of numbers with a sign, and of what is never negative. To DLPack they are integers.
CODES = {
    code.name: code
    for code in (
        DType("int8", np.int8, np.float32, "fastopt::cuda::Signed", 0),
        DType("uint8", np.uint8, np.float32, "fastopt::cuda::Unsigned", 1),
    )
}
STORED = {**DTYPES, **CODES}  # all that states can be
ROUNDED = {"float16", "bfloat16", *CODES}  # those that what is computed is rounded to
PAIRS = {dtype.pairs: dtype for dtype in DTYPES.values() if dtype.pairs}
PAIRS_DLPACK = 5  # DLPack's code of all complex dtypes


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype of NumPy, which that puts together anew each time, in 5 µs."""
    return dtype.name


def goes_with(gradient: str, parameter: str) -> bool:
    """Say whether kernels for parameters of one dtype read gradients of another: they compute both in the same one."""
    return gradient in DTYPES and DTYPES[gradient].real is DTYPES[parameter].real


def dtype_of(dtype: Any) -> DType:
    """Look up a dtype by anything NumPy accepts as one, or by name, since NumPy has no bfloat16."""
    return DTYPES[dtype if isinstance(dtype, str) and dtype in DTYPES else np.dtype(dtype).name]
