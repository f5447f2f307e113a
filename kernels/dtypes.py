"""The dtypes that parameters and gradients may have: all that is known of each is one row of one table.

What a row names and cannot hold, the conversions between memory and arithmetic, stands in ``cpu.py`` and ``fused.cu``.
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
        As PyTorch has it, and NumPy and CuPy where they have the dtype.
    stored : type
        NumPy's type for an element in memory. Numba has arrays of neither half: they lie as bits, of two integer types,
        by which its overloads tell them apart.
    real : type
        NumPy's type for what kernels compute in; states are of it, too.
    cuda : str
        Its type in CUDA C++, as ``fused.cu`` defines it.
    dlpack : int
        The code of DLPack for its kind of number.
    buffer : str
        Its character in the buffer protocol; empty where that has none.
    pairs : str
        The complex dtype, of PyTorch, whose elements are pairs of this one's; empty where there is none.
    on_numpy : bool
        Whether NumPy arrays of it are updated.
    """

    name: str
    stored: Any
    real: Any
    cuda: str
    dlpack: int
    buffer: str = ""
    pairs: str = ""
    on_numpy: bool = False

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
        """The largest number that kernels compute with."""
        return float(np.finfo(self.real).max)


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("float32", np.float32, np.float32, "float", 2, "f", "complex64", on_numpy=True),
        DType("float64", np.float64, np.float64, "double", 2, "d", "complex128", on_numpy=True),
        DType("float16", np.uint16, np.float32, "fastopt::cuda::Float16", 2, "e"),
        DType("bfloat16", np.int16, np.float32, "fastopt::cuda::Bfloat16", 4),
    )
}
PAIRS = {dtype.pairs: dtype for dtype in DTYPES.values() if dtype.pairs}
PAIRS_DLPACK = 5  # DLPack's code of all complex dtypes


def dtype_of(dtype: Any) -> DType:
    """Look a dtype up: by what NumPy takes for one, or by name, since NumPy has no bfloat16."""
    return DTYPES[dtype if isinstance(dtype, str) and dtype in DTYPES else np.dtype(dtype).name]
