"""What ``fastopt info`` prints: what is installed, what this machine can do, and what follows from it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

from . import __version__
from .kernels import extension, pool
from .kernels.tables import ELEMENTS
from .rules import RULES

LIBRARIES = ("numpy", "numba", "cffi", "torch", "cupy")
FEATURES = ("sse2", "avx", "avx2", "fma", "avx512f", "neon", "sve")


def lines() -> list[str]:
    """Describe installation and machine, a fact a line."""
    facts = {
        "fastopt": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        **{name: library(name) for name in LIBRARIES},
        "processor": processor(),
        "threads": f"{pool.get_num_threads()} of {pool.cores()} processors",
        "pool": threads_of_the_pool(),
        **compiled(),
        "GPU": gpu(),
    }
    width = max(map(len, facts))
    return [f"{name:<{width}}  {fact}" for name, fact in facts.items()]


def library(name: str) -> str:
    """Name a library's version, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # without an origin it is a mere folder of that name
        return "not installed"
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # cupy comes as cupy-cuda13x, for one
        distributions = importlib.metadata.packages_distributions().get(name)
        return importlib.metadata.version(distributions[0]) if distributions else f"unknown, from {spec.origin}"


def processor() -> str:
    """Name the processor as the compiler knows it, and the vector instructions that it will use."""
    from llvmlite import binding

    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know them on every system
        return f"{binding.get_host_cpu_name()} (vector instructions unknown)"
    return f"{binding.get_host_cpu_name()} ({', '.join(name for name in FEATURES if features.get(name)) or 'scalar'})"


def threads_of_the_pool() -> str:
    """Say whether the extension is there, and what follows where it is not."""
    if pool.available:
        return "built"
    return (
        f"not there ({extension.error}): all updates run on the calling thread; install where there is a C++ compiler"
    )


def compiled() -> dict[str, str]:
    """Say where kernels are kept, and which are."""
    from .kernels import cache, cpu, schedules

    directory = cache.directory()
    if directory is None:
        return {"cache": "no directory is writable: kernels compile anew in every process (set NUMBA_CACHE_DIR)"}
    kernels = [(name, dtype) for name in RULES for dtype in ELEMENTS]
    there = [f"{name} {dtype}" for name, dtype in kernels if cpu.cached(name, dtype)]
    there += ["schedules"] if schedules.cached() else []
    compiled = f"{len(there)} of {len(kernels) + 1}: {', '.join(there) or 'none yet'}"
    return {"cache": str(directory), "compiled": compiled}


def gpu() -> str:
    """Name the GPUs that CuPy sees, or say what is missing."""
    if library("cupy") == "not installed":
        return "not usable: CuPy is not installed (pip install 'fastopt[cuda13]', or 'fastopt[cuda12]')"
    try:
        import cupy

        runtime = cupy.cuda.runtime
        devices = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
        return ", ".join(devices) or "not usable: CuPy sees no device"
    except Exception as error:  # a broken CuPy raises what it will, and is only reported here
        return f"not usable: CuPy sees no device ({error})"
