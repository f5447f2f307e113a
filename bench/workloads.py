"""The workloads: parameter shapes of real models, from the smallest to the largest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]

ITEMSIZE = 4
SHARE_OF_MEMORY = 0.8  # of the machine's memory, for a workload
LINE = 64  # bytes of a cache line; torch aligns its tensors to it, NumPy does not


@dataclass(frozen=True)
class Workload:
    """The float32 parameters of a model.

    Attributes
    ----------
    name, title : str
        The short name for files, and the long one for people.
    shapes : tuple of tuple of int
        One per parameter tensor, in the model's order.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        """Count the parameters, over all tensors."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass
class Arrays:
    """Parameters and gradients for one workload; contenders may share them."""

    params: list[Array]
    grads: list[Array]

    @classmethod
    def draw(cls, workload: Workload, seed: int = 0) -> Arrays:
        """Fill arrays with numbers that stay finite and normal over any number of steps."""
        rng = np.random.default_rng(seed)
        params = [aligned(shape) for shape in workload.shapes]
        grads = [aligned(shape) for shape in workload.shapes]
        for array in params + grads:
            rng.standard_normal(dtype=np.float32, out=array)
        return cls(params, grads)

    def copy(self) -> Arrays:
        """Return the same numbers in new arrays."""
        return Arrays([like(param) for param in self.params], [like(grad) for grad in self.grads])


def aligned(shape: Shape) -> Array:
    """Allocate with torch's alignment, so that no library has better memory than another."""
    size = math.prod(shape) * 4
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(np.float32).reshape(shape)


def zeros(shape: Shape) -> Array:
    """Allocate zeros in aligned memory."""
    array = aligned(shape)
    array[...] = 0
    return array


def like(array: Array) -> Array:
    """Copy an array into aligned memory."""
    copy = aligned(array.shape)
    copy[...] = array
    return copy


def dense(inputs: int, outputs: int) -> list[Shape]:
    """Return the shapes of a fully connected layer: weights and bias."""
    return [(outputs, inputs), (outputs,)]


def mlp() -> list[Shape]:
    """Return the shapes of a network for the California housing data: eight inputs, two hidden layers of 64."""
    return dense(8, 64) + dense(64, 64) + dense(64, 1)


def convolution(inputs: int, outputs: int, side: int) -> list[Shape]:
    """Return the shapes of a convolution's weights, and of the scale and shift of the batch norm after it."""
    return [(outputs, inputs, side, side), (outputs,), (outputs,)]


def resnet50() -> list[Shape]:
    """Return the shapes of ResNet-50 for ImageNet: four stages of bottleneck blocks (He et al., 2016)."""
    shapes = convolution(3, 64, 7)
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += convolution(inputs, width, 1) + convolution(width, width, 3) + convolution(width, 4 * width, 1)
            if block == 0:  # the shortcut needs the stage's new shape
                shapes += convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    return shapes + dense(inputs, 1000)


def gpt2() -> list[Shape]:
    """Return the shapes of GPT-2 124M: twelve transformer blocks of width 768 (Radford et al., 2019)."""
    width = 768
    norm: list[Shape] = [(width,), (width,)]
    block = norm + dense(width, 3 * width) + dense(width, width) + norm + dense(width, 4 * width)
    block += dense(4 * width, width)
    return [(50257, width), (1024, width)] + 12 * block + norm  # the output layer shares the first array


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlp", "MLP 8-64-64-1", tuple(mlp())),
        Workload("tensors_2000", "2,000 tensors of 64", ((64,),) * 2000),
        Workload("tensor_300k", "one tensor of 300,000", ((300_000,),)),
        Workload("resnet50", "ResNet-50", tuple(resnet50())),
        Workload("gpt2", "GPT-2 124M", tuple(gpt2())),
    )
}

# Steps in torch have one more, whose tensors are distributed as in FSDP2, over one process: it is mostly overhead.
DISTRIBUTED = Workload("dtensors_500", "500 DTensors of 16 x 16", ((16, 16),) * 500)
TITLED = {**WORKLOADS, DISTRIBUTED.name: DISTRIBUTED}


def title(name: str, workloads: Mapping[str, Workload] = TITLED) -> str:
    """Return a workload's title for tables and charts; a suffix after its name is kept."""
    of, comma, mode = name.partition(", ")
    return (workloads[of].title if of in workloads else of) + comma + mode
