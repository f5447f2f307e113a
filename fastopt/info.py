"""What ``fastopt info`` prints: the installation, and what this machine can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import textwrap

from . import __version__, rules
from .kernels import extension, limits, pool
from .kernels.dtypes import DTYPES

LIBRARIES = ("numpy", "numba", "cffi", "torch", "cupy")
WIDTH = 100
FEATURES = ("sse2", "avx", "avx2", "fma", "avx512f", "neon", "sve")


def lines() -> list[str]:
    """Describe installation and machine, one fact per line; long facts are wrapped."""
    facts = {
        "fastopt": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        **{name: library(name) for name in LIBRARIES},
        "processor": processor(),
        "threads": f"{pool.get_num_threads()} of {os.cpu_count()} processors{quota()}",
        "memory": memory(),
        "pool": threads_of_the_pool(),
        **compiled(),
        "GPU": gpu(),
    }
    width = max(map(len, facts))
    return [line for name, fact in facts.items() for line in wrapped(f"{name:<{width}}  ", fact)]


def wrapped(start: str, fact: str) -> list[str]:
    """Wrap a fact into lines with a hanging indent; paths and names are not broken."""
    return textwrap.wrap(
        fact,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def library(name: str) -> str:
    """Return a library's version, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # without an origin it is only a folder of that name
        return "not installed"
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # CuPy's distribution is called cupy-cuda13x, for instance
        distributions = importlib.metadata.packages_distributions().get(name)
        return importlib.metadata.version(distributions[0]) if distributions else f"unknown, from {spec.origin}"


def processor() -> str:
    """Return the compiler's name of the processor, and the vector instructions that it will use."""
    from llvmlite import binding

    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot query them on every system
        return f"{binding.get_host_cpu_name()} (vector instructions unknown)"
    return f"{binding.get_host_cpu_name()} ({', '.join(name for name in FEATURES if features.get(name)) or 'scalar'})"


def threads_of_the_pool() -> str:
    """Say whether the extension was built, and what that means if it was not."""
    if pool.available:
        return "built"
    return (
        f"not there ({extension.error}): all updates run on the calling thread, and steps in torch are slow: for a "
        "small network about 240 µs instead of 6, where torch's default takes 50; install again with a C++ compiler"
    )


def quota() -> str:
    """Say which limits keep the process from using all processors."""
    said = []
    if (allowed := limits.affinity()) != os.cpu_count():
        said.append(f"{allowed} allowed by affinity")
    if (quota := limits.cpu_quota()) is not None:
        said.append(f"a quota of {quota:g}")
    return f" ({', '.join(said)})" if said else ""


def memory() -> str:
    """Say how much memory the machine has, and how much of it the process may use."""
    there, limit = limits.physical_memory(), limits.memory_limit()
    if there is None:
        return "unknown"
    limited = f" ({limit / 1e9:.1f} GB allowed to this process)" if limit is not None and limit < there else ""
    return f"{there / 1e9:.1f} GB{limited}"


def compiled() -> dict[str, str]:
    """Say where compiled kernels are kept, and which ones are there."""
    from .kernels import cache

    directory = cache.directory()
    if directory is None:
        return {"cache": "no directory is writable: kernels compile anew in every process (set NUMBA_CACHE_DIR)"}
    found = kept()
    there = [key for key, is_kept in found.items() if is_kept]
    dtypes_of: dict[str, tuple[str, ...]] = {}
    for name, *dtype in there:
        dtypes_of[name] = (*dtypes_of.get(name, ()), *dtype)
    by_dtypes: dict[tuple[str, ...], list[str]] = {}  # the dtypes that rules are compiled for -> these rules
    for name, dtypes in dtypes_of.items():
        by_dtypes.setdefault(dtypes, []).append(name)
    parts = [", ".join(names) + (f" in {', '.join(dtypes)}" if dtypes else "") for dtypes, names in by_dtypes.items()]
    return {"cache": str(directory), "compiled": f"{len(there)} of {len(found)}: {'; '.join(parts) or 'none yet'}"}


def kept() -> dict[tuple[str, ...], bool]:
    """Say of all that is ever compiled whether the cache has it: each rule for each dtype, and the schedules."""
    from .kernels import cpu, schedules

    found: dict[tuple[str, ...], bool] = {}
    found.update({(name, dtype): cpu.cached(name, dtype) for name in rules.RULES for dtype in DTYPES})
    return {**found, ("schedules",): schedules.cached()}


def gpu() -> str:
    """Return the names of the GPUs that CuPy sees, or say what is missing."""
    if library("cupy") == "not installed":
        return "not usable: CuPy is not installed (pip install 'fastopt[cuda13]', or 'fastopt[cuda12]')"
    try:
        import cupy

        runtime = cupy.cuda.runtime
        devices = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
        return ", ".join(devices) or "not usable: CuPy sees no device"
    except Exception as error:  # a broken CuPy may raise anything; here it is only reported
        return f"not usable: CuPy sees no device ({error})"
