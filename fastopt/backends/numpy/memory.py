"""What an array of NumPy must be before its address is taken."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ...extras import require
from ...kernels.dtypes import DTYPES, dtype_name
from ...kernels.reader import Array
from ...options import STATE_DTYPES
from ...sparse_rows import SparseRows
from ...step.memory import Layout
from ...step.sparse import Given
from ..arrays import dense_layout
from ..foreign import as_floats, borrowed, is_on_device, kind, spelled, to_read, to_update
from ..gradients import check_rows_of


def check_type(what: str, array: Any, advice: Callable[[Any], str] = to_update) -> Array:
    """Check that this is an ordinary NumPy array, and return a plain view of it."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{what} is {kind(array)}, not a NumPy array: {advice(array)}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array, whose mask an update would ignore: pass its .data or .filled()")
    plain: Array = array.view(np.ndarray)  # our own view: its shape and dtype stay, whatever happens to the original
    return plain


def check_dense(what: str, array: Any) -> tuple[Array, Layout]:
    """Check an array that a kernel will write: a parameter or a state."""
    array = check_type(what, array)
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        known = ", ".join(DTYPES)
        raise TypeError(f"{what} has dtype {name_of(array.dtype)}; {known} can be updated: {as_floats(array)}")
    if not array.flags.writeable:
        raise ValueError(f"{what} is read-only, and would be updated in place: pass a writable .copy() and use that")
    return array, dense_layout(what, array)


def check_like(what: str, array: Any, other: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Check that an array has its parameter's dtype and shape."""
    checked = check_type(what, array, lambda given: to_read(given, dtype))
    if checked.dtype != dtype:
        real = ".real" if checked.dtype.kind == "c" else ""
        raise TypeError(
            f"{what} has dtype {name_of(checked.dtype)}, {other} {dtype.name}: "
            f"pass {real}.astype({spelled(dtype.name)}) of it"
        )
    if checked.shape != shape:
        raise ValueError(f"{what} has shape {checked.shape}, {other} {shape}: they are paired by index and must agree")
    return checked


def check_state(what: str, given: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Check that an array can be a state of a parameter of this dtype and shape: in that dtype or in a storage's."""
    found = getattr(given, "dtype", dtype)
    is_storage = isinstance(found, np.dtype) and found.isnative and found.name in {*STATE_DTYPES} & {*DTYPES}
    return check_like(what, given, "its parameter", found if is_storage else dtype, shape)


def bfloat16() -> np.dtype[Any]:
    """Return the dtype that NumPy lacks."""
    found: np.dtype[Any] = np.dtype(require("ml_dtypes", "bfloat16").bfloat16)
    return found


def memory_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of arrays in our hands: of this name, but bits for bfloat16, whose arrays have no buffer."""
    return np.dtype(DTYPES[name].stored if name == "bfloat16" else name)


def shown_as(name: str, array: Array) -> Array:
    """Return an array, or what holds the bits of bfloat16, as one of the dtype of this name."""
    return array.view(bfloat16()) if name == "bfloat16" else array


def in_memory(array: Array) -> Array:
    """Return an array, or for bfloat16 what holds its bits."""
    return array.view(memory_dtype("bfloat16")) if array.dtype.name == "bfloat16" else array


def check_gradient(
    what: str,
    given: Any,
    other: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    goes_with: Callable[[str, str], bool] = operator.eq,
) -> Array:
    """Check a gradient, which is only read: an array, or another object's memory on the CPU.

    ``goes_with(found, dtype.name)`` says whether its dtype will do.
    """
    if isinstance(given, np.generic):  # the result of a reduction over all axes, as the gradient of a 0-d parameter
        given = np.asarray(given)
        given.flags.writeable = False  # it is a copy
    if not isinstance(given, np.ndarray):
        given = _borrowed(what, given, other, dtype, goes_with)
    found = given.dtype
    return check_like(
        what, given, other, found if found.isnative and goes_with(found.name, dtype.name) else dtype, shape
    )


def given_rows(what: str, given: SparseRows, other: str, table: Array) -> Given:
    """Check a sparse gradient against its table, in dtype and shape of a row."""
    if not isinstance(given.values, np.ndarray):
        raise TypeError(f"{what} is on a GPU, {other} an array of NumPy: pass .get() of its indices and values")
    check_rows_of(what, given, other, dtype_name(table.dtype), table.shape)
    found = Given.of(what, given.indices, given.values)
    found.check_below(table.shape[0])
    return found


def _borrowed(what: str, given: Any, other: str, dtype: np.dtype[Any], goes_with: Callable[[str, str], bool]) -> Array:
    """Return an array over another object's memory, after checking its dtype."""
    if is_on_device(given):
        raise TypeError(f"{what} is {kind(given)} on a GPU, not a NumPy array as {other}: {to_read(given, dtype)}")
    array = check_borrowed(what, given, dtype)
    if not goes_with(array.dtype.name, dtype.name):
        raise TypeError(
            f"{what} is {kind(given)} of dtype {name_of(array.dtype)}, {other} {dtype.name}: {to_read(given, dtype)}"
        )
    return array


def check_borrowed(what: str, given: Any, dtype: np.dtype[Any]) -> Array:
    """Return an array over another object's memory; if there is none, the error says how to make one of this dtype."""
    try:
        return borrowed(given)
    except (TypeError, ValueError, AttributeError, BufferError, RuntimeError) as error:
        raise TypeError(f"{what} is {kind(given)}, not a NumPy array: {to_read(given, dtype)}") from error


def name_of(dtype: np.dtype[Any]) -> str:
    """Return what to call a dtype in an error message."""
    return dtype.name if dtype.isnative else f"{dtype.name} in foreign byte order"
