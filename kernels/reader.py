"""Reads the addresses of arrays, many in one call if the extension was built.

The reader only saves time: it leaves whatever is not as expected to the caller, who decides what to do with it.
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
CODES = {np.dtype(dtype.name): ord(dtype.buffer) for dtype in DTYPES.values() if dtype.buffer}
ON_GPU = 2  # DLPack's code of CUDA
TYPES: tuple[Any, ...] = (np.ndarray,)
BY_SIZE: dict[int, np.dtype[Any]] = {dtype.itemsize: dtype for dtype in CODES}

if lib is not None:
    NDARRAY = ffi.cast("void *", id(np.ndarray))


def address(array: Array) -> int:
    """Return the address of an array's first element."""
    if lib is not None and array.flags.c_contiguous:
        return int(ffi.cast("intptr_t", ffi.from_buffer(array)))  # takes half as long as the line below
    return int(array.__array_interface__["data"][0])


def descriptors_of(array: Any) -> tuple[Any, ...]:
    """Return what `fastopt_read` looks into arrays of CuPy with; access by name takes a third longer."""
    own, data = type(array), type(array.data)
    return own, own.dtype, own.shape, own.strides, own.data, data.ptr, data.device_id


class Reader:
    """Reads lists of arrays that are expected to equal these in type, dtype, shape and strides.

    Parameters
    ----------
    arrays : sequence of array or None
        Arrays of NumPy, or of CuPy, which are all of one type. For None nothing is expected: whatever comes is UNREAD.
    starts, ends : array of int64
        Sorted, disjoint ranges of addresses that no array may overlap.
    """

    def __init__(self, arrays: Sequence[Any], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
        if lib is None:
            return
        self.shapes = np.zeros(len(arrays), SHAPE)
        self.shapes["ndim"] = -1
        self.pointed_to: list[Any] = [starts, ends]
        types = TYPES
        for shape, array in zip(self.shapes, arrays, strict=True):
            if array is None:
                continue
            if isinstance(array, np.ndarray):
                view = array.data  # along axes of length 1 the buffer's strides are not always the array's
                shape["code"] = CODES[array.dtype]
            else:
                view, types = array, TYPES + descriptors_of(array)
                shape["device_type"], shape["device_id"] = ON_GPU, array.data.device_id
                shape["code"] = id(array.dtype)
                self.pointed_to.append(array.dtype)
            lengths, strides = np.array([view.shape, view.strides], np.int64).reshape(2, -1)
            self.pointed_to += lengths, strides
            shape["lengths"], shape["strides"], shape["ndim"] = address(lengths), address(strides), len(lengths)
            shape["itemsize"] = array.dtype.itemsize
        self.pointed_to.append(types)
        self.occupied = np.array((len(starts), address(starts), address(ends)), EXTENTS)
        self.addresses = np.empty(len(arrays) + 1, np.int64)
        self.arguments = (
            ffi.new("void *[]", [ffi.cast("void *", id(each)) for each in types]),
            len(arrays),
            ffi.cast("fastopt_shape *", address(self.shapes)),
            ffi.cast("fastopt_extents *", address(self.occupied)),
            ffi.cast("int64_t *", address(self.addresses)),
        )

    def read(self, items: list[Any]) -> tuple[npt.NDArray[np.int64], int, int]:
        """Return the addresses of the items, 0 for None, and how many items are UNREAD and how many None.

        Not thread-safe.
        """
        if lib is None:
            addresses = np.array([0 if item is None else UNREAD for item in items], np.int64)
            none = sum(item is None for item in items)
            return addresses, len(items) - none, none
        unread = lib.fastopt_read(ffi.cast("void *", id(items)), *self.arguments)
        return self.addresses[:-1].copy(), unread, int(self.addresses[-1])


def read_alike(items: list[Any]) -> tuple[list[int], np.dtype[Any], int] | None:
    """Return the addresses, dtype and size of contiguous arrays, the second of which is only read.

    Return None unless all have one shape, one storage order and one dtype, float32 or float64, none overlaps another,
    and all but the second are writable.
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
