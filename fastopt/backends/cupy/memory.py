"""What an array on a GPU must be before its address is taken."""

from __future__ import annotations

from typing import Any

from ...kernels.dtypes import DTYPES, STORED
from ...kernels.reader import Array
from ...step.memory import described
from ..foreign import as_floats, is_on_device, kind
from .device import installed_cupy


def seen(array: Any, dtype: str) -> Array:
    """Return an array that describes the layout of one of CuPy; it keeps that alive, and must not be read."""
    stored = STORED[dtype].stored if dtype in STORED else dtype  # integers, of remainders
    return described(array, int(array.data.ptr), stored, array.shape, array.strides)


def as_cupy(what: str, given: Any) -> Any:
    """Return an array of CuPy over the same memory as an array of any library on a GPU."""
    cupy = installed_cupy()
    if isinstance(given, cupy.ndarray):
        return given
    if not is_on_device(given):
        raise TypeError(f"{what} is {kind(given)}, not an array on a GPU: pass cupy.asarray(...) of it, and keep that")
    if getattr(given, "requires_grad", False):  # a tensor of torch, which does not export its memory then
        raise TypeError(f"{what} requires a gradient: pass .detach() of it, or train it with fastopt.torch")
    if hasattr(given, "__cuda_array_interface__"):
        return cupy.asarray(given)
    return cupy.from_dlpack(given)


def check_writable(what: str, given: Any) -> None:
    """Raise if an array's interface says that it is read-only."""
    interface = getattr(given, "__cuda_array_interface__", None)
    if interface is not None and interface["data"][1]:
        raise ValueError(
            f"{what} is read-only, and would be updated in place: pass cupy.array(...) of it, and use that"
        )


def dtype_of(what: str, array: Any) -> str:
    """Return the name of an array's dtype, for which a kernel is compiled."""
    name: str = array.dtype.name
    if name not in DTYPES or not array.dtype.isnative:
        known = ", ".join(DTYPES)
        way = "pass .astype('float32') of it" if array.dtype.kind != "c" else as_floats(array)
        raise TypeError(f"{what} has dtype {name}; {known} can be updated on a GPU: {way}")
    return name
