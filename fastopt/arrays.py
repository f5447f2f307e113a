"""What an array must be before its address is taken, and how it lies in memory."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .foreign import borrowed, dlpack_device, kind, to_read, to_update
from .kernels.reader import Array, address

OVERLAP_WORK = 1_000_000  # how long to look for a shared element before it counts as found

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


CUDA = (2, 13)  # DLPack's codes of a GPU's memory, the second one's managed by the driver


def is_on_device(value: Any) -> bool:
    """Say whether something is an array in a GPU's memory, of whatever library."""
    if isinstance(value, np.ndarray):
        return False
    # DLPack first: a tensor of torch that requires a gradient raises where it is asked for the interface.
    return dlpack_device(value) in CUDA or hasattr(value, "__cuda_array_interface__")


def is_array(value: Any) -> bool:
    """Say whether something is one array, and not several."""
    return isinstance(value, np.ndarray) or is_on_device(value)


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


def check_type(what: str, array: Any, advice: Callable[[Any], str] = to_update) -> Array:
    """Return a plain view of what must be an ordinary NumPy array."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what} is {kind(array)}, not a NumPy array: {advice(array)}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array, whose mask an update would ignore: pass its .data or .filled()")
    plain: Array = array.view(np.ndarray)  # a view of our own: its shape and dtype stay, whatever is done to the other
    return plain


def check_dense(what: str, array: Any) -> tuple[Array, Layout]:
    """Check an array that a kernel will write: a parameter or a state."""
    array = check_type(what, array)
    if array.dtype not in DTYPES:
        raise TypeError(
            f"{what} has dtype {_name(array.dtype)}; float32 and float64 can be updated: {as_floats(array)}"
        )
    if not array.flags.writeable:
        raise ValueError(f"{what} is read-only, and would be updated in place: pass a writable .copy() and use that")
    layout = Layout(array)
    if not (array.flags.aligned and layout.in_storage_order(array).flags.c_contiguous):
        raise ValueError(
            f"{what} is not dense in memory (shape {array.shape}, strides {array.strides}): "
            f"pass a .copy() of it, and use that from now on"
        )
    return array, layout


def check_like(what: str, array: Any, other: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Check that an array has its parameter's dtype and shape."""
    checked = check_type(what, array, lambda given: to_read(given, dtype))
    if checked.dtype != dtype:
        real = ".real" if checked.dtype.kind == "c" else ""
        raise TypeError(
            f"{what} has dtype {_name(checked.dtype)}, {other} {dtype.name}: pass {real}.astype(np.{dtype.name}) of it"
        )
    if checked.shape != shape:
        raise ValueError(f"{what} has shape {checked.shape}, {other} {shape}: they are paired by index and must agree")
    return checked


def check_gradient(what: str, given: Any, other: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Check what is only read: an array, or memory on the CPU that something else offers."""
    if isinstance(given, np.generic):  # what a reduction over all axes returns: the gradient of a 0-d parameter
        given = np.asarray(given)
    if not isinstance(given, np.ndarray):
        given = _borrowed(what, given, other, dtype)
    return check_like(what, given, other, dtype, shape)


def _borrowed(what: str, given: Any, other: str, dtype: np.dtype[Any]) -> Array:
    """Return an array over the memory of something else, which must have its parameter's dtype."""
    if is_on_device(given):
        raise TypeError(f"{what} is {kind(given)} on a GPU, not a NumPy array as {other}: {to_read(given, dtype)}")
    try:
        array = borrowed(given)
    except (TypeError, ValueError, AttributeError, BufferError, RuntimeError) as error:
        raise TypeError(f"{what} is {kind(given)}, not a NumPy array: {to_read(given, dtype)}") from error
    if array.dtype != dtype:
        raise TypeError(
            f"{what} is {kind(given)} of dtype {_name(array.dtype)}, {other} {dtype.name}: {to_read(given, dtype)}"
        )
    return array


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


def as_floats(array: Array) -> str:
    """Say how to make an array of another dtype one that can be updated."""
    if array.dtype.kind == "c":
        return "pass .view(np.float32) of it, or of its .astype(np.complex64), and train that, pairs of real numbers"
    if array.dtype.names is not None:
        return "pass its fields, {name: array[name].astype(np.float32) for name in array.dtype.names}, and train those"
    if array.dtype == object and any(isinstance(entry, np.ndarray) for entry in array.flat):
        return "pass .tolist() of it, and train the arrays in that list"
    return "make it once with .astype(np.float32) and train that"


def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.isnative else f"{dtype.name} in foreign byte order"
