"""The CUDA kernels on the host: the source that CuPy gets, compiled by g++ with `host_cuda.h`; no tests here.

Addresses of the "device" are addresses of the host. What a launch on a GPU would refuse, or fault at, is an error.
"""

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import CHUNK, CLOCK, GPU_JOB, MESSAGE, TENSOR
from once import once

from fastopt.rules import RULES

SHIM = Path(__file__).with_name("host_cuda.h")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LIBRARY = "kernels.so"
BUILT = "HOST_CUDA_LIBRARY"  # in the environment: a library to load, which `build` made
THREADS = 1024  # a block has no more
KINDS = [(rule, dtype, size) for rule in RULES for dtype in DTYPES for size in cuda.SIZES]
UPDATES = {cuda.kernel_name(*kind): kind for kind in KINDS}
SIZES = {name: size for name, (_, _, size) in UPDATES.items()}  # of arguments, in bytes
SMALL = {"send": MESSAGE, "advance": CLOCK, "count": CLOCK}  # what the other kernels take
SIZES.update({name: struct.itemsize for name, struct in SMALL.items()})


def fused(updates):
    """Some updates as one source: the text that every kernel begins with, and the rest of each."""
    common = cuda.inlined("fused.cu")
    sources = [cuda.source(*UPDATES[name]) for name in updates]
    assert all(source.startswith(common) for source in sources)
    rests = [source.removeprefix(common) for source in sources]
    conversions = [f"HOST_CONVERSIONS({name}, {DTYPES[name].cuda})" for name in ("float16", "bfloat16")]
    return "\n".join([common, *rests, *map("HOST_LAUNCHER({})".format, updates), *conversions])


def build(folder, *flags, updates=UPDATES):
    """Compile kernels, all of them or some updates, into a shared library in a folder, and return its path."""
    small = "\n".join([cuda.inlined("advance.cu"), *map("HOST_LAUNCHER({})".format, SMALL)])
    path, sources = Path(folder) / LIBRARY, {"fused": fused(updates), "advance": small}
    compiler, objects, running = shutil.which("g++"), [], []
    for name, source in sources.items():
        file = path.with_name(f"{name}.cpp")
        file.write_text(f'#include "{SHIM}"\n{source}\n', encoding="utf-8")
        objects.append(file.with_suffix(".o"))
        running.append(subprocess.Popen([compiler, *FLAGS, *flags, "-c", file, "-o", objects[-1]]))
    assert [process.wait() for process in running] == [0] * len(running)
    linked = [
        "-shared",
        "-Wl,-Bsymbolic",
    ]  # the C library has functions named send and advance, which must not be meant
    subprocess.run([compiler, *flags, *linked, *objects, "-o", path], check=True)
    return path


@functools.cache
def library():
    """Return all kernels, compiled once for all processes."""
    return ctypes.CDLL(os.environ.get(BUILT) or str(once("cuda", build) / LIBRARY))


def table(address, dtype, rows):
    """View a table of a kernel's."""
    return np.frombuffer((ctypes.c_char * (rows * dtype.itemsize)).from_address(int(address)), dtype)


def fields(name, argument):
    """Return the struct that a kernel's argument, an array of bytes, begins with."""
    struct = SMALL.get(name, GPU_JOB)
    return argument[: struct.itemsize].view(struct)[0]


def words(argument):
    """Return what travels in the argument of an update."""
    return argument[GPU_JOB.itemsize :].view(np.int64)


def addresses(name, argument):
    """List the addresses in a kernel's argument."""
    kinds = {
        "send": ("to", "version"),
        "advance": ("inputs", "taken", "carried", "hypers", "rounded", "scale", "skip"),
        "count": ("taken", "skip"),
    }
    kind = kinds.get(name, ("tensors", "chunks", "hypers", "skip", "taken"))
    found = [fields(name, argument)[field] for field in kind]
    return [int(address) for address in found if address]


def tensors_of(argument, chunks):
    """Return the rows of the tensor table that an update reads, with the gradients that travel in its argument."""
    job, room = fields("", argument), words(argument)
    tensors = table(job["tensors"], TENSOR, int(chunks["tensor"].max()) + 1).copy()
    if job["grads"]:
        if not len(tensors) <= job["grads"] <= len(room):
            raise ValueError(f"{job['grads']} gradients for {len(tensors)} tensors, and room for {len(room)}")
        tensors["grad"] = room[: len(tensors)]
    return tensors


def tables(argument, grid):
    """List the addresses that an update follows from its tables: of what has elements and a gradient."""
    chunks = table(fields("", argument)["chunks"], CHUNK, grid)
    tensors = tensors_of(argument, chunks)[np.unique(chunks["tensor"])]
    tensors = tensors[tensors["grad"] != 0]
    columns = [tensors[name].ravel() for name in ("param", "grad", "states", "layout")]
    return [int(address) for address in np.concatenate(columns) if address]


def longest(argument, grid):
    """Return the length of the longest chunk of a tensor without a layout."""
    chunks = table(fields("", argument)["chunks"], CHUNK, grid)
    tensors = tensors_of(argument, chunks)
    return chunks["length"][tensors["layout"][chunks["tensor"]] == 0].max(initial=0)


def launch(name, argument, grid, block, seed=0):
    """Run a kernel, its threads in order or, with a seed, in another; return how many of its accesses were wide.

    The argument is an array of one element, of as many bytes as the kernel takes.
    """
    if np.size(argument) != 1 or argument.nbytes != SIZES[name]:
        raise TypeError(f"{name} takes {SIZES[name]} bytes, not {argument!r}")
    argument = np.frombuffer(argument.tobytes(), np.uint8)
    threads = cuda.MOST_THREADS if name in UPDATES else THREADS
    if not (1 <= grid < 2**31 and 1 <= block <= threads):
        raise ValueError(f"{name} cannot be launched with {grid} blocks of {block} threads")
    if name in UPDATES and longest(argument, grid) > block * cuda.pack(UPDATES[name][1]):
        raise ValueError(f"{name} has chunks of more packs than the {block} threads of a block")
    wide = launched(library(), name, [np.asarray(argument)], grid, block, seed)
    if wide < 0:
        raise RuntimeError(f"{name} moved 16 bytes at an address that is no multiple of 16")
    return wide


def launched(loaded, name, arguments, grid, block, seed):
    """Run a kernel of a library, on arguments that are arrays of one element each, as their types are declared."""
    function = getattr(loaded, f"launch_{name}")
    function.restype = ctypes.c_int64
    addresses = (ctypes.c_void_p * len(arguments))(*(argument.ctypes.data for argument in arguments))
    return function(addresses, *map(ctypes.c_uint, (grid, block, seed)))


def size_of_arguments(loaded, name):
    """Return the bytes of the arguments of a library's kernel."""
    function = getattr(loaded, f"size_{name}")
    function.restype = ctypes.c_int64
    return function()


@functools.cache
def compiled(source, *flags):
    """Compile a source of someone's own, and return it as a library, with a launcher for each of its kernels."""
    launchers = map("HOST_LAUNCHER({})".format, re.findall(r"__global__ void (\w+)", source))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cpp"
        file.write_text("\n".join([f'#include "{SHIM}"', source, *launchers]), encoding="utf-8")
        linked = "-shared", "-Wl,-Bsymbolic"
        subprocess.run([shutil.which("g++"), *FLAGS, *flags, *linked, file, "-o", file.with_suffix(".so")], check=True)
        return ctypes.CDLL(str(file.with_suffix(".so")))


def convert(function, values, dtype):
    """Run a conversion, widen_float16 for one, over an array, and return the results as an array of a dtype."""
    values, results = np.ascontiguousarray(values), np.empty(values.shape, dtype)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (values, results))
    getattr(library(), function)(*pointers, ctypes.c_int64(values.size))
    return results
