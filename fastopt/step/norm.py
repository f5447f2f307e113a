"""The norm of gradients, and the factor that clips them by it.

Each chunk's sum of squares is a float64, whatever the dtype. They are added one after the other, in the order of
launches and chunks, so that the result has the same bits on any number of threads, and in C++.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..kernels.reader import Array, address
from .chunks import Strides, located
from .memory import Layout

EPS = 1e-6  # added to the norm by which torch's clip_grad_norm_ divides

# The squares of float64 gradients overflow or get lost where the gradients themselves are finite and not 0. They are
# then summed once more, of gradients times a power of two. Below LOST, the sum may have lost more than its last bit.
DOWN, UP = 2.0**-600, 2.0**600
LOST = 2.0**-960


class Measured(NamedTuple):
    """The norm of gradients, and whether all of them are finite: the norm may be infinite where they are."""

    norm: float
    finite: bool


class Piece(NamedTuple):
    """A gradient in memory: the address of its first element in storage order, and its strides if it is not dense."""

    dtype: str
    size: int
    address: int
    strides: Strides | None

    @classmethod
    def of(cls, dtype: str, array: Array) -> Piece:
        """Describe where a gradient lies."""
        if (flags := array.flags).c_contiguous and flags.aligned:  # the usual case
            return cls(dtype, array.size, address(array), None)
        return cls(dtype, array.size, *located(Layout(array).in_storage_order(array)))


class Summed(Protocol):
    """A part of the gradients, as launches have it."""

    def sum_squares(self, power: float) -> npt.NDArray[np.float64]:
        """Return the sum of squares of each chunk's gradient, times this power of two."""


def measure(parts: Sequence[Summed], factor: float = 1.0) -> Measured:
    """Return the norm of all gradients of some launches together, times a factor above 0."""
    return measured(functools.partial(total, parts), factor)


def measured(add: Callable[[float], float], factor: float = 1.0) -> Measured:
    """Return the norm whose squares, of gradients times a power of two, a function adds up; times a factor above 0."""
    power = 1.0
    squares = add(power)
    if squares == math.inf or squares < LOST:
        power = DOWN if squares == math.inf else UP
        squares = add(power)
    return Measured(math.sqrt(squares) * (factor / power), math.isfinite(squares))


def total(parts: Iterable[Summed], power: float) -> float:
    """Return the sum of squares of all gradients of some launches, times a power of two."""
    sums = np.concatenate([np.zeros(1), *(part.sum_squares(power) for part in parts)])
    with np.errstate(over="ignore"):
        return float(np.cumsum(sums)[-1])  # one after the other; np.sum adds in pairs


def coefficient(max_norm: float, norm: float) -> float:
    """Return the factor by which gradients of this norm are clipped, 1 at most; NaN if the norm is NaN, as in torch."""
    factor = max_norm / (norm + EPS)
    return 1.0 if factor > 1.0 else factor


def not_finite(norm: float) -> str:
    """Return the message for gradients that cannot be clipped."""
    return f"the norm of the gradients is {norm}: it is not finite. Skip this step, or let error_if_nonfinite be False"
