"""Times launches of an empty kernel by the size of its argument, in which a step's rows and addresses travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from fastopt.kernels import cuda
from fastopt.kernels.reader import address
from fastopt.kernels.repetition import Repetition
from fastopt.kernels.stream import Stream

from fastopt.step.plan import NO_THREADS

from ..contenders import Step
from ..measure import Pace, measure
from ..rounds import Rounds, reasons
from .contenders import MOST_STEPS, Say
from .device import Device
from .figures import Launch
from .measure import queued

SOURCE = """
struct Argument {
    long long words[WORDS];
};
extern "C" __global__ void nothing(const __grid_constant__ Argument argument) {}
"""
OPTIONS = ("-std=c++17",)
THREADS = 128  # of the one block

CUPY, EXTENSION = "cupy", "extension"  # who launches the kernel
LEFT_OUT = "launches by the extension are left out: it is not there, or the driver lacks a function"


class ByExtension:
    """A launch as the extension makes one, by the driver's function; it holds the argument.

    Parameters
    ----------
    kernel : cupy.RawKernel
    argument : array
        Of one element, which the kernel gets a copy of.
    stream : Stream
    """

    def __init__(self, kernel: Any, argument: npt.NDArray[Any], stream: Stream) -> None:
        self.argument = argument
        at = address(argument)
        fields = address(stream.gpu), stream.function(kernel), at, at, 0, 1, THREADS  # there are no rows to write
        self.take = Repetition([], [fields], [stream], np.zeros(0, np.int64), NO_THREADS).take

    def __call__(self) -> None:
        """Launch the kernel."""
        if not self.take(None):
            raise RuntimeError("the driver has refused a launch of an empty kernel")


def sizes(cupy: Any) -> list[int]:
    """Return the bytes of the arguments that updates are compiled for, as far as they can be launched here."""
    return [size for size in cuda.SIZES if size <= cuda.largest_argument(cupy)]


def empty(cupy: Any, size: int) -> Any:
    """Compile the kernel for an argument of so many bytes."""
    return cupy.RawModule(code=SOURCE.replace("WORDS", str(size // 8)), options=OPTIONS).get_function("nothing")


def launchers(device: Device, say: Say) -> Iterator[tuple[str, int, Step]]:
    """Yield launches of the kernel: by whom, the bytes of the argument, and a function that launches it."""
    cupy = device.cupy
    stream = Stream(cupy, device.index, cupy.cuda.get_current_stream)
    if not len(stream.functions):
        say(LEFT_OUT)
    for size in sizes(cupy):
        kernel, argument = empty(cupy, size), np.zeros(1, np.dtype((np.void, size)))
        yield CUPY, size, partial(kernel, (1,), (THREADS,), (argument,))
        if len(stream.functions):
            yield EXTENSION, size, ByExtension(kernel, argument, stream)


def launches(device: Device, pace: Pace, say: Say) -> Sequence[Launch]:
    """Measure all launches, which take turns."""
    contestants, about = dict[str, Step](), dict[str, tuple[str, int]]()
    for who, size, launch in launchers(device, say):
        name = f"{who}, {size}"
        contestants[name], about[name] = launch, (who, size)
        launch()  # loads the kernel
    costs = measure(contestants, queued(device, dict.fromkeys(contestants, MOST_STEPS)), pace)
    on_gpu = Rounds([{name: cost.gpu for name, cost in round_.items()} for round_ in costs])
    on_host = Rounds([{name: cost.host for name, cost in round_.items()} for round_ in costs])
    found: list[Launch] = []
    for name, (who, size) in about.items():
        gpu, host = on_gpu.seconds(name), on_host.seconds(name)
        found.append(
            {
                "implementation": who,
                "bytes": size,
                "gpu_seconds": gpu.value,
                "host_seconds": host.value,
                "unstable": reasons(gpu_seconds=gpu, host_seconds=host),
            }
        )
    return found
