"""Stochastic rounding by NumPy: the random bits in unsigned integers, and rounding in float64; no tests here."""

import numpy as np
from halves import DIGITS, LEAST, rounded, values

MASK = 2**64 - 1


def mixed(key, count, upper=0):
    """64 bits for a tensor, a step and the upper half of indices, in Python's integers."""
    x = (key + upper + count * 0x9E3779B97F4A7C15) & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def numbers(dtypes):
    """The numbers of parameter and states among those that are rounded."""
    rounded = [dtype in ("bfloat16", "float16", "int8", "uint8") for dtype in dtypes]
    return [sum(rounded[:place]) for place in range(len(rounded))]


def noise(key, count, index, number=0):
    """16 random bits for elements of what has a number among all that is rounded, of the parameter and the states."""
    index = np.asarray(index, np.uint64)
    mixes = {int(upper): mixed(key, count, int(upper)) for upper in np.unique(index >> np.uint64(32))}
    mix = np.array([mixes[int(upper)] for upper in index >> np.uint64(32)], np.uint64)
    low, high = mix & np.uint64(0xFFFFFFFF), mix >> np.uint64(32)
    high = high ^ np.uint64(0x9E3779B9 if number > 1 else 0)
    x = (index & np.uint64(0xFFFFFFFF)) ^ low
    x = modulo((x ^ x >> np.uint64(17)) * np.uint64(0xED5AD4BB) + high)
    x = modulo((x ^ x >> np.uint64(11)) * np.uint64(0xAC4C1B51))
    x = modulo((x ^ x >> np.uint64(15)) * np.uint64(0x31848BAB))
    x = x ^ x >> np.uint64(14)
    return x >> np.uint64(16) if number % 2 else x & np.uint64(0xFFFF)


def modulo(x):
    """The lower 32 bits."""
    return x & np.uint64(0xFFFFFFFF)


def stochastic(x, dtype, noise):
    """The bits of float32 numbers rounded to halves: away from zero where the noise and what is cut off reach one."""
    with np.errstate(invalid="ignore"):  # some NaN
        exact = np.asarray(x, np.float64)
    finite = np.isfinite(exact)
    size = np.abs(np.where(finite, exact, 0.0))
    exponent = np.where(size == 0, LEAST[dtype], np.maximum(np.frexp(size)[1] - 1, LEAST[dtype]))
    last = 2.0 ** (exponent - DIGITS[dtype])  # the last bit
    units = np.floor((np.floor(size / last * 2**16) + noise) / 2**16)
    up = np.copysign(units * last, exact)
    with np.errstate(over="ignore"):
        return rounded(np.where(finite, up, exact).astype(np.float32), dtype)


def neighbours(x, dtype):
    """The two halves between which numbers lie, as float64: towards zero, and away from it."""
    return tuple(values(stochastic(x, dtype, bits), dtype).astype(np.float64) for bits in (0, 2**16 - 1))
