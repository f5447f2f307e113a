"""Where tensors lie: on the CPU, where torch's threads work, or on a GPU, where work goes on torch's current stream."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...extras import require
from ...step.cpu import Cpu
from ...step.gpu import Gpu
from ...step.launch import Device
from .threads import THREADS

CPU = Cpu(THREADS)


def cupy_of_torch() -> Any:
    """Import CuPy, for the CUDA that torch was built with."""
    if torch.version.cuda is None:
        raise ValueError("this torch was built without CUDA, and fastopt has no kernels for other GPUs")
    # Of the two extras: CuPy brings its own CUDA, which need not be torch's.
    return require("cupy", "cuda12" if int(torch.version.cuda.partition(".")[0]) <= 12 else "cuda13")


class TorchStream:
    """A stream of torch, for whoever asks by CUDA's protocol of streams."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the protocol's version and the stream's address."""
        return 0, self.pointer


@functools.cache
def gpu_of_torch(index: int) -> Gpu:
    """Return a device as torch uses it."""
    cupy = cupy_of_torch()

    @functools.cache
    def external(pointer: int) -> Any:
        with cupy.cuda.Device(index):
            return cupy.cuda.Stream.from_external(TorchStream(pointer))

    return Gpu(cupy, index, lambda: external(torch.cuda.current_stream(index).cuda_stream))


def device_of(tensor: Tensor) -> Device:
    """Return where a tensor lies."""
    return CPU if tensor.device.type == "cpu" else gpu_of_torch(tensor.device.index)


class AmpState:
    """What GradScaler leaves to the step, as it lies on GPUs: 1 over its scale is the factor of all gradients.

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

    def addresses(self, device: Gpu) -> tuple[int, int]:
        """Return where the two lie on a device, as float32; 0 where there is no scale."""
        there = torch.device("cuda", device.index)
        scale, found_inf = self.given
        if scale is not None:
            scale = scale.to(there, torch.float32, non_blocking=True)
        found_inf = found_inf.to(there, torch.float32, non_blocking=True)
        self.held[device.index] = scale, found_inf
        return 0 if scale is None else scale.data_ptr(), found_inf.data_ptr()

    def on_host(self) -> tuple[float, bool]:
        """Wait for the devices, and return the factor of all gradients, and whether the step is skipped."""
        scale, found_inf = self.given
        return 1.0 if scale is None else 1.0 / float(scale), bool(found_inf != 0)
