"""Reads where tensors of PyTorch lie, many in one call where extension and torch offer it, and else one by one.

Like the reader of arrays it saves time and rules nothing: what is not as expected is left to the caller.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .extension import ffi, lib
from .reader import Array, address, none_read
from .tables import EXTENTS, HOLDINGS, SHAPE

# DLPack's codes of types; what stands here can be read, all else is UNREAD.
CODES = {"float16": 2, "float32": 2, "float64": 2, "bfloat16": 4, "complex64": 5, "complex128": 5}


def exchange_table(tensor_type: Any) -> int:
    """Return the address of the table of functions through which tensors of a type can be read, 0 where there is none.

    That is ``__dlpack_c_exchange_api__`` of DLPack 1, which torch publishes from 2.10 on.
    """
    capsule = getattr(tensor_type, "__dlpack_c_exchange_api__", None)
    if lib is None or type(capsule).__name__ != "PyCapsule":
        return 0
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = pointer(capsule, b"dlpack_exchange_api")
    major = ctypes.cast(table, ctypes.POINTER(ctypes.c_uint32))[0]
    return int(table) if major == 1 else 0


Shape = tuple[str, int, Sequence[int], Sequence[int]]


def shape_of(tensor: Any) -> Shape:
    """Describe a tensor: name of its dtype, size of an element in bytes, shape and strides, in elements."""
    return str(tensor.dtype).removeprefix("torch."), tensor.itemsize, tensor.shape, tensor.stride()


class Shapes:
    """A table of what tensors are expected to be; None where nothing in particular is, which nothing equals."""

    def __init__(self, expected: Sequence[Shape | None]) -> None:
        self.table = np.zeros(len(expected), SHAPE)
        self.table["ndim"] = -1
        self.pointed_to: list[Array] = []
        for row, shape in zip(self.table, expected, strict=True):
            if shape is None or shape[0] not in CODES:
                continue
            name, itemsize, lengths, strides = shape
            axes = np.array([lengths, strides], np.int64).reshape(2, -1)
            self.pointed_to.append(axes)
            row["lengths"], row["strides"], row["ndim"] = address(axes[0]), address(axes[1]), len(lengths)
            row["itemsize"], row["format"] = itemsize, CODES[name]

    @property
    def pointer(self) -> Any:
        """The table, for a call."""
        return ffi.cast("fastopt_shape *", address(self.table))


class Holdings:
    """What an optimizer holds, as it was found.

    Parameters
    ----------
    table : int
        See `exchange_table`.
    lists : list of lists
        Whose items are to stay the same objects.
    states : dict of dicts
        The same, of keys and values.
    tensors : list
        Tensors that are to stay in their places. They may be exchanged in the list for others in the same places.
    """

    def __init__(
        self, table: int, lists: list[list[Any]], states: dict[Any, Any], tensors: list[Any]
    ) -> None:
        self.lists, self.states, self.tensors = lists, states, tensors
        self.listed, self.stated = self._listed(), self._stated()
        self.places = self._places()
        self.pointer: Any = None
        if table:
            self.shapes = Shapes([shape_of(tensor) for tensor in tensors])
            self.addresses = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
            objects = (self.lists, self.listed, self.states, self.stated, self.tensors)
            numbers = (len(tensors), address(self.shapes.table), address(self.addresses))
            self.struct = np.array((table, *map(id, objects), *numbers), HOLDINGS)
            self.pointer = ffi.cast("fastopt_holdings *", address(self.struct))

    def _listed(self) -> list[Any]:
        return [item for items in self.lists for item in items]

    def _stated(self) -> list[Any]:
        stated = []
        for key, state in self.states.items():
            stated += key, state
            if isinstance(state, dict):
                stated += [part for pair in state.items() for part in pair]
        return stated

    def _places(self) -> list[tuple[int, Shape]]:
        return [(tensor.data_ptr(), shape_of(tensor)) for tensor in self.tensors]

    def unchanged(self) -> bool:
        """Say whether every list, dict and tensor is as it was."""
        if self.pointer:
            return bool(lib.fastopt_holds(self.pointer))
        return (
            [*map(id, self._listed())] == [*map(id, self.listed)]
            and [*map(id, self._stated())] == [*map(id, self.stated)]
            and self._places() == self.places
        )


class TensorReader:
    """Reads lists of tensors that are expected to be of a type and of these shapes.

    Parameters
    ----------
    table : int
        See `exchange_table`.
    tensor_type : type
        Of the tensors, exactly.
    shapes : sequence of Shape or None
        None where nothing in particular is expected.
    starts, reaches : array of int64
        Ranges of addresses that nothing may touch, as `Extents` has them.
    """

    def __init__(
        self,
        table: int,
        tensor_type: Any,
        shapes: Sequence[Shape | None],
        starts: npt.NDArray[np.int64],
        reaches: npt.NDArray[np.int64],
    ) -> None:
        self.arguments: Any = None
        if table:
            self.shapes = Shapes(shapes)
            self.occupied = np.array((len(starts), address(starts), address(reaches)), EXTENTS)
            self.addresses = np.empty(len(shapes) + 1, np.int64)
            self.held = tensor_type, starts, reaches
            self.table = ffi.cast("void *", table)
            self.arguments = (
                ffi.cast("void *", id(tensor_type)),
                len(shapes),
                self.shapes.pointer,
                ffi.cast("fastopt_extents *", address(self.occupied)),
                ffi.cast("int64_t *", address(self.addresses)),
            )

    def read(self, items: list[Any]) -> tuple[npt.NDArray[np.int64], int, int]:
        """Return the addresses of the items, how many are UNREAD and how many None, whose address is 0.

        Not for two threads at once.
        """
        if self.arguments is None:
            return none_read(items)
        unread = lib.fastopt_read_tensors(self.table, ffi.cast("void *", id(items)), *self.arguments)
        return self.addresses[:-1].copy(), unread, int(self.addresses[-1])


def gradients_of(tensors: list[Any], descriptor: Any) -> list[Any]:
    """Return the gradient of each tensor, as a descriptor of their type gives it."""
    gradients = [None] * len(tensors)
    if lib is not None:
        pointers = [ffi.cast("void *", id(item)) for item in (tensors, descriptor, gradients)]
        if lib.fastopt_gradients(pointers[0], len(tensors), *pointers[1:]) == 0:
            return gradients
    return [descriptor.__get__(tensor) for tensor in tensors]
