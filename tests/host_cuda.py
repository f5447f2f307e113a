"""The CUDA kernels on the host: the source that CuPy gets, compiled by g++ with `host_cuda.h`; no tests here.

Addresses of the "device" are addresses of the host. What a launch on a GPU would refuse, or fault at, is an error.
"""

import ctypes
import functools
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import BLOCK, CHUNK, CLOCK, GPU_JOB, GPU_ROWS, GPU_TOTAL, MESSAGE, STORAGE, TENSOR
from once import once

from fastopt.rules import RULES

SHIM = Path(__file__).with_name("host_cuda.h")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LIBRARY = "kernels.so"
BUILT = "HOST_CUDA_LIBRARY"  # in the environment: a library to load, which `link` made
THREADS = 1024  # a block has no more
STAGES = ("value", "average", "zero")
SOME = [tuple(itertools.compress(STAGES, chosen)) for chosen in itertools.product((False, True), repeat=len(STAGES))]
KINDS = list(itertools.product(RULES, DTYPES, cuda.SIZES, SOME, [()]))
KEPT = ("bfloat16", "float16", "float32")
# Kernels with states of 16 bits: some rules in float32, and two in all dtypes.
STORED = [
    (rule, dtype, cuda.SIZES[0], stages, states)
    for rule in ("momentum", "adamw", "adagrad", "rmsprop_momentum", "adamw_amsgrad")
    for dtype in (DTYPES if rule in ("momentum", "adamw") else ["float32"])
    for states in itertools.islice(itertools.product(KEPT, repeat=len(RULES[rule].states)), 5)
    if {*states} != {DTYPES[dtype].real_name}
    for stages in ((), STAGES)
]
# Kernels that round stochastically.
RANDOM = [
    (rule, dtype, cuda.SIZES[0], stages, states, "", "", "stochastic")
    for rule in ("sgd", "momentum", "adamw", "adamw_amsgrad")
    for dtype in ("bfloat16", "float16", "float32")
    for states in dict.fromkeys([(), ("bfloat16",) * len(RULES[rule].states), ("float16",) * len(RULES[rule].states)])
    if states or dtype != "float32"
    for stages in ((), ("average",))
]
RANDOM += [("sgd", "float16", cuda.SIZES[0], (), (), "float32", "", "stochastic")]
# Kernels with states in 8 bits: each code, both, three of them, and beside states of other dtypes.
OF_CODES = {
    "momentum": [("int8",)],
    "adagrad": [("uint8",)],
    "adamw": [("int8", "uint8"), ("int8", "float32"), ("bfloat16", "uint8")],
    "adamw_amsgrad": [("int8", "uint8", "uint8")],
    "rmsprop_centered_momentum": [("uint8", "int8", "int8")],
}
CODED = [
    (rule, dtype, size, stages, states)
    for rule, kinds in OF_CODES.items()
    for states in kinds
    for dtype in (DTYPES if rule in ("momentum", "adamw") and "float32" not in states else ["float32"])
    for size in cuda.SIZES
    for stages in ((), STAGES)
]
# The same, rounded stochastically.
RANDOM_CODES = [
    (rule, "float32", cuda.SIZES[0], (), kinds[0], "", "", "stochastic") for rule, kinds in OF_CODES.items()
]
# Kernels with masters, and with gradients of another dtype.
MASTERS = {"bfloat16": ("int16", "int8"), "float16": ("float32",)}
OTHERS = [
    (rule, dtype, cuda.SIZES[0], stages, (), gradient, master)
    for rule in ("sgd", "momentum", "adamw")
    for dtype in ("bfloat16", "float16", "float32")
    for gradient in ("", *(other for other in ("float32", "bfloat16", "float16") if other != dtype))
    for master in ("", *MASTERS.get(dtype, ()))
    if gradient or master
    for stages in ((), ("average",), ("value", "zero"))
]
OTHERS += [("adamw", "bfloat16", cuda.SIZES[0], (), ("int8", "uint8"), "", "int8")]
# Kernels of tables whose rows have a number each.
ROWWISE = [
    ("adagrad", dtype, cuda.SIZES[0], stages, (), *more)
    for dtype, stages, *more in [
        ("float32", ("rowwise",)),
        ("float32", ("value", "rowwise")),
        ("float64", ("rowwise",)),
        ("float16", ("rowwise",), "float32", "float32"),
        ("float16", ("rowwise",), "float32", "", "stochastic"),
    ]
]
ALL = itertools.starmap(cuda.Kind, (*KINDS, *STORED, *RANDOM, *CODED, *RANDOM_CODES, *OTHERS, *ROWWISE))
UPDATES = {kind.name: kind for kind in ALL}
OF_ROWS = {name for name, kind in UPDATES.items() if "rowwise" in kind.stages}
WITH_CODES = {name for name, kind in UPDATES.items() if {"int8", "uint8"} & {*kind.states}}
PLAIN = [name for name, (_, _, _, *more) in UPDATES.items() if not any(more)]
NORMS = {cuda.norm_name(dtype, size): (dtype, size) for dtype in DTYPES for size in cuda.SIZES}
SIZES = {name: kind.size for name, kind in UPDATES.items()}  # of arguments, in bytes
SIZES.update({name: size for name, (_, size) in NORMS.items()})
SMALL = {"send": MESSAGE, "advance": CLOCK, "count": CLOCK, "total": GPU_TOTAL}  # what the other kernels take
SMALL |= dict.fromkeys(cuda.OF_ROWS, GPU_ROWS)
SIZES.update({name: struct.itemsize for name, struct in SMALL.items()})
WAITS = {*NORMS, "total", *WITH_CODES, *OF_ROWS}  # their threads wait for each other
UPDATED = ("param", "grad", "states", "layout")  # what an update follows


def together(file, names, source_of):
    """Some kernels as one source: the text that every one begins with, the rest of each, and launchers."""
    common = cuda.inlined(file)
    sources = [source_of(name) for name in names]
    assert all(source.startswith(common) for source in sources)
    return "\n".join([common, *(source.removeprefix(common) for source in sources), *map(launcher, names)])


def launcher(name):
    """What gives a kernel a launcher."""
    return f"HOST_LAUNCHER({name}, {'true' if name in WAITS else 'false'})"


def fused(updates):
    """Some updates as one source."""
    return together("fused.cu", updates, lambda name: UPDATES[name].source())


def norms():
    """Everything about the norm as one source."""
    return "\n".join([together("norm.cu", NORMS, lambda name: cuda.norm_source(*NORMS[name])), launcher("total")])


def small():
    """The small kernels beside an update as one source."""
    return "\n".join([cuda.inlined("advance.cu"), *map(launcher, ("send", "advance", "count"))])


def of_rows():
    """The kernels of sparse gradients as one source."""
    return "\n".join([cuda.inlined("row_chunks.cu"), *map(launcher, cuda.OF_ROWS)])


def build(folder):
    """Compile all kernels without stages into a shared library in a folder."""
    conversions = [f"HOST_CONVERSIONS({name}, {DTYPES[name].cuda})" for name in ("float16", "bfloat16")]
    beside = {"norm": norms(), "advance": small(), "row_chunks": of_rows()}
    link(folder, {"fused": "\n".join([fused(PLAIN), *conversions]), **beside})


def shim():
    """Return the header that every source begins with, beside which g++ finds it compiled if its options are FLAGS."""

    def precompile(folder):
        header = shutil.copy(SHIM, folder)
        subprocess.run([shutil.which("g++"), *FLAGS, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)

    return once("shim", precompile) / SHIM.name


def link(folder, sources, *flags):
    """Compile sources, each for itself, into a shared library in a folder, and return its path."""
    path = Path(folder) / LIBRARY
    compiler, header, objects, running = shutil.which("g++"), shim(), [], []
    for name, source in sources.items():
        file = path.with_name(f"{name}.cpp")
        file.write_text(f'#include "{header}"\n{source}\n', encoding="utf-8")
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
    """Return the kernels without stages, compiled once for all processes."""
    return ctypes.CDLL(os.environ.get(BUILT) or str(once("cuda", build) / LIBRARY))


def unit(name):
    """What is compiled together: updates of a rule, dtype and size with stages, of rows, or with the same states."""
    kind = UPDATES[name]
    return kind._replace(stages="rowwise" if name in OF_ROWS else bool(kind.stages and not any(kind[4:])))


@functools.cache
def variants(kind):
    """Return kernels with stages, or with states of other dtypes, compiled where they are needed for all processes."""
    names = [name for name in UPDATES if unit(name) == kind]
    folder = once(
        "-".join(["cuda", *map(str, kind[:4]), *kind.states, *kind[5:]]),
        lambda folder: link(folder, {"fused": fused(names)}),
    )
    return ctypes.CDLL(str(folder / LIBRARY))


def library_of(name):
    """Return the library that has a kernel."""
    return variants(unit(name)) if name in UPDATES and name not in PLAIN else library()


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
        "total": ("sums", "norm", "totals", "scale", "skip"),
        "number_rows": ("indices", "keys", "check"),
    }
    kinds |= dict.fromkeys(("cut_rows_float32", "cut_rows_float64"), ("keys", "values", "sums", "chunks"))
    read = ("sums",) if name in NORMS else ("hypers", "skip", "taken", "coefficient", "scale", "storages", "counted")
    kind = kinds.get(name, ("tensors", "chunks", *read))
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


def storages_of(argument, rows):
    """Return rows of the table of storages."""
    return table(fields("", argument)["storages"], STORAGE, rows.max(initial=-1) + 1)[rows]


def tables(name, argument, grid):
    """List the addresses that a kernel follows from its tables: of what has elements and a gradient."""
    chunks = table(fields("", argument)["chunks"], CHUNK, grid)
    tensors = tensors_of(argument, chunks)[np.unique(chunks["tensor"])]
    with_gradient = tensors[tensors["grad"] != 0]
    columns = [with_gradient[column].ravel() for column in (("grad", "layout") if name in NORMS else UPDATED)]
    if name in UPDATES and "average" in UPDATES[name].stages:
        averaged = tensors[tensors["average"] != 0]
        columns += [averaged["param"], averaged["average"]]
    if name in WITH_CODES:
        rows = np.unique(chunks["tensor"])
        columns.append(storages_of(argument, rows[tensors["grad"] != 0])["scales"].ravel())
    return [int(address) for address in np.concatenate(columns) if address]


def longest(argument, grid):
    """Return the length of the longest chunk of a tensor without a layout."""
    chunks = table(fields("", argument)["chunks"], CHUNK, grid)
    tensors = tensors_of(argument, chunks)
    return chunks["length"][tensors["layout"][chunks["tensor"]] == 0].max(initial=0)


def check_blocks(name, argument, grid):
    """Raise unless blocks of codes lie in chunks as a whole, in the parameter's order."""
    chunks = table(fields("", argument)["chunks"], CHUNK, grid)
    if (chunks["offset"] % BLOCK).any() or tensors_of(argument, chunks)["layout"][chunks["tensor"]].any():
        raise ValueError(f"{name} has chunks that cut across blocks of codes")


def launch(name, argument, grid, block, seed=0):
    """Run a kernel, its threads in order or, with a seed, in another; return how many of its accesses were wide.

    The argument is an array of one element, of as many bytes as the kernel takes.
    """
    if np.size(argument) != 1 or argument.nbytes != SIZES[name]:
        raise TypeError(f"{name} takes {SIZES[name]} bytes, not {argument!r}")
    argument = np.frombuffer(argument.tobytes(), np.uint8)
    threads = cuda.MOST_THREADS if name in UPDATES or name in WAITS else THREADS
    if not (1 <= grid < 2**31 and 1 <= block <= threads):
        raise ValueError(f"{name} cannot be launched with {grid} blocks of {block} threads")
    if name in UPDATES and longest(argument, grid) > block * UPDATES[name].pack:
        raise ValueError(f"{name} has chunks of more packs than the {block} threads of a block")
    if name in WITH_CODES:
        check_blocks(name, argument, grid)
    if name in WAITS and block % 32:
        raise ValueError(f"{name} has a block of {block} threads, which are not whole warps")
    if name == "total" and grid != 1:
        raise ValueError(f"total is for one block, not {grid}")
    wide = launched(library_of(name), name, [np.asarray(argument)], grid, block, seed)
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
    launchers = map(launcher, re.findall(r"__global__ void (\w+)", source))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cpp"
        file.write_text("\n".join([f'#include "{shim()}"', source, *launchers]), encoding="utf-8")
        linked = "-shared", "-Wl,-Bsymbolic"
        subprocess.run([shutil.which("g++"), *FLAGS, *flags, *linked, file, "-o", file.with_suffix(".so")], check=True)
        return ctypes.CDLL(str(file.with_suffix(".so")))


def convert(function, values, dtype):
    """Run a conversion, widen_float16 for one, over an array, and return the results as an array of a dtype."""
    values, results = np.ascontiguousarray(values), np.empty(values.shape, dtype)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (values, results))
    getattr(library(), function)(*pointers, ctypes.c_int64(values.size))
    return results
