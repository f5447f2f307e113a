"""Builds ``fastopt.kernels._pool``, the extension with the pool and the readers, through cffi for ``setup.py``.

`fastopt.embed` uses its declarations too, without needing the extension.
"""

import re
import sys
from pathlib import Path

import cffi

HERE = Path(__file__).parent
SOURCES = ("pool", "step", "reader", "tensors", "team", "gpus", "graphs")
FLAGS = ["-std=c++17", "-O2", "-pthread", "-ffp-contract=off"]  # the last: rows must equal Python's to the bit


def declarations(header: str) -> str:
    """Return the part of a header that cffi reads: plain C between its two marks."""
    match = re.search(r"/\* begin \*/(.*)/\* end \*/", (HERE / header).read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        raise ValueError(f"{header} has lost its begin and end marks")
    return match[1]


ffi = cffi.FFI()
ffi.cdef(declarations("tables.h") + declarations("fastopt.h"))
ffi.set_source(
    "fastopt.kernels._pool",
    '#include "fastopt.h"',
    sources=[f"kernels/{name}.cpp" for name in SOURCES],
    depends=[f"kernels/{header.name}" for header in sorted(HERE.glob("*.h"))],
    include_dirs=["kernels"],
    source_extension=".cpp",
    py_limited_api=False,  # the reader uses the buffer protocol, which the limited API of Python 3.10 lacks
    extra_compile_args=["/std:c++17", "/EHsc"] if sys.platform == "win32" else FLAGS,
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
    optional=True,  # without a compiler the same kernels run on one thread; `fastopt info` says so
)
