"""One parameter that is an array of CuPy, or of whatever it can look into."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from ...kernels.dtypes import DTYPES, goes_with
from ...kernels.reader import UNREAD, Array
from ...rules import STATE_DTYPES
from ...step.gpu import Gpu
from ...step.group import GroupOptions
from ...step.masters import MASTER
from ...step.memory import owner_of
from ...step.parameter import EMA
from ..arrays import ArrayParameter, dense_layout, joined, remainder_as
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
        return self.held if plain and self.layout.forwards else None

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
        cupy, shape = self.device.cupy, self.layout.stored_shape(self.array)
        kind = bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
        with cupy.cuda.Device(self.device.index):
            new = cupy.zeros(shape, kind) if value == 0 else cupy.full(shape, value, kind)
            return seen(self.layout.turned_back(new), dtype)

    def loaded(self, name: str, what: str, given: Any) -> Array:
        """Copy a state from a state dict, from a GPU or from NumPy, after checking that it fits this parameter."""
        state = self.new_state(0.0, self.state_dtype(name))
        new = owner_of(state)
        found = getattr(given, "dtype", None)
        if name == MASTER and found is not None:
            given = remainder_as(new.dtype, given if isinstance(given, np.ndarray) else self.device.cupy.asnumpy(given))
            found = given.dtype
        if found is None or (found != new.dtype and found.name not in (*STATE_DTYPES, DTYPES[self.dtype].real_name)):
            raise TypeError(f"{what} has dtype {getattr(given, 'dtype', None)}, its parameter needs {new.dtype}")
        if given.shape != new.shape:
            raise ValueError(f"{what} has shape {given.shape}, its parameter {new.shape}: they must agree")
        with self.device.cupy.cuda.Device(self.device.index):
            new[...] = self.device.cupy.asarray(given)
        return state

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
