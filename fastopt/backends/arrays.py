"""Parameters and gradients that are arrays, of NumPy or on a GPU."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.dtypes import CODES, DTYPES
from ..kernels.reader import UNREAD, Array
from ..options import ADDED_DEFAULTS, NEVER_NEGATIVE
from ..rules import Row, Rule
from ..sparse_rows import SparseRows
from ..step.chunks import Strides, located
from ..step.codes import SCALES, blocks, decode, encode
from ..step.masters import BITS, MASTER, converted, is_convertible
from ..step.memory import Extents, Layout, overlaps_itself, pin
from ..step.parameter import EMA, Parameter
from ..step.plan import Plan
from ..step.sparse import Given
from .gradients import StepGradients


def dense_layout(what: str, array: Array) -> Layout:
    """Return the layout of an array that a kernel will write, which must be dense."""
    layout = Layout(array)
    if not layout.is_dense(array):
        raise ValueError(
            f"{what} is not dense in memory (shape {array.shape}, strides {array.strides}): "
            "pass a .copy() of it, and use that from now on"
        )
    return layout


def check_apart(named: Sequence[tuple[str, Array]]) -> None:
    """Raise if an element that is to be multiplied in place is in two arrays, or twice in one."""
    for what, array in named:
        if overlaps_itself(array):
            raise ValueError(f"two elements of {what} share memory: pass a .copy() of it, and use that")
    if (pair := Extents(named).first_overlap()) is not None:
        raise ValueError(f"{pair[0]} and {pair[1]} overlap in memory: pass each once, and a .copy() of what they share")


def check_leaves_rows(rule: Rule, numbers: Row) -> None:
    """Raise ValueError unless a rule leaves the rows alone that the sparse gradient of a single update leaves out."""
    _, decay, *_ = numbers
    if not rule.sparse or decay != 0:
        raise ValueError(
            "g is sparse, which does not work with this rule, a momentum or weight decay: these move the rows that it "
            "leaves out; pass a dense gradient"
        )


def located_once(written: Mapping[str, Array], gradient: Array, layout: Layout) -> tuple[int, dict[int, Strides]]:
    """Check that no two arrays of a single update overlap, and return where its gradient lies, and how."""
    extents = Extents(written.items())
    pair = extents.first_overlap() or (extents.overlapping(gradient), "g")
    if pair[0] is not None:
        raise ValueError(f"{pair[0]} and {pair[1]} overlap in memory: pass a .copy() of one")
    address, strides = located(layout.in_storage_order(gradient))
    return address, {} if strides is None else {0: strides}


def joined(param: Array, remainder: Array) -> Array:
    """Return masters, from parameters of 16 bits and their remainders."""
    widened = param.astype(np.float32)
    if remainder.dtype == np.float32:
        return np.where(remainder.astype(np.float16).view(np.int16) == param.view(np.int16), remainder, widened)
    bits = (param.view(np.int16).astype(np.int32) << 16) + (
        remainder.astype(np.int32) << 16 - BITS[remainder.dtype.name]
    )
    masters = bits.view(np.float32)
    return np.where(np.isnan(masters), widened, masters)


def remainder_as(dtype: np.dtype[Any], given: Array) -> Array:
    """Return what an array is as a remainder of this dtype; zeros where the masters begin anew."""
    found = given.dtype.name
    if not is_convertible(found, dtype.name):
        return np.zeros(given.shape, dtype)
    return given if found == dtype.name else converted(given.astype(np.int16), found, dtype.name).astype(dtype)


class ArrayParameter(Parameter):
    """One parameter that is an array, of NumPy or on a GPU."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.array.shape

    @property
    def has_plain_rows(self) -> bool:
        """Whether its rows lie one after the other, where a step can update some of them."""
        return self.layout.plain

    def check_plain_rows(self, what: str, library: str) -> None:
        """Raise ValueError unless a sparse gradient can be applied where the rows lie."""
        if not self.has_plain_rows:
            raise ValueError(
                f"{what} is sparse, and the rows of the parameter do not lie one after the other in memory: make the "
                f"parameter once with {library}.ascontiguousarray, and train that"
            )

    def shown(self) -> Mapping[str, Any]:
        """Return the states as a user sees them."""
        return self.states

    def new_average(self) -> Any:
        """Allocate the parameter's average, which starts at the parameter."""
        return self.value()

    @property
    def whole(self) -> Any:
        """The parameter itself, to read and write."""
        return self.array

    def saved(self) -> dict[str, Any]:
        """Copy the states for a state dict: those in 8 bits as they are, or decoded."""
        states = {name: value.copy(order="K") for name, value in self.shown().items()}
        if self.layout.plain and self.group.entries.get("compress_state_dict", ADDED_DEFAULTS["compress_state_dict"]):
            return states
        for name in [name for name in states if name + SCALES in states]:
            codes, scales = self.to_host(states[name]), self.to_host(states.pop(name + SCALES))
            numbers = decode(np.ascontiguousarray(self.layout.in_storage_order(codes)), scales)
            states[name] = self.from_host(self.layout.turned_back(numbers))
        return states

    def loaded_state(self, name: str, what: str, given: Any, scales: Any) -> dict[str, Array]:
        """Copy a state from a state dict, with its scales, after checking that it fits this parameter."""
        dtype = self.state_dtype(name)
        is_coded = getattr(getattr(given, "dtype", None), "name", "") in CODES
        if is_coded:
            codes, scales = self._checked_codes(name, what, given, scales)
            if dtype in CODES and self.layout.plain:
                return {name: self.held_array(codes), name + SCALES: self.held_array(scales)}
            given = decode(codes, scales)
        if dtype not in CODES:
            return {name: self.loaded(name, what, given)}
        numbers = self.to_host(self.checked_state(name, what, given)).astype(np.float32)
        codes, scales = encode(np.ascontiguousarray(self.layout.in_storage_order(numbers)), dtype)
        return {name: self.held_array(self.layout.turned_back(codes)), name + SCALES: self.held_array(scales)}

    def _checked_codes(self, name: str, what: str, codes: Any, scales: Any) -> tuple[Array, Array]:
        """Check codes and scales of a state dict, whose blocks run along the last axis, and copy them into memory."""
        expected = "uint8" if name in NEVER_NEGATIVE else "int8"
        if codes.dtype.name != expected or codes.shape != self.shape:
            raise ValueError(
                f"{what} has dtype {codes.dtype.name} and shape {codes.shape}; in 8 bits it must be {expected} of the "
                f"parameter's shape {self.shape}"
            )
        count = (blocks(self.array.size),)
        if getattr(getattr(scales, "dtype", None), "name", "") != "float32" or scales.shape != count:
            raise ValueError(
                f"{what} is in 8 bits, and needs its {name}{SCALES}, a float32 array of shape {count}, in the same "
                "state dict: save and load the two together, or save with compress_state_dict=False"
            )
        return np.array(self.to_host(codes), order="C"), np.array(self.to_host(scales))

    @abstractmethod
    def loaded(self, name: str, what: str, given: Any) -> Array:
        """Copy a state from a state dict, after checking that it fits this parameter."""

    @abstractmethod
    def checked_state(self, name: str, what: str, given: Any) -> Any:
        """Check that an array from a state dict can be a state of this parameter, not in 8 bits."""

    @abstractmethod
    def to_host(self, array: Any) -> Array:
        """Return a parameter's or a state's elements in memory, perhaps in its own."""

    @abstractmethod
    def from_host(self, array: Array) -> Any:
        """Return an array in memory as users of this parameter see arrays, perhaps itself."""

    @abstractmethod
    def held_array(self, array: Array) -> Array:
        """Return a new state with the elements of an array in memory, which nobody else uses."""

    @abstractmethod
    def in_order(self, gradient: Any) -> tuple[Any, Array]:
        """Copy a gradient into the parameter's storage order; return the copy, and an array that describes it."""

    def value(self) -> Any:
        """Return a copy of the parameter as kernels compute with it, its master if it has one."""

    def loaded_states(self, names: Sequence[str], what: str, given: Mapping[str, Any]) -> dict[str, Array]:
        """Copy states from a state dict, after checking that they fit; a master that is not there begins anew."""
        found: dict[str, Array] = {}
        for name in (*names, EMA):
            if name in given:
                found |= self.loaded_state(name, f"the {name} of {what}", given[name], given.get(name + SCALES))
        if self.master and MASTER in given:
            found[MASTER] = self.loaded(MASTER, f"the {MASTER} of {what}", given[MASTER])
        elif self.master and found:
            found[MASTER] = self.new_state(0.0, self.master)
        return found

    def alike(self, given: Any) -> int:
        """Return the address of a gradient that the extension has not read; UNREAD if it needs the slow check."""
        return UNREAD

    @abstractmethod
    def checked_rows(self, what: str, given: SparseRows) -> Any:
        """Check a sparse gradient; return a `Given`, or on a GPU a `GivenThere`."""

    @abstractmethod
    def all_rows(self, what: str, gradient: Any, array: Array, dtype: str) -> Any:
        """Take a dense gradient, which is checked, as all rows of its parameter; `array` says how it lies."""

    @abstractmethod
    def checked_gradient(self, what: str, given: Any) -> tuple[Any, Array, str]:
        """Check a gradient; return it, which the caller keeps alive, an array that says how it lies, and its dtype."""


class Gradients(StepGradients):
    """Gradients that are arrays, of NumPy or on a GPU."""

    advice = "pass a .copy() of it"

    def __init__(self, plan: Plan, parameters: Sequence[ArrayParameter], given: Sequence[Any]) -> None:
        self.held = list(given)
        if len(self.held) != len(parameters):
            raise ValueError(f"there are {len(parameters)} parameters and {len(self.held)} gradients")
        self.strided: dict[int, Strides] = {}
        self.copies: dict[int, Any] = {}
        self.others: dict[int, str] = {}
        self.sparse: dict[int, Given] = {}
        self.there: dict[int, Any] = {}
        self.addresses, unread, none = plan.reader.read(self.held)
        if unread and plan.uses_gpus:
            self._read_alike(parameters, plan.extents)
        if unread:
            self.check_unread(parameters, plan.extents)
        self.taking_part = (self.addresses != 0).tobytes() if none or self.sparse else plan.everyone

    def _read_alike(self, parameters: Sequence[ArrayParameter], extents: Extents) -> None:
        """Read what the extension has not: gradients on GPUs in their parameters' layout that overlap nothing."""
        unread = np.flatnonzero(self.addresses == UNREAD)
        found = np.array([parameters[i].alike(self.held[i]) for i in unread.tolist()], np.int64)
        lengths = np.array([parameters[i].array.nbytes for i in unread.tolist()])
        self.addresses[unread] = np.where(extents.overlapped(found, found + lengths), UNREAD, found)

    def checked(self, i: int, what: str, parameter: ArrayParameter) -> Array | None:
        """Check a gradient, and return an array that describes its layout; None if it is sparse."""
        if isinstance(self.held[i], SparseRows):
            return self._keep_rows(i, parameter, parameter.checked_rows(what, self.held[i]))
        self.held[i], array, dtype = parameter.checked_gradient(what, self.held[i])
        if parameter.rowwise:
            self._keep_rows(i, parameter, parameter.all_rows(what, self.held[i], array, dtype))
            return array
        self.note_dtype(i, parameter, dtype)
        return array

    def _keep_rows(self, i: int, parameter: ArrayParameter, given: Any) -> Array | None:
        """Keep rows; on a GPU, return an array that describes their values."""
        if not parameter.device.on_gpu:
            self.sparse[i] = given
            return None
        self.there[i] = given
        values: Array = given.values
        return values

    def in_order(self, i: int, parameter: ArrayParameter) -> Array:
        """Copy a gradient into its parameter's storage order, and return an array that describes the copy."""
        copy, array = parameter.in_order(self.held[i])
        self.copies[i] = copy
        return array

    def keep_in_place(self) -> None:
        """Prevent all resizing, even with ``refcheck=False``, for as long as this lives."""
        self.pins = [reference for array in self.held if array is not None for reference in pin(array)]

    def check_writable(self, parameters: Sequence[ArrayParameter]) -> None:
        """Raise unless all of them can be set to zero, each for itself while others are still read."""
        for parameter, given in zip(parameters, self.held, strict=True):
            if isinstance(given, SparseRows):
                raise TypeError(
                    f"the gradient of {parameter} is sparse, and is not set to zero: call step without zero_grads"
                )
        for parameter, array in zip(parameters, self.held, strict=True):
            if isinstance(array, np.ndarray) and not array.flags.writeable:
                raise ValueError(
                    f"the gradient of {parameter} cannot be set to zero, since it is read-only: call step without "
                    f"zero_grads"
                )
        # Those with other strides are set to zero after the step, when nobody reads them any more.
        apart = {*self.strided, *self.copies, *self.there}
        in_kernels = [i for i, start in enumerate(self.addresses.tolist()) if start and i not in apart]
        order = np.array(sorted(in_kernels, key=self.addresses.__getitem__), np.intp)
        starts = self.addresses[order]
        ends = starts + np.array([self._bytes(i, parameters[i]) for i in order.tolist()], np.int64)
        if len(reached := np.flatnonzero(ends[:-1] > starts[1:])):
            first, second = (parameters[order[reached[0] + beside]] for beside in (0, 1))
            raise ValueError(
                f"the gradient of {first} and the gradient of {second} overlap in memory: call step without zero_grads"
            )

    def _bytes(self, i: int, parameter: ArrayParameter) -> int:
        """How many bytes a gradient has."""
        return parameter.array.size * DTYPES[self.others.get(i, parameter.gradient)].itemsize

    def fill_with_zeros(self) -> None:
        """Set all of them to zero."""
        for array in self.held:
            if array is not None:
                array[...] = 0

    def release(self) -> None:
        """Let go of the arrays, so that the next ones can reuse their memory. No step uses these again."""
        self.held, self.copies, self.sparse, self.there = [], {}, {}, {}
