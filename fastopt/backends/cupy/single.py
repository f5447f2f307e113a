"""A single update of an array of CuPy; the caller owns the states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...rules import Row, Rule
from ...step.group import GroupOptions
from ...step.launch import Variant
from ...step.memory import extent
from ..arrays import located_once
from .parameter import CupyParameter


def update_once(rule: Rule, p: Any, g: Any, states: Mapping[str, Any], numbers: Row) -> None:
    """Check all arrays, and update a parameter and the caller's states by a rule."""
    parameter = CupyParameter("p", p, GroupOptions(0, {}), "p")
    rule.check_row(numbers, parameter.dtype)
    held, array, gradient = parameter.checked_gradient("g", g)
    kept = {name: parameter.state(name, given) for name, given in states.items()}
    address, strided = located_once({"p": parameter.array, **kept}, array, parameter.layout)
    addresses = [parameter.address, address, *(extent(state)[0] for state in kept.values())]
    variant = Variant(rule.name, parameter.dtype, gradient=gradient if gradient != parameter.dtype else "")
    parameter.device.update(variant, parameter.array.size, addresses, strided, numbers)
    del held  # not earlier: it may be a copy that nobody else holds
