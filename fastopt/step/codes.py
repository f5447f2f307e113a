"""States in 8 bits: codes in blocks with a scale each, and the numbers that they stand for.

Blocks run in storage order. `kernels/cpu.py` has the codes. Kernels decode and encode by themselves: this is for states
that begin, or are loaded or saved.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..kernels.dtypes import STORED
from ..kernels.lazy import coder
from ..kernels.reader import Array, address
from ..kernels.tables import BLOCK

SCALES = "_scale"  # behind a state's name: the state that has its scales


def blocks(size: int) -> int:
    """Count the blocks of so many elements, which is the number of scales."""
    return -(-size // BLOCK)


def encode(numbers: npt.NDArray[np.float32], name: str) -> tuple[Array, npt.NDArray[np.float32]]:
    """Return the codes of numbers, which lie in storage order, and the scales of their blocks."""
    codes = np.zeros(numbers.shape, STORED[name].stored)
    scales = np.zeros(blocks(numbers.size), np.float32)
    coder(name).ctypes(address(numbers), address(codes), address(scales), numbers.size, 1)
    return codes, scales


def decode(codes: Array, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the numbers that codes stand for, which lie in storage order."""
    numbers = np.zeros(codes.shape, np.float32)
    coder(codes.dtype.name).ctypes(address(numbers), address(codes), address(scales), codes.size, 0)
    return numbers


def constant(value: float, name: str) -> tuple[int, float]:
    """Return the code and the scale of elements that all have this value."""
    codes, scales = encode(np.full(1, value, np.float32), name)
    return int(codes[0]), float(scales[0])
