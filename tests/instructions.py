"""Patterns of machine instructions: packed arithmetic, any arithmetic in a precision, and forbidden instructions."""

import platform
import re

from fastopt.rules import RULES

# The loop as a function of its own, by its mangled name: it would run instead of the code under test.
OUTLINED = r"(?m)^_+ZN(?!08NumbaEnv)\w*3cpu6update\w*:"

if platform.machine().lower() in ("x86_64", "amd64"):
    SUFFIX = {"float32": "s", "float64": "d"}
    COMPARED = {"max": r"(max|cmp\w*)"}

    def packed(operation, dtype):
        """Match a packed operation."""
        return rf"\bv?{COMPARED.get(operation, operation)}p{SUFFIX[dtype]}\b"

    def any_arithmetic(dtype):
        """Match arithmetic in a precision, or a conversion into it."""
        letter, other = SUFFIX[dtype], SUFFIX["float64" if dtype == "float32" else "float32"]
        return rf"\bv?(add|sub|mul|div|sqrt|max|min)[ps]{letter}\b|\bv?cvt[ps]{other}2[ps]{letter}\b"

    FUSED = r"\bvfn?m(add|sub)"
    SHIFT = r"\bv?ps[lr]ld\b"
    PACKED_PRODUCT = r"\bv?pmul(ld|udq)\b"  # of integers of 32 bits
else:
    LANES = {"float32": "4s", "float64": "2d"}
    SCALAR = {"float32": "s", "float64": "d"}
    COMPARED = {"max": r"(max(nm)?|cm\w\w)"}

    def packed(operation, dtype):
        """Match a packed operation."""
        return rf"\bf{COMPARED.get(operation, operation)}(\.{LANES[dtype]}\s|\s+v\d+\.{LANES[dtype]})"

    def any_arithmetic(dtype):
        """Match arithmetic in a precision, or a conversion into it."""
        operation = r"\bf(add|sub|mul|nmul|div|sqrt|neg)"
        scalar = SCALAR[dtype]
        return (
            rf"{operation}(\.{LANES[dtype]}\s|\s+v\d+\.{LANES[dtype]}|\s+{scalar}\d)"
            rf"|\bfcvt\s+{scalar}\d+, [sd]|\bfcvt[ln]2?(\.{LANES[dtype]}\s|\s+v\d+\.{LANES[dtype]})"
        )

    FUSED = r"\bf(n?madd|n?msub|mla|mls)\b"
    SHIFT = r"\b(shl|ushr|[us]?shll)2?(\.4s\s|\s+v\d+\.4s)"
    PACKED_PRODUCT = r"\bmul(\.4s\s|\s+v\d+\.4s)"  # of integers of 32 bits


def operations(name):
    """What a rule's loop does, and does packed: the larger of two is one instruction, or a comparison and a choice."""
    scaled = ("div", "sqrt", "add") if "eps" in RULES[name].hypers else ()
    bounded = ("max",) if "centered" in name or "amsgrad" in name else ()
    return ("mul", "sub", *scaled, *bounded)


def body(assembly, name):
    """The code of a function by its Python name, and of no other, in what Numba makes of it."""
    found = re.findall(rf"(?ms)^_+ZN\w*?{len(name)}{name}B.*?^\.Lfunc_end|^_+ZN\w*?{len(name)}{name}B.*\Z", assembly)
    (own,) = (code for code in found if "cpython" not in code.partition(":")[0])
    return own
