"""One parameter that is an array of CuPy, or of whatever it can look into."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from ...kernels.dtypes import DTYPES, goes_with
from ...kernels.reader import UNREAD, Array
from ...options import STATE_DTYPES
from ...sparse_rows import SparseRows
from ...step.codes import blocks
from ...step.gpu import Gpu
from ...step.gpu_sparse import GivenThere, refuse_capture
from ...step.group import GroupOptions
from ...step.masters import MASTER
from ...step.memory import Layout, owner_of
from ...step.parameter import EMA
from ..arrays import ArrayParameter, dense_layout, joined, remainder_as
from ..gradients import check_rows_of, not_in_captures
from ..numpy.memory import bfloat16
from .device import gpu_of_cupy, installed_cupy
from .memory import as_cupy, check_writable, dtype_of, seen


class CupyParameter(ArrayParameter):
    """One parameter that is an array on a GPU."""

    __slots__ = ("held",)

    device: Gpu

    def __init__(self, key: Hashable, given: Any, group: GroupOptions, what: str = "") -> None:
        what = what or f"parameter {key!r}"
        self.held = as_cupy(what, given)
        check_writable(what, given)
        dtype = dtype_of(what, self.held)
        array = seen(self.held, dtype)
        layout = dense_layout(what, array)
        device = gpu_of_cupy(installed_cupy(), self.held.device.id)
        super().__init__(key, array, layout, dtype, group, device)
        if "bfloat16" in self.asked:
            bfloat16()  # an error now, if it is not there, and not in the first step

    @property
    def expected(self) -> Any:
        """The array that a gradient usually equals in type, dtype, shape and strides."""
        plain = type(self.held) is installed_cupy().ndarray and self.gradient == self.dtype
        return self.held if plain and self.layout.forwards and not self.rowwise else None

    def shown(self) -> Mapping[str, Any]:
        """Return the states as a user sees them: arrays of CuPy."""
        return {name: owner_of(state) for name, state in self.states.items()}

    @property
    def whole(self) -> Any:
        """The parameter itself, to read and write."""
        return self.held

    def new_average(self) -> Array:
        """Allocate the parameter's average, which starts at the parameter."""
        return seen(self.value(), self.state_dtype(EMA))

    def value(self) -> Any:
        """Return a copy of the parameter as kernels compute with it, its master if it has one, which waits."""
        cupy, new = self.device.cupy, owner_of(self.new_state(0.0, DTYPES[self.dtype].real_name))
        with cupy.cuda.Device(self.device.index):
            if MASTER in self.states:
                remainder = cupy.asnumpy(owner_of(self.states[MASTER]))
                new[...] = cupy.asarray(joined(cupy.asnumpy(self.held), remainder))
            else:
                new[...] = self.held
        return new

    def new_state(self, value: float, dtype: str) -> Array:
        """Allocate a state in the parameter's storage order."""
        new = self._filled(self.layout.stored_shape(self.array), value, dtype)
        return seen(self.layout.turned_back(new), dtype)

    def new_numbers(self, value: float) -> Array:
        """Allocate a state that has one number for each row."""
        real = DTYPES[self.dtype].real_name
        return seen(self._filled(self.rows_shape, value, real), real)

    def new_scales(self, value: float) -> Array:
        """Allocate the scales of a state's blocks."""
        return seen(self._filled((blocks(self.array.size),), value, "float32"), "float32")

    def _filled(self, shape: tuple[int, ...], value: float, dtype: str) -> Any:
        """Allocate an array of CuPy on this GPU."""
        cupy, kind = self.device.cupy, bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
        with cupy.cuda.Device(self.device.index):
            return cupy.zeros(shape, kind) if value == 0 else cupy.full(shape, value, kind)

    def checked_state(self, name: str, what: str, given: Any) -> Any:
        """Check that an array from a state dict, on a GPU or of NumPy, can be a state of this parameter."""
        found, real = getattr(given, "dtype", None), DTYPES[self.dtype].real_name
        if found is None or found.name not in {*STATE_DTYPES, real} & {*DTYPES}:
            raise TypeError(f"{what} has dtype {found}, its parameter needs {real}")
        if not self.is_of_rows(name):
            return self.checked_like(what, given)
        self.check_rows_shape(what, given.shape)
        return given

    def checked_like(self, what: str, given: Any) -> Any:
        """Check that an array has the parameter's shape."""
        if given.shape != self.shape:
            raise ValueError(f"{what} has shape {given.shape}, its parameter {self.shape}: they must agree")
        return given

    def loaded(self, name: str, what: str, given: Any) -> Array:
        """Copy a state from a state dict, from a GPU or from NumPy, after checking that it fits this parameter."""
        state = self.new_numbers(0.0) if self.is_of_rows(name) else self.new_state(0.0, self.state_dtype(name))
        if name == MASTER:
            source = remainder_as(owner_of(state).dtype, self.checked_like(what, self.to_host(given)))
        else:
            source = self.checked_state(name, what, given)
        with self.device.cupy.cuda.Device(self.device.index):
            owner_of(state)[...] = self.device.cupy.asarray(source)
        return state

    def to_host(self, array: Any) -> Array:
        """Return an array's elements in memory: a copy of one on a GPU, one of NumPy as it is."""
        return array if isinstance(array, np.ndarray) else as_cupy("a state", array).get()

    def from_host(self, array: Array) -> Any:
        """Return a copy on this GPU of an array in memory, that lies as it does."""
        return owner_of(self.held_array(array))

    def held_array(self, array: Array) -> Array:
        """Return a new state with the elements of an array in memory."""
        with self.device.cupy.cuda.Device(self.device.index):
            layout = Layout(array)
            copy = self.device.cupy.asarray(np.ascontiguousarray(layout.in_storage_order(array)))
            return seen(layout.turned_back(copy), array.dtype.name)

    def in_order(self, gradient: Any) -> tuple[Any, Array]:
        """Copy a gradient into the parameter's storage order; return the copy, and an array that describes it."""
        with self.device.cupy.cuda.Device(self.device.index):
            if self.device.current_stream().is_capturing():
                raise not_in_captures(self, "cupy")
            array = self.new_state(0.0, self.dtype)
            copy = owner_of(array)
            copy[...] = gradient
            return copy, array

    def checked_rows(self, what: str, given: SparseRows) -> GivenThere:
        """Check a sparse gradient; 16 bits become float32. Whether its indices are rows of the table is found later."""
        self.check_plain_rows(what, "cupy")
        if isinstance(given.values, np.ndarray):
            raise TypeError(f"{what} is of NumPy, its table on a GPU: pass cupy.asarray(...) of its indices and values")
        indices, values = as_cupy(what, given.indices), as_cupy(what, given.values)
        for name, array in (("indices", indices), ("values", values)):
            if array.device.id != self.device.index:
                raise ValueError(f"{what} has {name} on GPU {array.device.id}, its table on GPU {self.device.index}")
        refuse_capture(self.device, what)
        check_rows_of(what, given, "its parameter", self.dtype, self.shape)
        real, width = DTYPES[values.dtype.name].real_name, math.prod(self.shape[1:])
        held = self._dense(indices), self._dense(values, real)
        lie = seen(held[0], indices.dtype.name), seen(held[1], real)
        found = GivenThere(what, self.number, *lie, self.shape[0], width, held)
        found.check_size()
        return found

    def all_rows(self, what: str, gradient: Any, array: Array, dtype: str) -> GivenThere:
        """Take a dense gradient, which is checked, as all rows of its parameter; 16 bits become float32."""
        refuse_capture(self.device, what, dense=True)
        real, width = DTYPES[dtype].real_name, math.prod(self.shape[1:])
        held = self._dense(gradient, real)
        found = GivenThere(what, self.number, None, seen(held, real), self.shape[0], width, held)
        found.check_size()
        return found

    def _dense(self, array: Any, dtype: str = "") -> Any:
        """Return an array of a dtype, or a copy, whose elements lie in the order of its axes."""
        name = array.dtype.name
        flags = seen(array, name).flags
        if flags.c_contiguous and flags.aligned and name == (dtype or name):
            return array
        with self.device.cupy.cuda.Device(self.device.index):
            copy = self.device.cupy.empty(array.shape, dtype or name)
            copy[...] = array
            return copy

    def state(self, what: str, given: Any) -> Array:
        """Check a state that the caller owns."""
        array = as_cupy(what, given)
        check_writable(what, given)
        real = np.dtype(DTYPES[self.dtype].real)
        if array.device.id != self.device.index or array.dtype != real or array.shape != self.shape:
            raise ValueError(
                f"{what} must be of {real.name} and shape {self.shape} on GPU {self.device.index}, as p needs it, not "
                f"of {array.dtype.name} and {array.shape} on GPU {array.device.id}"
            )
        state = seen(array, real.name)
        if not self.layout.is_dense(state):
            raise ValueError(
                f"{what} does not lie in memory as p does: make it with cupy.zeros_like(p, dtype={real.name!r})"
            )
        return state

    def alike(self, given: Any) -> int:
        """Return the address of a gradient in the parameter's layout; UNREAD if it needs the slow check.

        The extension does this itself; without it, this takes a tenth of the slow check.
        """
        held = self.held
        if (
            self.gradient == self.dtype
            and not self.rowwise
            and type(given) is type(held)
            and given.dtype == held.dtype
            and given.shape == held.shape
            and given.strides == held.strides
            and self.layout.forwards
            and given.device == held.device
            and given.data.ptr % self.array.itemsize == 0
        ):
            return int(given.data.ptr) or UNREAD
        return UNREAD

    def checked_gradient(self, what: str, given: Any) -> tuple[Any, Array, str]:
        """Check a gradient; return it, which the caller keeps alive, an array that says how it lies, and its dtype."""
        array = as_cupy(what, given)
        if array.device.id != self.device.index:
            raise ValueError(f"{what} is on GPU {array.device.id}, its parameter on GPU {self.device.index}")
        name = array.dtype.name
        if not array.dtype.isnative or not goes_with(name, self.dtype):
            real = ".real" if array.dtype.kind == "c" else ""
            raise TypeError(
                f"{what} has dtype {name}, its parameter {self.dtype}: pass {real}.astype({self.dtype!r}) of it"
            )
        if array.shape != self.shape:
            raise ValueError(
                f"{what} has shape {array.shape}, its parameter {self.shape}: they are paired by index and must agree"
            )
        view = seen(array, name)
        if not view.flags.aligned:  # which a GPU cannot read
            raise ValueError(f"{what} is not aligned to its elements in memory: pass a .copy() of it")
        return array, view, name
