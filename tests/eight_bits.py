"""States in 8 bits, once more in NumPy: float32 operations in the order in which kernels do them."""

import numpy as np

BLOCK = 64
SMALLEST, LARGEST = np.float32(2.0**-90), np.float32(2.0**119)
KINDS = {
    "int8": (np.float32(0.34375), 6, 126),
    "uint8": (np.float32(1.125 * 2.0**-32), 3, 255),
}  # bias, bits, last code
SQUARES = {"sum", "square_avg", "exp_avg_sq", "max_exp_avg_sq"}


def name_of(state):
    """The name of the dtype that codes of a state have."""
    return "uint8" if state in SQUARES else "int8"


def blocks_of(x):
    """The numbers in rows of a block each, filled up with zeros."""
    filled = np.zeros(-(-x.size // BLOCK) * BLOCK, np.float32)
    filled[: x.size] = x
    return filled.reshape(-1, BLOCK)


def scales_of(x):
    """The scale of each block."""
    with np.errstate(invalid="ignore"):
        largest = np.abs(blocks_of(x)).max(axis=1, initial=0)  # NaN if one is
    return np.where(largest <= LARGEST, np.maximum(largest, SMALLEST), np.float32(np.nan)).astype(np.float32)


def places(t, fraction):
    """How many numbers with so many bits of fraction lie below these, but for a constant."""
    mantissa, exponent = np.frexp(t.astype(np.float64))
    return (exponent + (2 * mantissa - 1)) * 2.0**fraction


def at_places(places, fraction):
    """The numbers at such places."""
    exponent = np.floor(places / 2.0**fraction)
    return np.ldexp((1 + places / 2.0**fraction - exponent) / 2, exponent.astype(int)).astype(np.float32)


def encoded(x, name):
    """Codes and scales of numbers in storage order."""
    rows, scales = blocks_of(x), scales_of(x)
    bias, fraction, last = KINDS[name]
    with np.errstate(all="ignore"):
        share = np.abs(rows) * (np.float32(1) / scales[:, None])
        codes = np.floor(places(share + bias, fraction) - places(bias, fraction) + 0.5)
        codes = np.where(codes < last, codes, last)
        codes = np.maximum(codes, rows > 0) if name == "uint8" else np.where(rows < 0, -codes, codes)
    return codes.astype(name).ravel()[: x.size], scales


def decoded(codes, scales):
    """The numbers that codes stand for."""
    bias, fraction, _ = KINDS[codes.dtype.name]
    sizes = np.abs(codes.astype(np.float64))
    shares = at_places(sizes + places(bias, fraction), fraction) - bias
    return np.copysign(np.repeat(scales, BLOCK)[: codes.size] * shares, codes.astype(np.float32))


def through(x, name):
    """What numbers in storage order become when they are stored."""
    return decoded(*encoded(np.asarray(x, np.float32), name))
