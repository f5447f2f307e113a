"""The norm of gradients that are arrays of NumPy, and the factor that clips them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...kernels.reader import Array
from ...step.interrupts import HeldBack
from ...step.norm import Measured, Piece
from ..arrays import check_apart
from ..foreign import to_clip, to_read
from .device import CPU
from .memory import check_borrowed, check_type, name_of

READ = {np.dtype(name): name for name in ("float16", "float32", "float64")}
USUAL = np.dtype(np.float32)
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def readable(what: str, given: Any) -> Array:
    """Check a gradient of which the norm is taken: an array, or another object's memory on the CPU."""
    if isinstance(given, np.generic):
        given = np.asarray(given)
    if not isinstance(given, np.ndarray):
        given = check_borrowed(what, given, USUAL)
    return _floats(what, check_type(what, given, lambda value: to_read(value, USUAL)))


def clippable(what: str, given: Any) -> Array:
    """Check a gradient that is clipped; whether it can be written is checked by `check_writable`, if it must be."""
    return _floats(what, check_type(what, given, to_clip))


def _floats(what: str, array: Array) -> Array:
    if array.dtype not in READ:
        known = ", ".join(READ.values())
        real = ".view(array.real.dtype)" if array.dtype.kind == "c" else ".astype(np.float32)"
        raise TypeError(f"{what} has dtype {name_of(array.dtype)}, and must have one of {known}: pass {real} of it")
    return array


def is_usual(given: Any) -> bool:
    """Say whether this is a plain array that needs no further check."""
    return type(given) is np.ndarray and given.dtype in READ


def check_writable(named: Sequence[tuple[str, Array]]) -> None:
    """Raise ValueError if multiplying these arrays in place would fail, or multiply an element twice."""
    for what, array in named:
        if not array.flags.writeable:
            raise ValueError(f"{what} is read-only, and would be clipped in place: pass a .copy() of it, and use that")
    check_apart(named)


def norm(arrays: Sequence[Array]) -> Measured:
    """Return the norm of all arrays together."""
    return CPU.norm([Piece.of(READ[array.dtype], array) for array in arrays])


def multiply(arrays: Sequence[Array], factor: float) -> None:
    """Multiply all arrays in place, with one rounding: float16 in float32, and by a subnormal factor in float64."""
    exact = 0.0 < abs(factor) < SMALLEST_NORMAL
    with HeldBack(), np.errstate(all="ignore"):
        for array in arrays:
            real = np.float64 if exact else np.result_type(array, USUAL)
            np.multiply(array, factor, out=array, dtype=real, casting="same_kind")
