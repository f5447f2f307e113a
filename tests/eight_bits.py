"""States in 8 bits, once more in NumPy: float32 operations in the order in which kernels do them."""

import numpy as np

BLOCK = 64
SMALLEST, LARGEST = np.float32(2.0**-94), np.float32(2.0**119)
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


def encoded(x, name):
    """Codes and scales of numbers in storage order."""
    rows, scales = blocks_of(x), scales_of(x)
    scale = scales[:, None]
    with np.errstate(all="ignore"):
        if name == "int8":
            t = np.float32(254) * np.abs(rows) / (scale + np.abs(rows))
            codes = np.floor(np.where(t < 127, t, np.float32(127)) + np.float32(0.5))
            codes = np.where(rows < 0, -codes, codes)
        else:
            t = np.sqrt(np.sqrt(rows * (np.float32(255.0**4) / scale)))
            codes = np.floor(np.where(t < 255, t, np.float32(255)) + np.float32(0.5))
            codes = np.maximum(codes, rows > 0)
    return codes.astype(name).ravel()[: x.size], scales


def decoded(codes, scales):
    """The numbers that codes stand for."""
    c, scale = codes.astype(np.float32), np.repeat(scales, BLOCK)[: codes.size]
    if codes.dtype == np.int8:
        return scale * (c / (np.float32(254) - np.abs(c)))
    return (c * c) * (c * c) * (scale / np.float32(255.0**4))


def through(x, name):
    """What numbers in storage order become when they are stored."""
    return decoded(*encoded(np.asarray(x, np.float32), name))
