"""One parameter that is an array of NumPy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from ...kernels.dtypes import DTYPES, goes_with
from ...kernels.reader import Array
from ...sparse_rows import SparseRows
from ...step.codes import blocks
from ...step.group import GroupOptions
from ...step.masters import MASTER
from ...step.memory import pin
from ...step.sparse import Given
from ..arrays import ArrayParameter, joined, remainder_as
from .device import CPU
from .memory import (
    bfloat16,
    check_dense,
    check_gradient,
    check_like,
    check_state,
    check_type,
    given_rows,
    in_memory,
    memory_dtype,
    shown_as,
)


class NumpyParameter(ArrayParameter):
    """One parameter that is a NumPy array."""

    __slots__ = ("pins",)

    def __init__(self, key: Hashable, param: Any, group: GroupOptions) -> None:
        array, layout = check_dense(f"parameter {key!r}", param)
        super().__init__(key, in_memory(array), layout, array.dtype.name, group, CPU)
        self.pins = pin(self.array)
        if "bfloat16" in self.asked:
            bfloat16()  # an error now, if it is not there, and not in the first step

    @property
    def expected(self) -> Array | None:
        """The array that a gradient usually equals in type, dtype, shape and strides."""
        if self.rowwise or not self.layout.forwards or self.gradient == "bfloat16":
            return None
        return self.array if self.gradient == self.dtype else self.layout.allocate(self.array, self.gradient)

    @property
    def whole(self) -> Array:
        """The parameter itself, to read and write."""
        return shown_as(self.dtype, self.array)

    def restore(self, step: int, carried: float, states: Mapping[str, Array]) -> None:
        """Replace count, carried number and states."""
        self.pins = pin(self.array)
        super().restore(step, carried, states)

    def keep(self, states: Mapping[str, Array]) -> None:
        """Take new states, and pin their memory."""
        self.states.update(states)
        for array in states.values():
            self.pins += pin(array)

    @property
    def real(self) -> np.dtype[Any]:
        """The dtype that its kernels compute in."""
        found: np.dtype[Any] = np.dtype(DTYPES[self.dtype].real)
        return found

    def value(self) -> Array:
        """Return a copy of the parameter as kernels compute with it, its master if it has one."""
        new = self.layout.allocate(self.array, self.real)
        new[...] = joined(self.whole, self.states[MASTER]) if MASTER in self.states else self.whole
        return new

    def new_state(self, value: float, dtype: str) -> Array:
        """Allocate a state in the parameter's storage order; of bfloat16, its bits."""
        state = self.layout.allocate(self.array, memory_dtype(dtype))
        if value != 0:
            shown_as(dtype, state)[...] = value
        return state

    def new_numbers(self, value: float) -> Array:
        """Allocate a state that has one number for each row."""
        return np.full(self.rows_shape, value, self.real)

    def new_scales(self, value: float) -> Array:
        """Allocate the scales of a state's blocks."""
        return np.full(blocks(self.array.size), value, np.float32)

    def shown(self) -> Mapping[str, Array]:
        """Return the states as a user sees them: those of bfloat16 are arrays of ml_dtypes over the same memory."""
        return {name: shown_as(self.state_dtype(name), state) for name, state in self.states.items()}

    def checked_state(self, name: str, what: str, given: Any) -> Array:
        """Check that an array from a state dict can be a state of this parameter."""
        if not self.is_of_rows(name):
            return check_state(what, given, self.real, self.shape)
        self.check_rows_shape(what, np.shape(given))
        return check_state(what, given, self.real, self.rows_shape)

    def loaded(self, name: str, what: str, given: Any) -> Array:
        """Copy a state from a state dict, after checking that it fits this parameter."""
        dtype = self.state_dtype(name)
        state = self.new_numbers(0.0) if self.is_of_rows(name) else self.new_state(0.0, dtype)
        if name == MASTER:
            found = check_type(what, given)
            source = remainder_as(state.dtype, check_like(what, found, "its parameter", found.dtype, self.shape))
        else:
            source = self.checked_state(name, what, given)
        shown_as(dtype, state)[...] = source
        return state

    def to_host(self, array: Array) -> Array:
        """Return an array of this parameter's in memory."""
        return array

    def from_host(self, array: Array) -> Array:
        """Return an array for this parameter."""
        return array

    def held_array(self, array: Array) -> Array:
        """Return a new state with the elements of an array in memory."""
        return array

    def in_order(self, gradient: Array) -> tuple[Array, Array]:
        """Copy a gradient into the parameter's storage order; return the copy, and an array that describes it."""
        copy = self.layout.allocate(gradient, gradient.dtype)
        copy[...] = gradient
        return copy, copy

    def checked_rows(self, what: str, given: SparseRows) -> Given:
        """Check a sparse gradient."""
        self.check_plain_rows(what, "np")
        return given_rows(what, given, "its parameter", self.whole)

    def all_rows(self, what: str, gradient: Any, array: Array, dtype: str) -> Given:
        """Take a dense gradient, which is checked, as all rows of its parameter."""
        return Given.all_of(what, shown_as(dtype, array))

    def checked_gradient(self, what: str, given: Any) -> tuple[Any, Array, str]:
        """Check a gradient; return it, which the caller keeps alive, an array that says how it lies, and its dtype."""
        array = check_gradient(what, given, "its parameter", self.whole.dtype, self.shape, goes_with)
        return array, in_memory(array), array.dtype.name
