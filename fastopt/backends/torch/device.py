"""The devices of tensors: the CPU with torch's threads, and GPUs with torch's current stream."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ...extras import require
from ...kernels.tensors import exchange_table
from ...step.cpu import Cpu
from ...step.gpu import Gpu
from ...step.launch import Device
from .threads import THREADS

CPU = Cpu(THREADS)


def cupy_of_torch() -> Any:
    """Import CuPy, for the CUDA that torch was built with."""
    if torch.version.cuda is None:
        raise ValueError("this torch was built without CUDA, and fastopt has no kernels for other GPUs")
    # Choose between the two extras: CuPy brings its own CUDA, which need not be torch's.
    return require("cupy", "cuda12" if int(torch.version.cuda.partition(".")[0]) <= 12 else "cuda13")


class TorchStream:
    """A stream of torch in CUDA's stream protocol."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the protocol's version and the stream's address."""
        return 0, self.pointer


@functools.cache
def gpu_of_torch(index: int) -> Gpu:
    """Return a GPU, with torch's current stream."""
    cupy = cupy_of_torch()

    @functools.cache
    def external(pointer: int) -> Any:
        with cupy.cuda.Device(index):
            return cupy.cuda.Stream.from_external(TorchStream(pointer))

    stream = functools.partial(torch.cuda.current_stream, index)

    def new_number() -> tuple[Any, int]:
        number = torch.empty((), dtype=torch.float64, device=torch.device("cuda", index))
        return number, number.data_ptr()

    return Gpu(cupy, index, lambda: external(stream().cuda_stream), new_number, exchange_table(Tensor))


def device_of(tensor: Tensor) -> Device:
    """Return the device of a tensor."""
    return CPU if tensor.device.type == "cpu" else gpu_of_torch(tensor.device.index)


class AmpState:
    """GradScaler's scale and found_inf on GPUs, which unscale the gradients and may skip the step.

    Parameters
    ----------
    scale : Tensor or None
        Of one element.
    found_inf : Tensor
        Of one element, not 0 where the step is to be skipped.
    """

    def __init__(self, scale: Tensor | None, found_inf: Tensor) -> None:
        self.given = scale, found_inf
        self.held: dict[int, tuple[Tensor | None, Tensor]] = {}

    @classmethod
    def of(cls, factor: float) -> AmpState:
        """Make that of a factor of all gradients that the host knows, in a step that GradScaler does not skip."""
        return cls(torch.tensor(1.0 / factor if factor else math.inf), torch.tensor(0.0))

    def addresses(self, device: Gpu) -> tuple[int, int]:
        """Return the addresses of both on a device, as float32; 0 if there is no scale."""
        there = torch.device("cuda", device.index)
        scale, found_inf = self.given
        if scale is not None:
            scale = scale.to(there, torch.float32, non_blocking=True)
        found_inf = found_inf.to(there, torch.float32, non_blocking=True)
        self.held[device.index] = scale, found_inf
        return 0 if scale is None else scale.data_ptr(), found_inf.data_ptr()

    def on_host(self) -> tuple[float, bool]:
        """Wait for the GPUs; return the factor of all gradients, and whether to skip the step."""
        scale, found_inf = self.given
        return 1.0 if scale is None else 1.0 / float(scale), bool(found_inf != 0)
