"""The chunk table: tensors of any size are cut into pieces of one size, so that a step is one launch.

A tensor with its gradient in the same order is cut into runs. With the gradient in another order, it is cut into
two-dimensional tiles, along the axis that is dense in the parameter and the one that is dense in the gradient; the
kernel gathers a tile of the gradient into the parameter's order while both are in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.reader import Array, address
from ..kernels.tables import CHUNK, LAYOUT

CHUNK_ELEMENTS = 4096  # with its states well inside an L2 cache; 8192 was no faster, and splits less evenly
TILE = 128  # a tile's side; with 64, the runs are too short for the memory's pages, and half as fast
TILE_ELEMENTS = TILE * TILE
WHOLE_ROW = 2 * TILE  # rows that are not longer are not cut

Table = npt.NDArray[Any]


@dataclass(frozen=True)
class Strides:
    """How a gradient lies in relation to its parameter's storage order.

    Axes run from slow to fast in the parameter; neighbouring axes are merged if both arrays allow it.

    Attributes
    ----------
    shape, param : tuple of int
        Length of each axis, and the parameter's stride along it in elements.
    grad : tuple of int
        The gradient's strides in bytes.
    """

    shape: tuple[int, ...]
    param: tuple[int, ...]
    grad: tuple[int, ...]

    @classmethod
    def of(cls, gradient: Array) -> Strides:
        """Describe a gradient, viewed in its parameter's storage order."""
        shape: list[int] = []
        grad: list[int] = []
        for length, stride in zip(gradient.shape, gradient.strides, strict=True):
            if length == 1:
                continue
            if shape and grad[-1] == stride * length:
                shape[-1], grad[-1] = shape[-1] * length, stride
            else:
                shape.append(length)
                grad.append(stride)
        if not shape:
            shape, grad = [1], [gradient.itemsize]
        param = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(tuple(shape), tuple(param), tuple(grad))


def located(gradient: Array) -> tuple[int, Strides | None]:
    """Return the address of a gradient in its parameter's storage order, and its strides if these are others."""
    dense = gradient.flags.c_contiguous and gradient.flags.aligned
    return address(gradient), None if dense else Strides.of(gradient)


def dense_chunks(sizes: Sequence[int], elements: int) -> Table:
    """Cut tensors of these sizes into runs of so many elements; the i-th size belongs to row i of the tensor table."""
    size = np.asarray(sizes, np.int64)
    counts = -(-size // elements)
    chunks = np.zeros(int(counts.sum()), CHUNK)
    chunks["tensor"] = np.repeat(np.arange(len(size)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    chunks["rows"] = 1
    chunks["offset"] = chunks["grad_offset"] = (np.arange(len(chunks)) - first) * elements
    chunks["length"] = np.minimum(np.repeat(size, counts) - chunks["offset"], elements)
    return chunks


def tiles(tensor: int, strides: Strides) -> tuple[Table, Table]:
    """Cut one tensor into tiles: its chunks, and the layout that its row of the tensor table points to."""
    inner = len(strides.shape) - 1
    across = min(range(inner + 1), key=lambda axis: abs(strides.grad[axis]))
    if across == inner and inner > 0 and strides.shape[inner] < WHOLE_ROW:
        across = inner - 1  # short rows: take several at once
    steps = [1] * inner + [strides.shape[inner]]  # how far apart tiles begin along each axis
    if across == inner:
        steps[inner] = TILE_ELEMENTS
    else:
        steps[inner] = min(strides.shape[inner], TILE if strides.shape[inner] > WHOLE_ROW else WHOLE_ROW)
        steps[across] = TILE_ELEMENTS // steps[inner]

    starts = np.meshgrid(
        *(np.arange(0, length, step) for length, step in zip(strides.shape, steps, strict=True)), indexing="ij"
    )
    chunks = np.zeros(starts[0].size, CHUNK)
    chunks["tensor"] = tensor
    chunks["rows"] = 1
    chunks["length"] = np.minimum(strides.shape[inner] - starts[inner], steps[inner]).ravel()
    for start, param, grad in zip(starts, strides.param, strides.grad, strict=True):
        chunks["offset"] += start.ravel() * param
        chunks["grad_offset"] += start.ravel() * grad
    layout = np.zeros((), LAYOUT)
    layout["grad_item"] = strides.grad[inner]
    if across != inner:
        chunks["rows"] = np.minimum(strides.shape[across] - starts[across], steps[across]).ravel()
        layout["param_row"] = strides.param[across]
        layout["grad_row"] = strides.grad[across]
    return chunks, layout


def chunk_table(
    sizes: Sequence[int], strided: dict[int, Strides], elements: int = CHUNK_ELEMENTS
) -> tuple[Table, Table]:
    """Cut all tensors: return their chunks, and a layout for each row (used if ``strided`` has that row)."""
    dense = [0 if row in strided else size for row, size in enumerate(sizes)]
    parts = [dense_chunks(dense, elements)]
    layouts = np.zeros(len(sizes), LAYOUT)
    for row, strides in strided.items():
        part, layouts[row] = tiles(row, strides)
        parts.append(part)
    return np.concatenate(parts), layouts
