"""Codes of 8 bits in compiled loops: how long it takes to decode a state, to change it and to encode it again.

All is in float32, and rounds as IEEE says. No product is added to anything unless it is exact, so that it does not
matter whether a compiler makes one operation of two. Floats are looked up here; shifting their bits would be quicker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import njit

from .codes import BIASED, SIGNED, UNSIGNED, Array, dynamic_map, float_map

BLOCK = 64
ELEMENTS = 2**15  # codes, scales and gradients fit into a cache of the second level
REPEATS = 200  # the least is taken: others may work beside
KEEP = np.float32(0.9)
FLOOR = int(np.float32(2**-94).view(np.int32))  # bits of the least scale, by which all may be divided
CEILING = int(np.float32(2**119).view(np.int32))  # of the largest: above, 254 times a magnitude may be infinite
MAGNITUDE = 0x7FFFFFFF  # bits without the sign
f4 = np.float32

Pair: TypeAlias = tuple[Any, Any]  # (magnitude, scale, once per block) -> code, and (code, scale, once) -> number
inner = njit(error_model="numpy", forceinline=True)


@inner
def rounded(number: Any, last: Any) -> Any:
    """Round to the nearest code; what is NaN gets the last."""
    return np.int32((number if number < last else last) + f4(0.5))


def power(last: int, exponent: int) -> Pair:
    """A root, taken as often as the square root goes into it."""
    most, whole, roots = f4(last), f4(float(last) ** exponent), exponent // 2

    @inner
    def encode(magnitude: Any, scale: Any) -> Any:
        number = magnitude * (whole / scale)
        for _ in range(roots):
            number = np.sqrt(number)
        return rounded(number, most)

    @inner
    def decode(code: Any, scale: Any) -> Any:
        number = f4(code)
        for _ in range(roots):
            number = number * number
        return number * (scale / whole)

    return encode, decode


def softsign(last: int) -> Pair:
    """The companding of averages: decoding is one division of whole numbers."""
    most, twice = f4(last), f4(2 * last)

    @inner
    def encode(magnitude: Any, scale: Any) -> Any:
        return rounded((twice * magnitude) / (scale + magnitude), most)

    @inner
    def decode(code: Any, scale: Any) -> Any:
        number = f4(code)
        return scale * (number / (twice - number))

    return encode, decode


def above_bias(fraction: int, bias: float) -> Pair:
    """The bits of a float: adding and shifting."""
    offset, bits, cut, most = f4(bias), f4(bias).view(np.uint32), np.uint32(23 - fraction), np.int32(UNSIGNED)
    less_half = np.uint32(bits - (1 << (22 - fraction)))

    @inner
    def encode(magnitude: Any, scale: Any) -> Any:
        number = magnitude * (f4(1) / scale) + offset
        # casts, since Numba would compute in 64 bits
        return min(np.int32(np.uint32(f4(number).view(np.uint32) - less_half) >> cut), most)

    @inner
    def decode(code: Any, scale: Any) -> Any:
        return (np.uint32(np.uint32(np.uint32(code) << cut) + bits).view(f4) - offset) * scale

    return encode, decode


def looked_up(table: Array) -> Pair:
    """A table, in which the nearest number is found by halving."""
    numbers, middles = table.astype(f4), np.full(256, np.inf, f4)
    middles[: len(table) - 1] = (table[1:] + table[:-1]) / 2

    @inner
    def encode(magnitude: Any, scale: Any) -> Any:
        number, code = magnitude / scale, np.int32(0)
        for step in (128, 64, 32, 16, 8, 4, 2, 1):
            code += np.int32(step) if middles[code + step - 1] < number else np.int32(0)
        return code

    @inner
    def decode(code: Any, scale: Any) -> Any:
        return numbers[code] * scale

    return encode, decode


def pair(name: str, last: int) -> Pair:
    """Return a code's functions."""
    return {
        "linear": lambda: power(last, 1),
        "root": lambda: power(last, 2),
        "fourth root": lambda: power(last, 4),
        "softsign": lambda: softsign(last),
        "float above a bias": lambda: above_bias(*BIASED[last]),
        "dynamic map": lambda: looked_up(dynamic_map(last)),
        "float, 3 bits of exponent": lambda: looked_up(float_map(3, 4)),
        "float, 5 bits of exponent": lambda: looked_up(float_map(5, 3)),
    }[name]()


def of_code(name: str, signed: bool) -> Callable[..., None]:
    """Compile the loop of a code over averages, or over squares."""
    encode, decode = pair(name, SIGNED if signed else UNSIGNED)

    @njit(error_model="numpy")
    def loop(codes: Any, scales: Any, grads: Any, keep: Any) -> None:
        state = np.empty(BLOCK, f4)
        bits = state.view(np.int32)
        for block in range(scales.size):
            at, scale = block * BLOCK, scales.flat[block]  # no slices, which would be counted
            for i in range(BLOCK):
                code = np.int32(codes.flat[at + i])
                magnitude = decode(abs(code), scale)
                state[i] = keep * (-magnitude if code < 0 else magnitude) + grads.flat[at + i]
            largest = np.int32(FLOOR)
            for i in range(BLOCK):
                largest = max(largest, bits[i] & np.int32(MAGNITUDE))
            scale = np.int32(largest).view(f4) if largest <= CEILING else f4(np.nan)
            for i in range(BLOCK):
                found = encode(abs(state[i]), scale)
                if signed:
                    codes.flat[at + i] = -found if state[i] < 0 else found
                else:
                    codes.flat[at + i] = max(found, min(bits[i], np.int32(1)))
            scales.flat[block] = scale

    made: Callable[..., None] = loop
    return made


@njit(error_model="numpy")
def over_float32(state: Any, grads: Any, keep: Any) -> None:
    """Change a state that is not encoded."""
    for i in range(state.size):
        state[i] = keep * state[i] + grads[i]


def drawn(signed: bool) -> Array:
    """Draw what is added to a state."""
    grads = np.random.default_rng(0).standard_normal(ELEMENTS).astype(f4)
    return grads if signed else grads * grads


def nanoseconds(name: str, signed: bool) -> float:
    """Time a code's loop, and return nanoseconds an element."""
    codes = np.zeros(ELEMENTS, np.int8 if signed else np.uint8)
    return least(of_code(name, signed), codes, np.zeros(ELEMENTS // BLOCK, f4), drawn(signed))


def in_float32() -> float:
    """Time the loop over float32, likewise."""
    return least(over_float32, np.zeros(ELEMENTS, f4), drawn(True))


def least(loop: Callable[..., None], *arrays: Array) -> float:
    """Return the shortest time of some calls, as nanoseconds an element."""
    shortest = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        loop(*arrays, KEEP)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest / ELEMENTS * 1e9
