"""How arrays lie in memory: their addresses, their storage order, and which of them overlap."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.reader import Array, address

OVERLAP_WORK = 1_000_000  # how long to look for a shared element before it counts as found


class Described:
    """Describes memory of another owner to NumPy; the ``base`` of an array over it."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: Any, address: int, dtype: Any, shape: Sequence[int], strides: Sequence[int]) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "typestr": np.dtype(dtype).str,
            "shape": tuple(shape),
            "strides": tuple(strides),
        }


def described(owner: Any, address: int, dtype: Any, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """Return an array over memory, for questions about its layout and what it overlaps.

    If the memory is a GPU's, do not touch the elements. The array keeps the owner alive.
    """
    description = Described(owner, address, dtype, shape, strides)
    array: Array = np.asarray(description)
    del description.__array_interface__  # NumPy has read it; saves an object per array
    return array


def owner_of(array: Array) -> Any:
    """Return the owner of the memory under an array of `described`."""
    description: Any = array.base
    owner: Any = description.owner
    return owner


def extent(array: Array) -> tuple[int, int]:
    """Return the address of the first byte of an array's elements, and that after the last."""
    start = end = address(array)
    if array.flags.c_contiguous:
        return start, end + array.nbytes
    if array.size == 0:
        return start, end
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        start, end = start + min(reach, 0), end + max(reach, 0)
    return start, end + array.itemsize


def overlaps_itself(array: Array) -> bool:
    """Say whether two elements of an array may share memory."""
    reach = array.itemsize
    for length, stride in sorted(zip(array.shape, array.strides, strict=True), key=lambda axis: abs(axis[1])):
        if length > 1:
            if abs(stride) < reach:
                return True
            reach += (length - 1) * abs(stride)
    return False


def pin(array: Array) -> list[weakref.ref[Array]]:
    """Keep an array's memory where it is for as long as the result lives.

    NumPy can resize an array in place if nobody references it, or with ``refcheck=False``, but never one that has weak
    references. A view or an exported buffer does not prevent it, so every owner down the chain gets one.
    """
    references = []
    owner: Any = array
    while isinstance(owner, np.ndarray):
        references.append(weakref.ref(owner))
        owner = owner.base
    return references


class Layout:
    """The storage order of an array: the axes that run backwards, and the order of the axes from slow to fast.

    Arrays with the same order share one.
    """

    __slots__ = ("axes", "backwards", "forwards", "plain")

    axes: tuple[int, ...]
    backwards: Any
    forwards: bool  # no axis runs backwards, so address and strides say all
    plain: bool

    def __new__(cls, array: Array) -> Layout:
        """Return the layout that an array has."""
        signs = tuple([-1 if stride < 0 else 1 for stride in array.strides])
        if array.flags.c_contiguous:
            return cls._shared(True, -1 not in signs, (), ())
        # Strides of axes of length 1 mean nothing: they go first.
        axes = sorted(range(array.ndim), key=lambda axis: (array.shape[axis] > 1, -abs(array.strides[axis])))
        return cls._shared(False, -1 not in signs, signs, tuple(axes))

    @classmethod
    @functools.lru_cache(maxsize=256)
    def _shared(cls, plain: bool, forwards: bool, signs: tuple[int, ...], axes: tuple[int, ...]) -> Layout:
        layout = super().__new__(cls)
        layout.plain, layout.forwards, layout.axes = plain, forwards, axes
        layout.backwards = (..., *(slice(None, None, sign) for sign in signs))
        return layout

    def in_storage_order(self, array: Array) -> Array:
        """View an array with its axes in this storage order, from slow to fast."""
        return array if self.plain else array[self.backwards].transpose(self.axes)

    def is_dense(self, array: Array) -> bool:
        """Say whether an array fills its memory in this storage order."""
        return bool(array.flags.aligned and self.in_storage_order(array).flags.c_contiguous)

    def allocate(self, array: Array, dtype: Any) -> Array:
        """Return a new array of zeros with an array's shape, in this storage order."""
        turned: Array = self.turned_back(np.zeros(self.stored_shape(array), dtype))
        return turned

    def stored_shape(self, array: Array) -> tuple[int, ...]:
        """Return the shape of an array with its axes in storage order."""
        return array.shape if self.plain else tuple(array.shape[axis] for axis in self.axes)

    def turned_back(self, stored: Any) -> Any:
        """View a C-contiguous array of that shape with its axes in their original order."""
        return stored if self.plain else stored.transpose(np.argsort(self.axes))[self.backwards]


class Extents:
    """Arrays in memory that must not overlap, sorted by address.

    Attributes
    ----------
    starts, reaches : array of int64
        The start of each array, in order, and how far it and all arrays before it reach.
    """

    def __init__(self, named: Iterable[tuple[Hashable, Array]]) -> None:
        rows = sorted(((*extent(array), name, array) for name, array in named if array.size), key=lambda row: row[:2])
        self.starts = np.array([row[0] for row in rows], np.int64)
        self.reaches = np.maximum.accumulate(np.array([row[1] for row in rows], np.int64))
        self.names = [row[2] for row in rows]
        self.arrays = [row[3] for row in rows]

    def first_overlap(self) -> tuple[Hashable, Hashable] | None:
        """Return the names of two arrays that share an element."""
        for i in np.flatnonzero(self.starts[1:] < self.reaches[:-1]).tolist():
            if (other := self.overlapping(self.arrays[i + 1], i + 1)) is not None:
                return other, self.names[i + 1]
        return None

    def overlapped(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Say for each range of addresses whether any array may overlap it."""
        first = np.searchsorted(self.reaches, starts, "right")
        beyond = np.append(self.starts, np.iinfo(np.int64).max)
        overlap: npt.NDArray[np.bool_] = beyond[first] < ends
        return overlap

    def overlapping(self, array: Array, count: int | None = None) -> Hashable | None:
        """Return the name of an array, among the first `count`, that shares an element with this one."""
        start, end = extent(array)
        first = int(self.reaches.searchsorted(start, "right"))
        for i in range(first, int(self.starts[:count].searchsorted(end, "left"))):
            # Bounds may overlap although no element does: columns of a matrix, a gradient with gaps around a parameter.
            try:
                shared = np.shares_memory(self.arrays[i], array, max_work=OVERLAP_WORK)  # type: ignore[arg-type]  # NumPy's stub knows two values
            except np.exceptions.TooHardError:
                shared = True
            if shared:
                return self.names[i]
        return None
