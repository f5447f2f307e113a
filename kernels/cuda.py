"""The rules on GPUs: their CUDA source, compiled by CuPy at run time, or by NVRTC alone, ahead and without a GPU.

Only what takes part in a launch stands here. CuPy is imported by whoever has checked that it is there, and handed over.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from .tables import ELEMENTS

HERE = Path(__file__).parent

# Element -> its type in CUDA C++.
TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "fastopt::cuda::Float16",
    "bfloat16": "fastopt::cuda::Bfloat16",
}
FORMATS = {name: (name, name, "float64" if name == "float64" else "float32") for name in ELEMENTS}

# CuPy adds -ftz=true at the end, and no option before it helps. Here as well, so that all are compiled alike.
OPTIONS = ("-std=c++17", "-ftz=true")
BLOCK = 128  # threads


@functools.cache
def inlined(file: str) -> str:
    """Return a file of this folder with our own headers in the place of their includes, each once.

    As one text, since CuPy's cache looks at nothing else: a header that changes would not be seen.
    """
    seen = set()

    def include(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return ""
        seen.add(name)
        return expand((HERE / name).read_text(encoding="utf-8"))

    def expand(text: str) -> str:
        return re.sub(r'^#include "(\w+\.h)".*$', include, text, flags=re.MULTILINE)

    return expand((HERE / file).read_text(encoding="utf-8"))


def functor(rule: str) -> str:
    """Name a rule's functor, as ``rules.h`` lists it."""
    match = re.search(rf"^ *X\({rule}, (\w+)\)", inlined("fused.cu"), re.MULTILINE)
    if match is None:
        raise ValueError(f"rules.h has no rule {rule!r}")
    return match[1]


def kernel_name(rule: str, format: str) -> str:
    """Name a kernel: rule, parameter, gradient, state."""
    return "_".join((rule, *FORMATS[format]))


def source(rule: str, format: str) -> str:
    """Return the whole CUDA source of a rule's kernel for a format."""
    types = ", ".join(TYPES[element] for element in FORMATS[format])
    return f"{inlined('fused.cu')}\nFASTOPT_UPDATE({kernel_name(rule, format)}, {functor(rule)}, {types})\n"


@functools.cache
def kernel(cupy: Any, rule: str, format: str) -> Any:
    """Return the kernel of a rule for a format, which takes one argument: a job."""
    return cupy.RawModule(code=source(rule, format), options=OPTIONS).get_function(kernel_name(rule, format))


@functools.cache
def send_and_advance(cupy: Any) -> tuple[Any, Any]:
    """Return the two small kernels, which take a message and a course."""
    module = cupy.RawModule(code=inlined("advance.cu"), options=OPTIONS)
    return module.get_function("send"), module.get_function("advance")
