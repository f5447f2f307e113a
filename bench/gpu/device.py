"""One GPU as the benchmark uses it: events, a kernel that waits, copies, graphs, and the device's description.

Everything is timed on the device's default stream, which is the current one of both torch and CuPy, as in most
trainings. Callers check that CuPy is installed and pass it in, and torch too, or None if it has no CUDA.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fastopt.extras import MissingExtraError

from ..contenders import Step

WARM_UP = 2  # steps on the capturing stream before the capture

# Keeps the stream busy for a given time, so that everything enqueued meanwhile then runs without a gap.
WAIT = r"""
extern "C" __global__ void wait(long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < (unsigned long long)nanoseconds);
}
"""
LONGEST_WAIT = 0.2  # seconds


class Cost(NamedTuple):
    """The cost of a step: seconds of the GPU, and of the host that enqueues it."""

    gpu: float
    host: float


class Described(TypedDict):
    """A device; `memory` in bytes, `torch_runtime` None without torch."""

    gpu: str
    multiprocessors: int
    memory: int
    driver: str
    runtime: str
    torch_runtime: str | None


class Device:
    """The current device.

    Parameters
    ----------
    cupy : module
    torch : module or None
    """

    def __init__(self, cupy: Any, torch: Any) -> None:
        self.cupy, self.torch = cupy, torch
        self.in_torch = "cuda"  # torch's name of the current device
        self.index = int(cupy.cuda.runtime.getDevice())
        self.wait = cupy.RawKernel(WAIT, "wait")

    def synchronize(self) -> None:
        """Wait for everything enqueued, on all streams."""
        self.cupy.cuda.runtime.deviceSynchronize()

    def cost(self, step: Step, count: int, hold: float) -> Cost:
        """Take `count` steps in a row without waiting for the GPU, and return the cost of one.

        Parameters
        ----------
        step : callable
        count : int
        hold : float
            How many seconds the GPU waits first. All steps are then enqueued when it begins, and its time includes none
            of the host's. The queue of launches must have room for all of them.
        """
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        self.synchronize()
        self.wait((1,), (1,), (np.int64(1e9 * min(hold, LONGEST_WAIT)),))
        start.record()
        begin = time.perf_counter()
        for _ in repeat(None, count):
            step()
        host = time.perf_counter() - begin
        end.record()
        self.synchronize()
        return Cost(self.cupy.cuda.get_elapsed_time(start, end) / 1e3 / count, host / count)

    def copier(self, traffic: int) -> Step:
        """Make a copy within the device's memory that reads and writes `traffic` bytes together."""
        cupy, size = self.cupy, traffic // 2
        # The two arrays live as long as the step.
        source, target = (cupy.zeros(size, np.uint8) for _ in range(2))
        kind = cupy.cuda.runtime.memcpyDeviceToDevice
        stream = cupy.cuda.get_current_stream().ptr

        def copy() -> None:
            cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.data.ptr, size, kind, stream)

        return copy

    def free_memory(self) -> int:
        """Free the unused memory of the pools, and return how many bytes are free then."""
        gc.collect()  # torch's optimizers are in reference cycles
        self.synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()
        if self.torch is not None:
            self.torch.cuda.empty_cache()
        return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def captured_by_cupy(self, step: Step) -> Step:
        """Capture a step of CuPy's in a graph, and return a function that replays it."""
        stream = self.cupy.cuda.Stream(non_blocking=True)
        self.synchronize()
        with stream:
            for _ in range(WARM_UP):
                step()
            stream.synchronize()
            stream.begin_capture()
            step()
            graph = stream.end_capture()
        self.synchronize()
        launch: Step = graph.launch
        return launch

    def captured_by_torch(self, step: Step) -> Step:
        """Capture a step of torch's in a graph, and return a function that replays it."""
        cuda = self.torch.cuda
        stream, graph = cuda.Stream(), cuda.CUDAGraph()
        self.synchronize()
        with cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        self.synchronize()
        with cuda.graph(graph, stream=stream):
            step()
        self.synchronize()
        replay: Step = graph.replay
        return replay

    def described(self) -> Described:
        """Describe the device, the driver and each library's CUDA version."""
        runtime = self.cupy.cuda.runtime
        properties = runtime.getDeviceProperties(self.index)
        name = properties["name"]
        return {
            "gpu": name.decode() if isinstance(name, bytes) else name,
            "multiprocessors": int(properties["multiProcessorCount"]),
            "memory": int(properties["totalGlobalMem"]),
            "driver": version(runtime.driverGetVersion()),
            "runtime": version(runtime.runtimeGetVersion()),
            "torch_runtime": self.torch.version.cuda if self.torch is not None else None,
        }


def version(number: int) -> str:
    """Write a CUDA version as people do: 13020 is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def open_device(say: Callable[[str], object]) -> Device:
    """Find the GPU, and the libraries that can use it.

    Parameters
    ----------
    say : callable
        Gets messages about missing libraries that are not required.

    Raises
    ------
    MissingExtraError
        Without CuPy.
    OSError
        Without a GPU.
    """
    if importlib.util.find_spec("cupy") is None:
        raise MissingExtraError(
            "cupy is not installed: pip install 'fastopt[cuda13]', or 'fastopt[cuda12]' where the driver is of CUDA 12"
        )
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise OSError(f"there is no GPU that CuPy can use: {error}") from error
    if count == 0:
        raise OSError("there is no GPU that CuPy can use")
    return Device(cupy, torch_with_cuda(say))


def torch_with_cuda(say: Callable[[str], object]) -> Any:
    """Import torch if it can use a GPU; else say what is left out, and return None."""
    if importlib.util.find_spec("torch") is None:
        say("torch is not installed: its optimizers, and fastopt.torch, are left out")
        return None
    import torch

    if not torch.cuda.is_available():
        say("torch cannot use a GPU here: its optimizers, and fastopt.torch, are left out")
        return None
    return torch
