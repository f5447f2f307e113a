"""The rules on GPUs: their CUDA source, compiled by CuPy at run time, or by NVRTC alone, ahead and without a GPU.

CuPy, and its binding of NVRTC, are imported by whoever has checked that they are there, and handed over.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dtypes import DTYPES

HERE = Path(__file__).parent

# CuPy adds -ftz=true at the end, and no option before it helps. Here as well, so that all are compiled alike.
OPTIONS = ("-std=c++17", "-ftz=true")
PACK = 16  # bytes that a thread moves at once
MOST_THREADS = 512  # of a block, as the kernels are compiled


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


def dtypes_of(dtype: str) -> tuple[str, str, str]:
    """Name what a kernel for a dtype reads and writes: the dtypes of parameter, gradient and states."""
    return dtype, dtype, DTYPES[dtype].real_name


def kernel_name(rule: str, dtype: str) -> str:
    """Name a kernel: rule, parameter, gradient, states."""
    return "_".join((rule, *dtypes_of(dtype)))


def source(rule: str, dtype: str) -> str:
    """Return the whole CUDA source of a rule's kernel for a dtype."""
    types = ", ".join(DTYPES[name].cuda for name in dtypes_of(dtype))
    return f"{inlined('fused.cu')}\nFASTOPT_UPDATE({kernel_name(rule, dtype)}, {functor(rule)}, {types})\n"


def pack(dtype: str) -> int:
    """Count the elements that a thread moves at once."""
    return PACK // DTYPES[dtype].itemsize


@functools.cache
def kernel(cupy: Any, rule: str, dtype: str) -> Any:
    """Return the kernel of a rule for a dtype, which takes one argument: a job."""
    return cupy.RawModule(code=source(rule, dtype), options=OPTIONS).get_function(kernel_name(rule, dtype))


@functools.cache
def send_and_advance(cupy: Any) -> tuple[Any, Any]:
    """Return the two small kernels, which take a message and a course."""
    module = cupy.RawModule(code=inlined("advance.cu"), options=OPTIONS)
    return module.get_function("send"), module.get_function("advance")


# What ptxas says of a kernel.
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?Function properties for \1\D+(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(.*?)$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes: registers and bytes of stack for each thread, bytes of shared memory for each block."""

    kernel: str
    registers: int
    shared: int
    local: int
    spilled: int  # bytes stored and loaded since registers did not suffice

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.kernel}: {self.registers} registers, {self.shared} bytes shared, {self.local} bytes local, "
            f"{self.spilled} bytes spilled"
        )


def usages(log: str) -> Iterator[Usage]:
    """Read what ptxas reports of each kernel."""
    for name, stack, stores, loads, registers, rest in REPORT.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield Usage(name, int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads))


def sources(rules: Iterable[str]) -> dict[str, str]:
    """Return all sources by the names of their files: an update for each rule and dtype, and the two small kernels."""
    updates = {kernel_name(rule, dtype): source(rule, dtype) for rule in rules for dtype in DTYPES}
    return {**updates, "advance": inlined("advance.cu")}


def check_architecture(nvrtc: Any, architecture: str) -> None:
    """Raise ValueError unless NVRTC compiles for an architecture, ImportError where NVRTC is not there."""
    try:
        known = [f"sm_{number}" for number in nvrtc.getSupportedArchs()]
    except RuntimeError as error:  # its library is looked for at the first call
        raise ImportError("NVRTC is not installed: pip install 'fastopt[cuda13]'") from error
    if architecture not in known:
        raise ValueError(f"this NVRTC does not compile for {architecture!r}, but for {', '.join(known)}")


def cubin(nvrtc: Any, source: str, name: str, architecture: str) -> tuple[bytes, list[Usage]]:
    """Compile a source ahead, for one architecture: the CUBIN, and what its kernels take.

    Parameters
    ----------
    nvrtc : module
        ``cupy_backends.cuda.libs.nvrtc``, which needs neither a GPU nor a driver.
    source, name : str
        One of `sources`, and its name, for messages.
    architecture : str
        ``"sm_90"``, for instance.

    Raises
    ------
    RuntimeError
        With the compiler's log, where the source does not compile.
    """
    program = nvrtc.createProgram(source, f"{name}.cu", [], [])
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"--gpu-architecture={architecture}", "--ptxas-options=-v"))
        log = nvrtc.getProgramLog(program)
        return nvrtc.getCUBIN(program) + b"\0", list(usages(log))  # the binding drops the last byte
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{name} does not compile:\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)
