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
    """Memory of somebody else's, described for NumPy; ``base`` of an array that is made of it."""

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
    """Return an array that says how memory lies, for all that asks about layout and overlap.

    On a device its elements must not be touched: they are not there. The owner of the memory lives as long as this.
    """
    description = Described(owner, address, dtype, shape, strides)
    array: Array = np.asarray(description)
    del description.__array_interface__  # NumPy has read it: one object less for each array
    return array


def owner_of(array: Array) -> Any:
    """Return the owner of the memory that such an array describes."""
    description: Any = array.base
    owner: Any = description.owner
    return owner


def extent(array: Array) -> tuple[int, int]:
    """Return the first address that an array's elements touch, and the first after them."""
    start = end = address(array)
    if array.size == 0:
        return start, end
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        start, end = start + min(reach, 0), end + max(reach, 0)
    return start, end + array.itemsize


def pin(array: Array) -> list[weakref.ref[Array]]:
    """Keep an array's memory where it is for as long as the result lives.

    NumPy resizes in place what nobody references, or anything with ``refcheck=False``, though never an array with a
    weak reference to it. An exported buffer or a view do not hinder it, so all owners down the chain need one.
    """
    references = []
    owner: Any = array
    while isinstance(owner, np.ndarray):
        references.append(weakref.ref(owner))
        owner = owner.base
    return references


class Layout:
    """The storage order of an array: which axes run backwards, and the order of the axes from slow to fast.

    Arrays with the same order share one.
    """

    __slots__ = ("axes", "backwards", "forwards", "plain")

    axes: tuple[int, ...]
    backwards: Any
    forwards: bool  # so that address and strides say all
    plain: bool

    def __new__(cls, array: Array) -> Layout:
        """Return the layout that an array has."""
        signs = tuple([-1 if stride < 0 else 1 for stride in array.strides])
        if array.flags.c_contiguous:
            return cls._shared(True, -1 not in signs, (), ())
        # Axes of length 1 have strides without a meaning: they go first.
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
        """View an array with this one's axes turned so that this one would be C-contiguous."""
        return array if self.plain else array[self.backwards].transpose(self.axes)

    def allocate(self, array: Array, value: float) -> Array:
        """Return a new array, filled with a value, that lies in memory as this one's does."""
        shape = self.stored_shape(array)
        new = np.zeros(shape, array.dtype) if value == 0 else np.full(shape, value, array.dtype)
        turned: Array = self.turned_back(new)
        return turned

    def stored_shape(self, array: Array) -> tuple[int, ...]:
        """Return the shape of an array with its axes turned into storage order."""
        return array.shape if self.plain else tuple(array.shape[axis] for axis in self.axes)

    def turned_back(self, stored: Any) -> Any:
        """View an array of that shape, C-contiguous, with its axes turned so that it lies as this one's does."""
        return stored if self.plain else stored.transpose(np.argsort(self.axes))[self.backwards]


class Extents:
    """Arrays in memory that must not overlap, found by address.

    Attributes
    ----------
    starts, reaches : array of int64
        Where each array starts, in order, and how far it and all before it reach.
    """

    def __init__(self, named: Iterable[tuple[Hashable, Array]]) -> None:
        rows = sorted(((*extent(array), name, array) for name, array in named if array.size), key=lambda row: row[:2])
        self.starts = np.array([row[0] for row in rows], np.int64)
        self.reaches = np.maximum.accumulate(np.array([row[1] for row in rows], np.int64))
        self.names = [row[2] for row in rows]
        self.arrays = [row[3] for row in rows]

    def first_overlap(self) -> tuple[Hashable, Hashable] | None:
        """Return two of the names whose arrays share an element."""
        for i in np.flatnonzero(self.starts[1:] < self.reaches[:-1]).tolist():
            if (other := self.overlapping(self.arrays[i + 1], i + 1)) is not None:
                return other, self.names[i + 1]
        return None

    def overlapped(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Say for each range of addresses whether any array's may overlap it."""
        first = np.searchsorted(self.reaches, starts, "right")
        beyond = np.append(self.starts, np.iinfo(np.int64).max)
        overlap: npt.NDArray[np.bool_] = beyond[first] < ends
        return overlap

    def overlapping(self, array: Array, count: int | None = None) -> Hashable | None:
        """Return the name of an array, among all or the first so many, that shares an element with this one."""
        start, end = extent(array)
        first = int(np.searchsorted(self.reaches, start, "right"))
        for i in range(first, int(np.searchsorted(self.starts[:count], end, "left"))):
            # Bounds may overlap where elements do not: columns of one matrix, a gradient with gaps around a parameter.
            try:
                shared = np.shares_memory(self.arrays[i], array, max_work=OVERLAP_WORK)  # type: ignore[arg-type]  # NumPy's stub knows two values
            except np.exceptions.TooHardError:
                shared = True
            if shared:
                return self.names[i]
        return None
