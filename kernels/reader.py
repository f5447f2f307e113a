"""Reads where arrays lie, many in one call where the extension was built.

What the reader does not know it leaves to the caller, who decides what it is: the reader saves time, and rules nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .dtypes import DTYPES
from .extension import ffi, lib
from .tables import EXTENTS, SHAPE

Array = npt.NDArray[Any]
UNREAD = -1
CODES = {np.dtype(dtype.stored): ord(dtype.buffer) for dtype in DTYPES.values() if dtype.on_numpy}
BY_SIZE: dict[int, np.dtype[Any]] = {dtype.itemsize: dtype for dtype in CODES}

if lib is not None:
    NDARRAY = ffi.cast("void *", id(np.ndarray))


def address(array: Array) -> int:
    """Return where an array's first element lies."""
    if lib is not None and array.flags.c_contiguous:
        return int(ffi.cast("intptr_t", ffi.from_buffer(array)))  # half the time of the other
    return int(array.__array_interface__["data"][0])


class Reader:
    """Reads lists of arrays that are expected to be like these in type, dtype, shape and strides.

    Parameters
    ----------
    arrays : sequence of ndarray or None
        None where nothing in particular is expected, and everything will be unread.
    starts, ends : array of int64
        Ranges of addresses, in order and apart, that nothing may touch.
    """

    def __init__(
        self, arrays: Sequence[Array | None], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> None:
        if lib is None:
            return
        self.shapes = np.zeros(len(arrays), SHAPE)
        self.shapes["ndim"] = -1
        self.pointed_to: list[Array] = [starts, ends]
        for shape, array in zip(self.shapes, arrays, strict=True):
            if array is not None:
                view = array.data  # NumPy exports other strides than an array's own along axes of length 1
                lengths, strides = np.array([view.shape, view.strides], np.int64).reshape(2, -1)
                self.pointed_to += lengths, strides
                shape["lengths"], shape["strides"], shape["ndim"] = address(lengths), address(strides), array.ndim
                shape["itemsize"], shape["format"] = array.itemsize, CODES[array.dtype]
        self.occupied = np.array((len(starts), address(starts), address(ends)), EXTENTS)
        self.addresses = np.empty(len(arrays) + 1, np.int64)
        self.arguments = (
            NDARRAY,
            len(arrays),
            ffi.cast("fastopt_shape *", address(self.shapes)),
            ffi.cast("fastopt_extents *", address(self.occupied)),
            ffi.cast("int64_t *", address(self.addresses)),
        )

    def read(self, items: list[Any]) -> tuple[npt.NDArray[np.int64], int, int]:
        """Return the addresses of the items, and how many are UNREAD and how many None, whose address is 0.

        Not for two threads at once.
        """
        if lib is None:
            addresses = np.array([0 if item is None else UNREAD for item in items], np.int64)
            none = sum(item is None for item in items)
            return addresses, len(items) - none, none
        unread = lib.fastopt_read(ffi.cast("void *", id(items)), *self.arguments)
        return self.addresses[:-1].copy(), unread, int(self.addresses[-1])


def read_alike(items: list[Any]) -> tuple[list[int], np.dtype[Any], int] | None:
    """Return addresses, dtype and size of contiguous arrays that are alike, the second of which is only read.

    None if they are not exactly that: of one shape and order, float32 or float64, writable, apart from each other.
    """
    if lib is None:
        return None
    out = ffi.new("int64_t[]", len(items) + 1)
    itemsize = lib.fastopt_read_alike(ffi.cast("void *", id(items)), NDARRAY, len(items), out, out + len(items))
    if itemsize == 0:
        return None
    addresses: list[int] = list(out)
    elements = addresses.pop()
    return addresses, BY_SIZE[itemsize], elements
