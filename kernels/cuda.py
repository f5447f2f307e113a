"""The rules on GPUs: their CUDA source, compiled by CuPy at run time, or ahead of time by NVRTC, without a GPU.

This file does not import CuPy or its NVRTC binding: callers check that they are installed, and pass them in.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .dtypes import DTYPES, STORED
from .tables import GPU_JOB

HERE = Path(__file__).parent

# CuPy appends -ftz=true, and no earlier option overrides it. NVRTC gets it too, so that both compile the same way.
OPTIONS = ("-std=c++17", "-ftz=true")
REMAINDERS = {"": "void", "int16": "int16_t", "int8": "int8_t", "float32": "float"}  # their types in CUDA C++
SMALL = ("send", "advance", "count")  # kernels beside the updates
OF_ROWS = ("number_rows", "cut_rows_float32", "cut_rows_float64")  # those of sparse gradients
PACK = 16  # bytes that a thread moves at once
MOST_THREADS = 512  # in a block; the kernels' launch bounds say the same

# Bytes of an update's argument: each kernel is compiled for the sizes that are needed. The last one is the most that
# CUDA takes, from 12.1 on, where NVRTC and driver know of it, and the device is of compute capability 7.0 or newer.
SIZES = (512, 4096, 32_760)
WITHOUT_ASKING = 4096


@functools.cache
def inlined(file: str) -> str:
    """Return a file of this folder with our own headers pasted in for their includes, each once.

    CuPy's cache compares only this text, and would not notice a changed header.
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


def dtypes_of(dtype: str, states: Sequence[str] = (), gradient: str = "") -> list[str]:
    """Return the dtypes of parameter, gradient and states: of each, or of all, in which the kernel then computes."""
    return [dtype, gradient or dtype, *(states or [DTYPES[dtype].real_name])]


def words(size: int) -> int:
    """Count the words that travel in an argument of so many bytes."""
    return (size - GPU_JOB.itemsize) // 8


class Kind(NamedTuple):
    """Which kernel of a rule: `kernels.cpu.kernel` says what these names may be."""

    rule: str
    dtype: str  # of the parameter
    size: int = SIZES[0]  # bytes of its argument
    stages: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    gradient: str = ""
    master: str = ""
    rounding: str = ""

    @property
    def bits(self) -> tuple[str, ...]:
        """The names of its bits: its stages, and its rounding if that is not to nearest."""
        return (*self.stages, self.rounding) if self.rounding else self.stages

    @property
    def name(self) -> str:
        """Its name: rule, dtypes of parameter, gradient and states, what else it has, and the bytes of its argument."""
        masters = ["master", self.master] if self.master else []
        dtypes = dtypes_of(self.dtype, self.states, self.gradient)
        return "_".join((self.rule, *dtypes, *masters, *self.bits, str(self.size)))

    @property
    def pack(self) -> int:
        """How many elements a thread moves at once."""
        return pack(self.dtype, self.gradient or self.dtype)

    def source(self) -> str:
        """Return its CUDA source."""
        dtypes = dtypes_of(self.dtype, self.states, self.gradient)
        of_param, *others = [STORED[dtype].cuda for dtype in dtypes]
        types = ", ".join([of_param, REMAINDERS[self.master], *others])
        bits = " | ".join(f"fastopt::cuda::Stage::{bit}" for bit in self.bits or ["none"])
        update = f"FASTOPT_UPDATE({self.name}, {functor(self.rule)}, ({bits}), {words(self.size)}, {types})"
        return f"{inlined('fused.cu')}\n{update}\n"


def norm_name(dtype: str, size: int = SIZES[0]) -> str:
    """Name the kernel that sums squares of gradients of a dtype: it takes the same argument as their update."""
    return f"norm_{dtype}_{size}"


def norm_source(dtype: str, size: int = SIZES[0]) -> str:
    """Return the CUDA source of that kernel."""
    norm = f"FASTOPT_NORM({norm_name(dtype, size)}, {DTYPES[dtype].cuda}, {words(size)})"
    return f"{inlined('norm.cu')}\n{norm}\n"


def pack(*dtypes: str) -> int:
    """Count the elements that a thread moves at once, of parameters and gradients of these dtypes."""
    return PACK // min(DTYPES[dtype].itemsize for dtype in dtypes)


@functools.cache
def kernel(cupy: Any, kind: Kind) -> Any:
    """Return a rule's kernel."""
    return cupy.RawModule(code=kind.source(), options=OPTIONS).get_function(kind.name)


@functools.cache
def norm(cupy: Any, dtype: str, size: int) -> Any:
    """Return the kernel that sums squares of gradients of a dtype, whose argument has so many bytes."""
    return cupy.RawModule(code=norm_source(dtype, size), options=OPTIONS).get_function(norm_name(dtype, size))


@functools.cache
def total(cupy: Any) -> Any:
    """Return the small kernel that adds these sums, and decides what becomes of the step."""
    return cupy.RawModule(code=inlined("norm.cu"), options=OPTIONS).get_function("total")


@functools.cache
def largest_argument(cupy: Any) -> int:
    """Return the bytes that an argument may have, by the versions of NVRTC and of the driver."""
    knows = cupy.cuda.nvrtc.getVersion() >= (12, 1) and cupy.cuda.runtime.driverGetVersion() >= 12_010
    return SIZES[-1] if knows else WITHOUT_ASKING


@functools.cache
def small_kernels(cupy: Any) -> dict[str, Any]:
    """Return the small kernels by name: `send` takes a message, `advance` and `count` a clock."""
    module = cupy.RawModule(code=inlined("advance.cu"), options=OPTIONS)
    return {name: module.get_function(name) for name in SMALL}


@functools.cache
def row_kernels(cupy: Any) -> dict[str, Any]:
    """Return the kernels that make chunks of a table's rows, by name."""
    module = cupy.RawModule(code=inlined("row_chunks.cu"), options=OPTIONS)
    return {name: module.get_function(name) for name in OF_ROWS}


# What ptxas reports about a kernel.
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?Function properties for \1\D+(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(.*?)$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Usage:
    """A kernel's resources: registers and bytes of stack per thread, bytes of shared memory per block."""

    kernel: str
    registers: int
    shared: int
    local: int
    spilled: int  # bytes stored and loaded because registers ran out

    def __str__(self) -> str:
        """Return all of it in one line."""
        return (
            f"{self.kernel}: {self.registers} registers, {self.shared} bytes shared, {self.local} bytes local, "
            f"{self.spilled} bytes spilled"
        )


def usages(log: str) -> Iterator[Usage]:
    """Parse what ptxas reports about each kernel."""
    for name, stack, stores, loads, registers, rest in REPORT.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield Usage(name, int(registers), int(shared[1]) if shared else 0, int(stack), int(stores) + int(loads))


def sources(kinds: Iterable[Kind]) -> dict[str, str]:
    """Return sources by file name: those of these updates, of the norm of each dtype, and of the small kernels."""
    updates = {kind.name: kind.source() for kind in kinds}
    norms = {norm_name(dtype): norm_source(dtype) for dtype in DTYPES}
    others = {name: inlined(f"{name}.cu") for name in ("advance", "row_chunks")}
    return {**updates, **norms, **others}


def check_architecture(nvrtc: Any, architecture: str) -> None:
    """Raise ValueError if NVRTC cannot compile for an architecture, ImportError if NVRTC is not installed."""
    try:
        known = [f"sm_{number}" for number in nvrtc.getSupportedArchs()]
    except RuntimeError as error:  # the binding loads the library at the first call
        raise ImportError("NVRTC is not installed: pip install 'fastopt[cuda13]'") from error
    if architecture not in known:
        raise ValueError(f"this NVRTC does not compile for {architecture!r}, but for {', '.join(known)}")


def cubin(nvrtc: Any, source: str, name: str, architecture: str) -> tuple[bytes, list[Usage]]:
    """Compile a source ahead of time for one architecture; return the CUBIN and its kernels' resources.

    Parameters
    ----------
    nvrtc : module
        ``cupy_backends.cuda.libs.nvrtc``, which needs neither a GPU nor a driver.
    source, name : str
        One of `sources`, and its name for messages.
    architecture : str
        For example ``"sm_90"``.

    Raises
    ------
    RuntimeError
        If the source does not compile; the message has the compiler's log.
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
