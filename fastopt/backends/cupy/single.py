"""A single update of an array of CuPy; the caller owns the states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...rules import Row, Rule
from ...sparse_rows import SparseRows
from ...step.group import GroupOptions
from ...step.launch import Variant
from ...step.memory import extent
from ..arrays import check_leaves_rows, located_once
from .parameter import CupyParameter


def update_once(rule: Rule, p: Any, g: Any, states: Mapping[str, Any], numbers: Row) -> None:
    """Check all arrays, and update a parameter and the caller's states by a rule."""
    parameter = CupyParameter("p", p, GroupOptions(0, {}), "p")
    rule.check_row(numbers, parameter.dtype)
    if isinstance(g, SparseRows):
        update_rows_once(rule, parameter, g, states, numbers)
        return
    held, array, gradient = parameter.checked_gradient("g", g)
    kept = {name: parameter.state(name, given) for name, given in states.items()}
    address, strided = located_once({"p": parameter.array, **kept}, array, parameter.layout)
    addresses = [parameter.address, address, *(extent(state)[0] for state in kept.values())]
    parameter.device.update(variant(rule, parameter, gradient), parameter.array.size, addresses, strided, numbers)
    del held  # not earlier: it may be a copy that nobody else holds


def update_rows_once(
    rule: Rule, parameter: CupyParameter, g: SparseRows, states: Mapping[str, Any], numbers: Row
) -> None:
    """Update the rows of a table that a sparse gradient has; this waits for the check of its indices."""
    check_leaves_rows(rule, numbers)
    given = parameter.checked_rows("g", g)
    kept = {name: parameter.state(name, state) for name, state in states.items()}
    located_once({"p": parameter.array, **kept}, given.values, parameter.layout)
    addresses = [parameter.address, *(extent(state)[0] for state in kept.values())]
    kind = variant(rule, parameter, given.values.dtype.name)
    parameter.device.update_rows(kind, parameter.array.size, addresses, numbers, given)


def variant(rule: Rule, parameter: CupyParameter, gradient: str) -> Variant:
    """Return the kernel for a gradient of a dtype."""
    return Variant(rule.name, parameter.dtype, gradient=gradient if gradient != parameter.dtype else "")
