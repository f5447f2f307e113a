"""The norm of gradients that are arrays of CuPy, and clipping by it: by functions of CuPy's, without a wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...step.norm import DOWN, EPS, LOST, UP, not_finite
from ..arrays import check_apart
from ..foreign import is_tensor, kind, to_clip
from .device import installed_cupy
from .memory import as_cupy, check_writable, dtype_of, seen

Named = Sequence[tuple[str, Any]]


def norm(named: Named) -> Any:
    """Return the norm of all gradients together, a 0-d array."""
    arrays = _on_one_gpu(named)
    with arrays[0].device:
        return _norm(arrays)


def clip(named: Named, max_norm: float, error_if_nonfinite: bool) -> Any:
    """Multiply gradients in place so that their norm is at most this; return what it was."""
    for what, given in named:
        if is_tensor(given):
            raise TypeError(f"{what} is {kind(given)}, not an array of CuPy: {to_clip(given)}")
        check_writable(what, given)
    arrays = _on_one_gpu(named)
    check_apart([(what, seen(array, array.dtype.name)) for (what, _), array in zip(named, arrays, strict=True)])
    cupy = installed_cupy()
    with arrays[0].device:
        before = _norm(arrays)
        if error_if_nonfinite and not bool(cupy.isfinite(before)):
            raise FloatingPointError(not_finite(float(before)))
        factor = cupy.minimum(cupy.divide(max_norm, before + EPS), 1.0)  # NaN stays NaN
        for array in arrays:
            cupy.multiply(array, factor, out=array)
        return before


def _on_one_gpu(named: Named) -> list[Any]:
    """Return the gradients as arrays of CuPy, after checking their dtypes and where they are."""
    arrays = [as_cupy(what, given) for what, given in named]
    for (what, _), array in zip(named, arrays, strict=True):
        dtype_of(what, array)
        if array.device.id != arrays[0].device.id:
            raise ValueError(
                f"{what} is on GPU {array.device.id}, {named[0][0]} on GPU {arrays[0].device.id}: "
                "take the norm of each GPU's gradients, and then the norm of these"
            )
    return arrays


def _norm(arrays: Sequence[Any]) -> Any:
    """Return the norm; `step.norm` says why float64 gradients are also multiplied by powers of two."""
    cupy = installed_cupy()
    total = _total(arrays, 1.0)
    root = cupy.sqrt(total)
    if all(array.dtype != np.float64 for array in arrays):
        return root
    large, small = (cupy.multiply(cupy.sqrt(_total(arrays, power)), 1.0 / power) for power in (DOWN, UP))
    return cupy.where(cupy.isinf(total), large, cupy.where(cupy.less(total, LOST), small, root))


def _total(arrays: Sequence[Any], power: float) -> Any:
    """Return the sum of squares of all gradients, times a power of two, in float64."""
    cupy = installed_cupy()
    total = cupy.zeros((), np.float64)
    for array in arrays:
        scaled = cupy.multiply(array, np.float64(power))
        scaled *= scaled
        total += cupy.sum(scaled)
    return total
