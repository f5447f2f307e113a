"""Tensors with more elements than a 32-bit integer counts: tables, reading, kernels."""

import numpy as np
import pytest
import torch
from fastopt.kernels import extension, tables
from torch.nn import Parameter

import fastopt.torch as subject
from fastopt.backends.torch import stepper as steppers
from fastopt.step import cpu
from fastopt.step.chunks import CHUNK_ELEMENTS, TILE_ELEMENTS, Strides, chunk_table
from fastopt.step.launch import Variant

BEYOND = 2**31 + 5
NARROW = {("CHUNK", "tensor"), ("CHUNK", "rows"), ("SHAPE", "device_type"), ("SHAPE", "device_id")}  # counts of few
WIDE = {
    "largest": np.float64,
    **dict.fromkeys(("power", "limit", "gain"), np.float64),
}  # which are neither
NUMBERS = {("JOB", "coefficient"), ("STEP", "scale")}  # elsewhere these are addresses


def test_every_offset_and_length_has_64_bits():
    """Of every table, and of its struct in C; what has 32 counts tensors and the rows of a tile."""
    tables_of_c = "TENSOR LAYOUT CHUNK JOB GPU_JOB SHAPE EXTENTS WATCHED GRADIENTS LAUNCH DRIVER GPU GPU_LAUNCH STEP"
    for name in tables_of_c.split():
        dtype = getattr(tables, name)
        for field in dtype.names:
            width = np.float64 if (name, field) in NUMBERS else WIDE.get(field, np.int64)
            assert dtype[field].base == (np.int32 if (name, field) in NARROW else width), (
                name,
                field,
            )
        struct = extension.ffi.typeof(f"fastopt_{name.lower()}")
        fields = [(field, at.offset, extension.ffi.sizeof(at.type)) for field, at in struct.fields]
        assert fields == [(field, dtype.fields[field][1], dtype[field].itemsize) for field in dtype.names]
        assert extension.ffi.sizeof(struct) == dtype.itemsize


@pytest.mark.parametrize("size", [BEYOND, 2**32 + 4097, 2**33])
def test_chunks_beyond_32_bits(size):
    """Runs that follow each other without a gap, behind a small tensor and before another one."""
    chunks, _ = chunk_table([7, size, 5], {})
    mine = chunks[chunks["tensor"] == 1]
    assert len(chunks) == len(mine) + 2
    assert (mine["offset"] == mine["grad_offset"]).all()
    assert mine["offset"][0] == 0
    assert (mine["offset"][:-1] + mine["length"][:-1] == mine["offset"][1:]).all()
    assert mine["offset"][-1] + mine["length"][-1] == size
    assert 0 < mine["length"].min() <= mine["length"].max() <= CHUNK_ELEMENTS


STRIDED = {
    "transposed": ((2**17, 2**16), (8, 8 * 2**17)),
    "transposed, narrow": ((2**31 + 5, 3), (8, 8 * (2**31 + 5))),
    "axes reversed": ((2**11, 2**11, 2**11), (8, 2**14, 2**25)),
    "every second": ((BEYOND,), (16,)),
    "far apart": ((5, 3), (2**40, 2**33)),
    "backwards": ((2**16, 2**16 + 1), (-8 * (2**16 + 1), -8)),
    "one number for all": ((2**16, 2**16 + 1), (0, 0)),
}


@pytest.mark.parametrize("case", STRIDED)
def test_tiles_beyond_32_bits(case):
    """Every element is in one tile, and its gradient where the strides say; no memory is touched for that."""
    shape, strides = STRIDED[case]
    gradient = np.lib.stride_tricks.as_strided(np.zeros(1), shape, strides)
    size = int(np.prod(shape, dtype=np.int64))
    chunks, layouts = chunk_table([size], {0: Strides.of(gradient)})
    rows, length, layout = chunks["rows"].astype(np.int64), chunks["length"], layouts[0]
    assert (rows * length).sum() == size
    assert (rows * length).max() <= TILE_ELEMENTS
    for row, item in ((0 * rows, 0 * length), (rows - 1, 0 * length), (0 * rows, length - 1), (rows - 1, length - 1)):
        index = chunks["offset"] + row * layout["param_row"] + item
        assert index.min() >= 0
        assert index.max() < size
        place = sum(at * stride for at, stride in zip(np.unravel_index(index, shape), strides, strict=True))
        np.testing.assert_array_equal(
            chunks["grad_offset"] + row * layout["grad_row"] + item * layout["grad_item"], place
        )


@pytest.fixture
def far(tmp_path):
    """A tensor of more elements than 32 bits count, in a file of which only what is written takes up room."""
    return torch.from_numpy(np.memmap(tmp_path / "far", np.float32, "w+", shape=(2 * (BEYOND + 2**16),)))


@pytest.mark.parametrize("table", [True, False])
def test_tensors_beyond_32_bits_are_read(far, table, monkeypatch):
    """Their shapes and ends are known: a gradient that lies so is read, one that meets the last elements is refused."""
    if not table:
        monkeypatch.setattr(steppers, "TABLE", 0)
    p = Parameter(far[:BEYOND])
    optimizer = subject.SGD([p], lr=1.0)
    stepper = optimizer._stepper
    p.grad = far[BEYOND : 2 * BEYOND]
    assert stepper.read() == (0 if steppers.TABLE else 1)
    assert list(stepper.watch.gradients) == [p.grad]
    assert not steppers.TABLE or stepper.watch.found.tolist() == [p.grad.data_ptr(), 0]
    p.grad = far[BEYOND - 3 : 2 * BEYOND - 3]
    assert stepper.read() == 1
    version = p._version
    assert_raises_overlap(optimizer)
    p.grad = far[1 : BEYOND + 1]
    assert_raises_overlap(optimizer)
    assert p._version == version
    stepper.watch.release()


def assert_raises_overlap(optimizer):
    """Assert that a step is refused for it."""
    with pytest.raises(ValueError, match=r"gradient of parameter 0 overlaps parameter 0"):
        optimizer.step()


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_reach_beyond_32_bits(dtype, strided, far):
    """The last chunk of a launch, run by itself, changes just its elements, by the gradients that belong to them."""
    shape = 2**16, 2**15 + 1
    size = shape[0] * shape[1]
    memory = far.view(dtype)
    p, g = memory[:size], memory[size : 2 * size].view(shape)
    launch = cpu.CpuLaunch(Variant("sgd", str(dtype).removeprefix("torch.")), [size])
    if strided:
        g = memory[size : 2 * size].view(shape[::-1]).T
        strides = [stride * g.itemsize for stride in g.stride()]
        launch.cut({0: Strides.of(np.lib.stride_tricks.as_strided(np.zeros(1, f"V{g.itemsize}"), shape, strides))})
    launch.addresses[0, :2] = p.data_ptr(), g.data_ptr()
    launch.hypers[0, :3] = 1.0, 0.0, 1.0
    chunk, layout = launch.chunks[-1], launch.layouts[0]
    starts = chunk["offset"] + np.arange(chunk["rows"]) * layout["param_row"]
    tile = torch.from_numpy((starts[:, None] + np.arange(chunk["length"])).ravel())
    values = (torch.arange(len(tile)) % 64).to(dtype)
    p[tile], p[tile.min() - 1] = 100.0, 100.0
    g[tile // shape[1], tile % shape[1]] = values
    launch.kernel.ctypes(launch.job.ctypes.data, launch.count - 1, launch.count, 0)
    assert torch.equal(p[tile], 100.0 - values)
    assert p[tile.min() - 1] == 100.0
    assert tile.max() == size - 1
