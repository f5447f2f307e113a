"""float16 and bfloat16 by NumPy and torch, as bits and as float32 values; no tests here."""

import numpy as np
import torch

DIGITS = {"float16": 10, "bfloat16": 7}  # of the mantissa, behind the first
LEAST = {"float16": -14, "bfloat16": -126}  # exponent of the least normal number
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}


def values(patterns, dtype):
    """What bits mean, as float32, by NumPy or torch."""
    if dtype == "float16":
        return patterns.view(np.float16).astype(np.float32)
    return torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16).to(torch.float32).numpy()


def rounded(x, dtype):
    """The bits of float32 numbers rounded to halves, by NumPy or torch."""
    if dtype == "float16":
        with np.errstate(all="ignore"):
            return x.astype(np.float16).view(np.uint16)
    return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def every_pattern():
    """All bits that a half can have."""
    return np.arange(2**16, dtype=np.uint16)


def borders(dtype):
    """Every half that is 0 or more, the middle of each two, and a float32 to either side of both; infinity too."""
    exact = values(np.arange(INFINITY[dtype], dtype=np.uint16), dtype).astype(np.float64)
    exact = np.append(exact, 2 * 2.0 ** np.floor(np.log2(exact[-1])))  # what is rounded up to it is infinity
    middles = (exact[1:] + exact[:-1]) / 2
    with np.errstate(over="ignore"):
        x = np.concatenate([exact, middles, [np.inf]]).astype(np.float32)
        return np.concatenate([x, np.nextafter(x, np.float32(-np.inf)), np.nextafter(x, np.float32(np.inf))])


def assert_widens(widen, dtype):
    """Assert that a conversion gets all patterns right, bit for bit, except that one NaN may become another."""
    got, want = widen(every_pattern(), dtype), values(every_pattern(), dtype)
    nan = np.isnan(want)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])
    assert np.isnan(got[nan]).all()


def assert_undoes(narrow, widen, dtype):
    """Assert that one conversion undoes the other, for all patterns but NaN."""
    patterns = every_pattern()
    patterns = patterns[~np.isnan(values(patterns, dtype))]
    np.testing.assert_array_equal(narrow(widen(patterns, dtype), dtype), patterns)


def assert_rounds_to_even(narrow, dtype):
    """Assert NumPy's and torch's rounding: around all halves and middles of two, in both signs, and for any bits."""
    some = np.random.default_rng(1).integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    tiny = np.arange(1000, dtype=np.uint32).view(np.float32)
    for x in (borders(dtype), -borders(dtype), some, tiny, -tiny):
        got, want = narrow(x, dtype), rounded(x, dtype)
        nan = np.isnan(x)
        np.testing.assert_array_equal(got[~nan], want[~nan])
        quiet = INFINITY[dtype] | 1 << (DIGITS[dtype] - 1)
        assert (got[nan] & quiet == quiet).all()


def assert_keeps_nan(narrow, dtype):
    """Assert that NaN stays one whose mantissa is all in the bits that are cut off, or would carry into the sign."""
    mantissas = np.array([1, 0x0FFF, 0x7FFF, 0x8000, 0xFFFF, 0x400000, 0x7FFFFF], np.uint32)
    x = np.concatenate([0x7F800000 | mantissas, 0xFF800000 | mantissas]).view(np.float32)
    assert np.isnan(values(narrow(x, dtype), dtype)).all()


def assert_converts(widen, narrow, dtype):
    """Assert that all patterns are widened, and every border between two rounded, as NumPy and torch do it."""
    assert_widens(widen, dtype)
    assert_undoes(narrow, widen, dtype)
    assert_rounds_to_even(narrow, dtype)
    assert_keeps_nan(narrow, dtype)
