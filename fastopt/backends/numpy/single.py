"""A single update of an array of NumPy; the caller owns the states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...kernels.dtypes import DTYPES, goes_with
from ...kernels.reader import Array, read_alike
from ...rules import Row, Rule
from ...sparse_rows import SparseRows
from ...step.chunks import Strides
from ...step.interrupts import HeldBack
from ...step.launch import Variant
from ...step.memory import extent
from ...step.sparse import ROWS, Change
from ..arrays import check_leaves_rows, located_once
from .device import CPU
from .memory import check_dense, check_gradient, check_like, check_type, given_rows, in_memory


def update_once(rule: Rule, p: Any, g: Any, states: Mapping[str, Any], numbers: Row) -> None:
    """Check all arrays, and update a parameter and the caller's states by a rule."""
    if isinstance(g, SparseRows):
        update_rows_once(rule, p, g, states, numbers)
        return
    single = Single(p, g, states)
    rule.check_row(numbers, single.dtype)
    variant = Variant(rule.name, single.dtype, gradient=single.gradient)
    arguments = variant, single.size, single.addresses, single.strided, numbers
    if not single.copies:
        CPU.update(*arguments)
        return
    with HeldBack():
        CPU.update(*arguments)
        for array, copy in single.copies:
            array[...] = copy


def update_rows_once(rule: Rule, p: Any, g: SparseRows, states: Mapping[str, Any], numbers: Row) -> None:
    """Check all arrays, and update the rows of a table that a sparse gradient has."""
    check_leaves_rows(rule, numbers)
    table, layout = check_dense("p", p)
    given = given_rows("g", g, "p", table)
    real = np.dtype(DTYPES[table.dtype.name].real)
    arrays = {"p": in_memory(table)}
    for name, state in states.items():
        alike = check_like(name, check_type(name, state), "p", real, table.shape)
        arrays[name], _ = check_dense(name, alike)
    for name, array in arrays.items():
        if not (layout.plain and array.flags.c_contiguous):
            raise ValueError(
                f"g is sparse, and the rows of {name} do not lie one after the other in memory: make it once with "
                "np.ascontiguousarray"
            )
    located_once(arrays, given.values, layout)
    dtype = table.dtype.name
    rule.check_row(numbers, dtype)
    gradient = given.values.dtype.name
    variant = Variant(rule.name, dtype, ROWS, gradient="" if gradient == dtype else gradient)
    change = Change(CPU, variant, given, [extent(array)[0] for array in arrays.values()])
    change(numbers, count=0)


class Single:
    """The arrays of a single update: checks them and keeps them alive.

    Attributes
    ----------
    addresses : list of int
        Of parameter, gradient and states.
    dtype, gradient : str
        Of the parameter; and of the gradient, if it has another one.
    copies : list of (array, array)
        States in another storage order than the parameter, and the copies that are updated in their place.
    """

    def __init__(self, p: Any, g: Any, states: Mapping[str, Any]) -> None:
        self.strided: dict[int, Strides] = {}
        self.copies: list[tuple[Array, Array]] = []
        self.held = [p, g, *states.values()]
        if (read := read_alike(self.held)) is not None:
            self.addresses, dtype, self.size = read
            self.dtype, self.gradient = dtype.name, ""
        else:
            self._check(p, g, states)

    def _check(self, p: Any, g: Any, states: Mapping[str, Any]) -> None:
        param, layout = check_dense("p", p)
        gradient = check_gradient("g", g, "p", param.dtype, param.shape, goes_with)
        self.dtype = param.dtype.name
        self.gradient = gradient.dtype.name if gradient.dtype != param.dtype else ""
        gradient = in_memory(gradient)
        real = np.dtype(DTYPES[self.dtype].real)
        arrays = {"p": in_memory(param)}
        for name, given in states.items():
            state = check_like(name, check_type(name, given), "p", real, param.shape)
            arrays[name], _ = check_dense(name, state)
        gradient_address, self.strided = located_once(arrays, gradient, layout)
        for name in states:
            if not layout.is_dense(arrays[name]):
                copy = layout.allocate(param, real)
                copy[...] = arrays[name]
                self.copies.append((arrays[name], copy))
                arrays[name] = copy
        start, *rest = (extent(array)[0] for array in arrays.values())
        self.addresses, self.size = [start, gradient_address, *rest], param.size
        self.held = [gradient, *arrays.values()]
