"""Masters: numbers in float32 of which 16 bits are the parameter; a state, the remainder, has the others.

Beside a bfloat16 parameter, the remainder is the difference of the bits, 16 of them or the upper 8. Beside a float16
parameter it is the master itself. The arithmetic of elements is in ``kernels/cpu.py`` and ``kernels/elements.h``.
"""

from __future__ import annotations

from typing import Any

MASTER = "master"  # the state that is the remainder
BITS = {"int16": 16, "int8": 8}  # of remainders beside bfloat16


def dtype_of_remainder(dtype: str, asked: bool | int) -> str:
    """Return the name of a remainder's dtype for parameters of a dtype; empty if they have no masters."""
    if dtype == "float16" and asked:
        return "float32"
    if dtype == "bfloat16" and asked:
        return "int8" if asked == 24 else "int16"
    return ""


def is_convertible(found: str, wanted: str) -> bool:
    """Say whether a remainder of one dtype can become one of another; else the masters begin at the parameters."""
    return found == wanted or (found in BITS and wanted in BITS)


def converted(remainder: Any, found: str, wanted: str) -> Any:
    """Return a remainder, as an array or a tensor of 16 bits whatever it had, in units of the last bit that is wanted.

    To 8 bits it is rounded half up, but not into the parameter, which stays as it is.
    """
    if found == wanted:
        return remainder
    return remainder << 8 if wanted == "int16" else ((remainder >> 7) + 1 >> 1).clip(max=127)
