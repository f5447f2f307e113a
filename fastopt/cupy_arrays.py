"""Arrays of CuPy, and of whatever it can look into: what a parameter is on a GPU, and the update of a single one."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from .arrays import Extents, Layout, as_floats, described, extent, is_on_device, owner_of
from .chunks import located
from .extras import require
from .foreign import kind
from .gpu import Gpu
from .groups import GroupOptions
from .kernels.reader import UNREAD, Array
from .kernels.tables import ELEMENTS
from .plan import ArrayTensor
from .rules import Row, Rule


@functools.cache
def gpu_of_cupy(cupy: Any, index: int) -> Gpu:
    """Return a device as CuPy uses it."""
    return Gpu(cupy, index, lambda: cupy.cuda.get_current_stream(index))


def seen(array: Any, format: str) -> Array:
    """Return an array that says how one of CuPy lies in memory, and must not be read; it keeps the other alive."""
    return described(array, int(array.data.ptr), ELEMENTS[format][0], array.shape, array.strides)


def installed_cupy() -> Any:
    """Import CuPy; which of the two extras brings it, nothing here can tell."""
    return require("cupy", "cuda13")


def as_cupy(what: str, given: Any) -> Any:
    """Return an array of CuPy over the same memory as an array of any library on a GPU."""
    cupy = installed_cupy()
    if isinstance(given, cupy.ndarray):
        return given
    if not is_on_device(given):
        raise TypeError(f"{what} is {kind(given)}, not an array on a GPU: pass cupy.asarray(...) of it, and keep that")
    if getattr(given, "requires_grad", False):  # of torch, which shows no memory then
        raise TypeError(f"{what} requires a gradient: pass .detach() of it, or train it with fastopt.torch")
    if hasattr(given, "__cuda_array_interface__"):
        return cupy.asarray(given)
    return cupy.from_dlpack(given)


def check_writable(what: str, given: Any) -> None:
    """Raise where the interface of an array says that nobody may write there."""
    interface = getattr(given, "__cuda_array_interface__", None)
    if interface is not None and interface["data"][1]:
        raise ValueError(
            f"{what} is read-only, and would be updated in place: pass cupy.array(...) of it, and use that"
        )


def format_of(what: str, array: Any) -> str:
    """Name what an array holds, as kernels are compiled for it."""
    name: str = array.dtype.name
    if name not in ELEMENTS or not array.dtype.isnative:
        known = ", ".join(ELEMENTS)
        way = "pass .astype('float32') of it" if array.dtype.kind != "c" else as_floats(array)
        raise TypeError(f"{what} has dtype {name}; {known} can be updated on a GPU: {way}")
    return name


class GpuTensor(ArrayTensor):
    """One parameter that is an array on a GPU."""

    place: Gpu

    def __init__(self, key: Hashable, given: Any, group: GroupOptions, what: str = "") -> None:
        what = what or f"parameter {key!r}"
        self.held = as_cupy(what, given)
        check_writable(what, given)
        format = format_of(what, self.held)
        array = seen(self.held, format)
        layout = Layout(array)
        if not (array.flags.aligned and layout.in_storage_order(array).flags.c_contiguous):
            raise ValueError(
                f"{what} is not dense in memory (shape {array.shape}, strides {array.strides}): "
                f"pass a .copy() of it, and use that from now on"
            )
        place = gpu_of_cupy(installed_cupy(), self.held.device.id)
        super().__init__(key, array, layout, format, group, place)

    def shown(self) -> Mapping[str, Any]:
        """Return the states as a user sees them: arrays of CuPy."""
        return {name: owner_of(state) for name, state in self.states.items()}

    def new_state(self, value: float) -> Array:
        """Allocate a state that lies as the parameter does, in float32 for half precision."""
        cupy, shape = self.place.cupy, self.layout.stored_shape(self.array)
        real = np.dtype(ELEMENTS[self.format][1])
        with cupy.cuda.Device(self.place.index):
            new = cupy.zeros(shape, real) if value == 0 else cupy.full(shape, value, real)
            return seen(self.layout.turned_back(new), real.name)

    def loaded(self, what: str, given: Any) -> Array:
        """Copy a state from a state dict, from a GPU or from NumPy, after checking that it is this tensor's."""
        state = self.new_state(0.0)
        new = owner_of(state)
        if not hasattr(given, "dtype") or given.dtype != new.dtype:
            raise TypeError(f"{what} has dtype {getattr(given, 'dtype', None)}, its parameter needs {new.dtype}")
        if given.shape != new.shape:
            raise ValueError(f"{what} has shape {given.shape}, its parameter {new.shape}: they must agree")
        with self.place.cupy.cuda.Device(self.place.index):
            new[...] = self.place.cupy.asarray(given)
        return state

    def state(self, what: str, given: Any) -> Array:
        """Check a state that the caller owns."""
        array = as_cupy(what, given)
        check_writable(what, given)
        real = np.dtype(ELEMENTS[self.format][1])
        if array.device.id != self.place.index or array.dtype != real or array.shape != self.shape:
            raise ValueError(
                f"{what} must be of {real.name} and shape {self.shape} on GPU {self.place.index}, as p needs it, not "
                f"of {array.dtype.name} and {array.shape} on GPU {array.device.id}"
            )
        state = seen(array, real.name)
        if not (state.flags.aligned and self.layout.in_storage_order(state).flags.c_contiguous):
            raise ValueError(
                f"{what} does not lie in memory as p does: make it with cupy.zeros_like(p, dtype={real.name!r})"
            )
        return state

    def alike(self, given: Any) -> int:
        """Return the address of a gradient that lies as the parameter does; UNREAD where that takes a closer look."""
        held = self.held
        if (
            type(given) is type(held)
            and given.dtype == held.dtype
            and given.shape == held.shape
            and given.strides == held.strides
            and self.layout.forwards
            and given.device == held.device
            and given.data.ptr % self.array.itemsize == 0
        ):
            return int(given.data.ptr) or UNREAD
        return UNREAD

    def gradient(self, what: str, given: Any) -> tuple[Any, Array]:
        """Check a gradient; return it, to be held, and how it lies."""
        array = as_cupy(what, given)
        if array.device.id != self.place.index:
            raise ValueError(f"{what} is on GPU {array.device.id}, its parameter on GPU {self.place.index}")
        if array.dtype != self.held.dtype:
            real = ".real" if array.dtype.kind == "c" else ""
            raise TypeError(
                f"{what} has dtype {array.dtype.name}, its parameter {self.format}: "
                f"pass {real}.astype({self.format!r}) of it"
            )
        if array.shape != self.shape:
            raise ValueError(
                f"{what} has shape {array.shape}, its parameter {self.shape}: they are paired by index and must agree"
            )
        view = seen(array, self.format)
        if not view.flags.aligned:  # which a GPU cannot read
            raise ValueError(f"{what} is not aligned to its elements in memory: pass a .copy() of it")
        return array, view


def update_once(rule: Rule, p: Any, g: Any, states: Mapping[str, Any], numbers: Row) -> None:
    """Update a single parameter by a rule, on states of the caller's, after checking all of them."""
    tensor = GpuTensor("p", p, GroupOptions(0, {}), "p")
    rule.check_row(numbers, tensor.format)
    held, array = tensor.gradient("g", g)
    kept = {name: tensor.state(name, given) for name, given in states.items()}
    extents = Extents({"p": tensor.array, **kept}.items())
    pair = extents.first_overlap() or (extents.overlapping(array), "g")
    if pair[0] is not None:
        raise ValueError(f"{pair[0]} and {pair[1]} overlap in memory: pass a .copy() of one")
    address, strides = located(tensor.layout.in_storage_order(array))
    addresses = [tensor.address, address, *(extent(state)[0] for state in kept.values())]
    strided = {} if strides is None else {0: strides}
    tensor.place.update(rule, tensor.format, tensor.array.size, addresses, strided, numbers)
    del held  # not before: it may be a copy that nobody else holds
