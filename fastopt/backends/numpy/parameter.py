"""One parameter that is an array of NumPy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from ...kernels.reader import Array
from ...step.group import GroupOptions
from ...step.memory import pin
from ..arrays import ArrayParameter
from .device import CPU
from .memory import check_dense, check_gradient, check_like


class NumpyParameter(ArrayParameter):
    """One parameter that is a NumPy array."""

    __slots__ = ("pins",)

    def __init__(self, key: Hashable, param: Any, group: GroupOptions) -> None:
        array, layout = check_dense(f"parameter {key!r}", param)
        super().__init__(key, array, layout, array.dtype.name, group, CPU)
        self.pins = pin(self.array)

    @property
    def expected(self) -> Array | None:
        """The array that a gradient usually equals in type, dtype, shape and strides."""
        return self.array if self.layout.forwards else None

    def restore(self, step: int, carried: float, states: Mapping[str, Array]) -> None:
        """Replace count, carried number and states."""
        self.pins = pin(self.array)
        super().restore(step, carried, states)

    def keep(self, states: Mapping[str, Array]) -> None:
        """Take new states, and pin their memory."""
        self.states.update(states)
        for array in states.values():
            self.pins += pin(array)

    def new_state(self, value: float) -> Array:
        """Allocate a state in the parameter's storage order."""
        return self.layout.allocate(self.array, value)

    def loaded(self, what: str, given: Any) -> Array:
        """Copy a state from a state dict, after checking that it fits this parameter."""
        source = check_like(what, given, "its parameter", self.array.dtype, self.shape)
        state = self.new_state(0.0)
        state[...] = source
        return state

    def gradient(self, what: str, given: Any) -> tuple[Any, Array]:
        """Check a gradient; return it (the caller keeps it alive) and an array that describes its layout."""
        array = check_gradient(what, given, "its parameter", self.array.dtype, self.shape)
        return array, array
