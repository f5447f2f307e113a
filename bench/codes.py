"""Codes of 8 bits for the states of optimizers, in blocks with a scale each.

A number divided by the largest magnitude of its block, from 0 to 1, becomes a code: averages have
up to 127 and a sign; squares, which are never negative, have 255. These are the formulas in float64, for comparison:
`codes_study.py` measures what each of them rounds away, `codes_loops.py` how long it takes in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

SIGNED, UNSIGNED = 127, 255  # the last codes


@dataclass(frozen=True)
class Code:
    """A function from [0, 1] onto [0, last], whose whole numbers are the codes, and its inverse."""

    last: int
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]


def power(last: int, exponent: int) -> Code:
    """The codes are even in a root of the number: 1 is for linear ones, 2 for the square root, 4 for its root."""
    return Code(last, lambda x: last * x ** (1 / exponent), lambda code: (code / last) ** exponent)


def softsign(last: int) -> Code:
    """The codes are even in 2 x / (1 + x): near 0 they are twice as dense as linear ones, near 1 half as dense."""
    return Code(last, lambda x: 2 * last * x / (1 + x), lambda code: code / (2 * last - code))


def above_bias(last: int, fraction: int, bias: float) -> Code:
    """The codes are even in the bits of a float: one with so many bits of fraction, of the number plus a bias.

    They are even up to the bias, and above it each power of two has as many. `last` is the code of 1.
    """

    def place(number: Array) -> Array:
        mantissa, exponent = np.frexp(number + bias)
        found: Array = (exponent + 2 * mantissa - 1) * 2.0**fraction
        return found

    zero, one = place(np.zeros(())), place(np.ones(()))
    stretch = (one - zero) / last  # 1, but for the bias, which a float32 loses beside 1

    def decode(code: Array) -> Array:
        exponent, mantissa = np.divmod((stretch * code + zero) / 2.0**fraction, 1.0)
        number: Array = np.ldexp((1 + mantissa) / 2, exponent.astype(int)) - bias
        return number

    return Code(last, lambda x: (place(x) - zero) / stretch, decode)


def nearest_in(table: Array) -> Code:
    """The codes are places in a sorted table, from 0 to 1."""
    places = np.arange(len(table), dtype=np.float64)
    return Code(len(table) - 1, lambda x: np.interp(x, table, places), lambda code: table[code.astype(np.intp)])


def dynamic_map(last: int) -> Array:
    """bitsandbytes' map: seven decades, each of which has twice as many numbers as the one below; 0; and 1.

    Of signed numbers it has 128 that are positive, one more than fit beside 0 and -1: the smallest is left out here.
    """
    table = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2**decade * (last // SIGNED) + 1)
        table += list(10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2)
    table.sort()
    return np.array([0.0, *table[-last:]])


def float_map(exponents: int, fractions: int) -> Array:
    """The floats with so many bits of exponent and of fraction, subnormal ones as well, divided by the largest."""
    codes = np.arange(2 ** (exponents + fractions))
    exponent, fraction = codes >> fractions, codes % 2**fractions / 2**fractions
    table = np.where(exponent > 0, (1 + fraction) * 2.0**exponent, 2 * fraction)
    scaled: Array = table / table[-1]
    return scaled


# What fastopt has: bits of fraction and bias of averages and of squares, by the last code of others.
BIASED = {SIGNED: (6, 22 / 64), UNSIGNED: (3, 1.125 * 2.0**-32)}

OF_AVERAGES = {
    "linear": power(SIGNED, 1),
    "root": power(SIGNED, 2),
    "softsign": softsign(SIGNED),
    "float above a bias": above_bias(SIGNED - 1, *BIASED[SIGNED]),
    "dynamic map": nearest_in(dynamic_map(SIGNED)),
    "float, 3 bits of exponent": nearest_in(float_map(3, 4)),
}
OF_SQUARES = {
    "linear": power(UNSIGNED, 1),
    "root": power(UNSIGNED, 2),
    "fourth root": power(UNSIGNED, 4),
    "softsign": softsign(UNSIGNED),
    "float above a bias": above_bias(UNSIGNED, *BIASED[UNSIGNED]),
    "dynamic map": nearest_in(dynamic_map(UNSIGNED)),
    "float, 5 bits of exponent": nearest_in(float_map(5, 3)),
}

Rounding: TypeAlias = Callable[[Code, Array, np.random.Generator], Array]  # of numbers from 0 to 1, to codes


def to_nearest(code: Code, x: Array, rng: np.random.Generator) -> Array:
    """Round to the code that is nearest in what the codes are even in."""
    rounded: Array = np.floor(code.encode(x) + 0.5)
    return rounded


def stochastically(code: Code, x: Array, rng: np.random.Generator) -> Array:
    """Round up or down, so that the mean is x.

    A random number that is added to the place between two codes would keep the mean of that place, but not of x: of the
    fourth root it makes small numbers larger by a third.
    """
    low = np.minimum(np.floor(code.encode(x)), code.last - 1)
    below, above = code.decode(low), code.decode(low + 1)
    rounded: Array = low + (rng.random(x.shape) < (x - below) / (above - below))
    return rounded


@dataclass(frozen=True)
class Storage:
    """How a state is stored: its code, the size of a block, the rounding, and the least code of what is not 0."""

    code: Code
    block: int = 64
    rounding: Rounding = to_nearest
    least: int = 0

    def __call__(self, state: Array, rng: np.random.Generator) -> Array:
        """Encode a state, and decode it."""
        blocks = np.zeros((-(-state.size // self.block), self.block))
        blocks.ravel()[: state.size] = state.ravel()
        scale = np.abs(blocks).max(axis=1, keepdims=True)
        scale[scale == 0] = 1
        x = np.abs(blocks) / scale
        codes = np.where(x > 0, np.maximum(self.rounding(self.code, x, rng), self.least), 0)
        decoded: Array = np.copysign(self.code.decode(codes), blocks) * scale
        return decoded.ravel()[: state.size].reshape(state.shape)
