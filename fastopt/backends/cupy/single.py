"""A single update of an array of CuPy; the caller owns the states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...rules import Row, Rule
from ...step.chunks import located
from ...step.group import GroupOptions
from ...step.memory import Extents, extent
from .parameter import CupyParameter


def update_once(rule: Rule, p: Any, g: Any, states: Mapping[str, Any], numbers: Row) -> None:
    """Check all arrays, and update a parameter and the caller's states by a rule."""
    parameter = CupyParameter("p", p, GroupOptions(0, {}), "p")
    rule.check_row(numbers, parameter.dtype)
    held, array = parameter.gradient("g", g)
    kept = {name: parameter.state(name, given) for name, given in states.items()}
    extents = Extents({"p": parameter.array, **kept}.items())
    pair = extents.first_overlap() or (extents.overlapping(array), "g")
    if pair[0] is not None:
        raise ValueError(f"{pair[0]} and {pair[1]} overlap in memory: pass a .copy() of one")
    address, strides = located(parameter.layout.in_storage_order(array))
    addresses = [parameter.address, address, *(extent(state)[0] for state in kept.values())]
    strided = {} if strides is None else {0: strides}
    parameter.device.update(rule, parameter.dtype, parameter.array.size, addresses, strided, numbers)
    del held  # not earlier: it may be a copy that nobody else holds
