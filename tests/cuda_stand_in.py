"""A stand-in for CUDA that runs on the host: memory, streams and graphs, as CuPy shows them; no tests here.

Work waits until its stream is synchronised, so code that reads host memory too late fails a test. What CUDA
refuses while a graph is captured, is refused here. Memory that was given back is poisoned and never used again: a
kernel that is to follow an address into it is a fault, which every later call reports, as CUDA does.
"""

import bisect
import ctypes
import functools
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
from once import once

from fastopt.step.memory import extent

POISON = 0xFF  # not a number, as a float
LIBRARY = "libcuda-stand-in.so"
DRIVER = Path(__file__).with_name("libcuda_stand_in.cpp")


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where CUDA refuses something."""


@functools.cache
def driver():
    """Return the part of CUDA's driver that graphs need, and the file that it was loaded from.

    Its functions are called without releasing Python's lock, so that a destructor that wanted it would never end.
    """

    def build(folder):
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread"]
        subprocess.run([shutil.which("g++"), *flags, str(DRIVER), "-o", folder / LIBRARY], check=True)

    path = str(once("driver", build) / LIBRARY)
    library = ctypes.PyDLL(path)
    for name in ("stand_in_begin", "stand_in_end", "stand_in_destroy", "stand_in_destroy_at_exit"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.stand_in_end.restype = library.stand_in_function.restype = ctypes.c_void_p
    library.stand_in_function.argtypes = [ctypes.c_size_t]
    library.stand_in_launches_by(launched)
    return library, path


FUNCTIONS = {}  # address -> how it is put on a stream


def function(put, size):
    """Return the address of a new function of the driver's, which takes an argument of so many bytes."""
    address = driver()[0].stand_in_function(size)
    FUNCTIONS[address] = put
    return address


@ctypes.CFUNCTYPE(
    ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_uint] * 2, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
)
def launched(address, argument, blocks, threads, device, stream, size):
    """Put a launch that the driver was asked for on its stream; return 0 or an error."""
    stream = STREAMS.get(stream or 0)
    if stream is None or stream.device_id not in (-1, device):
        return 400  # CUDA_ERROR_INVALID_HANDLE
    if stream.capturing and size > 4096:
        return 1  # CUDA_ERROR_INVALID_VALUE: with CUDA it crashed
    try:
        FUNCTIONS[address](ctypes.string_at(argument, size), blocks, threads, device, stream)
    except CUDARuntimeError:
        return 700  # CUDA_ERROR_ILLEGAL_ADDRESS, of an earlier launch
    return 0


class Freed:
    """Freed memory: kept, so that it is never reused, and poisoned."""

    def __init__(self):
        self.starts, self.blocks = [], []

    def add(self, block):
        """Poison some bytes."""
        block[...] = POISON
        start = block.ctypes.data
        at = bisect.bisect(self.starts, start)
        self.starts.insert(at, start)
        self.blocks.insert(at, block)

    def has(self, address):
        """Say whether an address lies in it."""
        at = bisect.bisect(self.starts, address) - 1
        return at >= 0 and address < self.starts[at] + len(self.blocks[at])

    def written(self):
        """Count the blocks into which somebody has written since."""
        return sum(bool((block != POISON).any()) for block in self.blocks)


class Block:
    """Bytes on a device, given back with the last array over them."""

    def __init__(self, size):
        self.bytes = np.full(max(size, 1), POISON, np.uint8)
        self.ptr = self.bytes.ctypes.data
        self.__array_interface__ = self.bytes.__array_interface__

    def __del__(self, ending=sys.is_finalizing):
        if not ending():
            synchronize_all()  # a pool has other uses for the memory once all streams are done with it
            WORLD.freed.add(self.bytes)


class PoolBlock(Block):
    """A pool's memory, which the stream that asked for it may reuse as soon as nothing holds it.

    Work already on that stream runs before that; work that other streams still have with the memory runs too late.
    """

    def __init__(self, size):
        self.stream = get_current_stream()
        super().__init__(size)

    def __del__(self, ending=sys.is_finalizing):
        if not ending():
            self.stream.queue.append((functools.partial(WORLD.freed.add, self.bytes), "given back"))


def placed(array):
    """Return a copy of an array of NumPy in a block of its own, with the same strides."""
    if array.size == 0:
        return np.ndarray(array.shape, array.dtype, np.asarray(PoolBlock(0)))
    start, end = extent(array)
    block = np.asarray(PoolBlock(end - start))
    block[:] = np.frombuffer(ctypes.string_at(start, end - start), np.uint8)
    return np.ndarray(array.shape, array.dtype, block, array.__array_interface__["data"][0] - start, array.strides)


class Memory:
    """What cudaMalloc allocates: full of ones at first, so that nothing can rely on zeros."""

    def __init__(self, size):
        self.block = None
        if any(stream.capturing for stream in STREAMS.values()):
            raise CUDARuntimeError("cudaMalloc while a stream is capturing")
        self.block = Block(size)
        self.ptr = self.block.ptr
        self.device = runtime.getDevice()
        WORLD.allocated += 1

    def __del__(self, ending=sys.is_finalizing):
        if self.block is not None and not ending():  # it was refused
            if any(stream.capturing for stream in STREAMS.values()):
                WORLD.fault = WORLD.fault or CUDARuntimeError("cudaFree while a stream is capturing")
            wait()  # as cudaFree does
            WORLD.allocated -= 1


class MemoryPointer:
    """An address in memory."""

    def __init__(self, memory, offset):
        self.mem, self.offset = memory, offset

    @property
    def ptr(self):
        return self.mem.ptr + self.offset

    def memset_async(self, value, size, stream):
        stream.put(lambda: ctypes.memset(self.ptr, value, size), "memset")

    def copy_from_host_async(self, address, size, stream):
        if stream.is_capturing():
            raise CUDARuntimeError("a copy from memory that the graph would read at each replay")
        data = ctypes.string_at(address, size)  # pageable memory may be read now or later; it is kept by the caller
        stream.put(lambda: ctypes.memmove(self.ptr, ctypes.string_at(address, size), size), "copy")
        assert data is not None

    def copy_to_host(self, address, size):
        wait()
        ctypes.memmove(address, self.ptr, size)


class PinnedMemory:
    """What cudaHostAlloc allocates: page-locked memory of the host."""

    def __init__(self, size):
        if any(stream.capturing for stream in STREAMS.values()):
            raise CUDARuntimeError("cudaHostAlloc while a stream is capturing")
        self.bytes = np.full(max(size, 1), POISON, np.uint8)
        self.ptr, self.size = self.bytes.ctypes.data, size
        WORLD.locked.add(self.ptr)

    def __del__(self, ending=sys.is_finalizing):
        if not ending():  # copies that are still to come would write into it
            WORLD.locked.discard(self.ptr)
            WORLD.freed.add(self.bytes)


def pointer_to(memory, offset):
    """Return an address in page-locked memory, that is read as a buffer: a class of CuPy's."""
    pointer = type("PinnedMemoryPointer", (ctypes.c_char * memory.size,), {}).from_buffer(memory.bytes[offset:])
    pointer.mem, pointer.ptr = memory, memory.ptr + offset
    return pointer


class Graph:
    """What a stream has captured, and the objects that the graph owns."""

    def __init__(self, work, handle):
        self.work, self.handle = work, handle

    def launch(self, stream=None):
        stream = stream or get_current_stream()
        for work, name in self.work:
            stream.put(work, name)

    def __del__(self, ending=sys.is_finalizing):
        if not ending():
            synchronize_all()  # a graph that is destroyed while it runs is destroyed afterwards
            driver()[0].stand_in_destroy(self.handle)


class Stream:
    """Work in order, which waits for `synchronize`."""

    def __init__(self, device=None, ptr=None, non_blocking=True):
        self.device_id = runtime.getDevice() if device is None else device
        self.ptr = len(STREAMS) * 8 if ptr is None else ptr
        self.queue = []
        self.recorded = None
        self.running = False
        STREAMS[self.ptr] = self

    @classmethod
    def from_external(cls, stream):
        version, ptr = stream.__cuda_stream__()
        assert version == 0
        return STREAMS.get(ptr) or cls(runtime.getDevice(), ptr)

    @property
    def capturing(self):
        return self.recorded is not None

    def put(self, work, name):
        report()
        WORLD.log.append((name, self.ptr))
        (self.recorded if self.capturing else self.queue).append((work, name))

    def run(self):
        if not self.running:  # memory freed during the work does not wait for more than it must
            self.running = True
            try:
                while self.queue:
                    self.queue.pop(0)[0]()
            except Exception as error:  # this may be inside of a destructor, where it would be lost
                WORLD.fault = WORLD.fault or error
            finally:
                self.running = False

    def synchronize(self):
        if self.capturing:
            raise CUDARuntimeError("cudaStreamSynchronize while the stream is capturing")
        WORLD.waits += 1
        self.run()
        report()

    def is_capturing(self):
        return self.capturing

    def begin_capture(self):
        if self.ptr == 0:
            raise CUDARuntimeError("the default stream cannot be captured")
        self.recorded = []
        driver()[0].stand_in_begin(self.ptr)

    def end_capture(self):
        work, self.recorded = self.recorded, None
        return Graph(work, driver()[0].stand_in_end(self.ptr))

    def __enter__(self):
        device = runtime.getDevice()
        if self.device_id not in (-1, device):
            raise RuntimeError(f"a stream of device {self.device_id} does not match with device {device}")
        WORLD.streams.append((device, self))
        return self

    def __exit__(self, *exception):
        WORLD.streams.pop()


class Event:
    """A point in time, which comes when its stream gets there."""

    def __init__(self):
        self.at = None

    def record(self, stream=None):
        stream = stream or get_current_stream()
        if stream.capturing:
            raise CUDARuntimeError("an event that a graph records, which has no time")
        self.at = None
        stream.put(self.take, "event")

    def take(self):
        self.at = time.perf_counter()


def get_elapsed_time(start, end):
    """Return the milliseconds between two events, both of which have come."""
    report()
    if start.at is None or end.at is None:
        raise CUDARuntimeError("cudaErrorNotReady: an event that has not come yet")
    return 1e3 * (end.at - start.at)


class Device:
    """A device, as a context."""

    compute_capability = "90"

    def __init__(self, index):
        self.id = index

    def __enter__(self):
        WORLD.devices.append(self.id)
        driver()[0].stand_in_set_device(self.id)
        return self

    def __exit__(self, *exception):
        WORLD.devices.pop()
        driver()[0].stand_in_set_device(WORLD.devices[-1])

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return self.id

    def synchronize(self):
        if any(stream.capturing for stream in STREAMS.values()):
            raise CUDARuntimeError("cudaDeviceSynchronize while a stream is capturing")
        wait()
        report()


def get_current_stream(device_id=None):
    """Return the innermost stream in force on a device: each has its own."""
    device_id = runtime.getDevice() if device_id is None else device_id
    return next((stream for device, stream in reversed(WORLD.streams) if device == device_id), STREAMS[0])


def synchronize_all():
    """Let all streams do their work."""
    for stream in [*STREAMS.values()]:
        stream.run()


def wait():
    """Let all streams do their work in a CUDA call that waits, and count the call."""
    WORLD.waits += 1
    synchronize_all()


def report():
    """Raise a device's earlier fault, from the next call on."""
    if WORLD.fault is not None:
        raise CUDARuntimeError(f"cudaErrorIllegalAddress: {WORLD.fault}")


def follow(name, addresses):
    """Fault if a kernel would follow an address into freed memory."""
    if stale := [address for address in addresses if WORLD.freed.has(address)]:
        raise CUDARuntimeError(f"{name} follows {len(stale)} addresses into memory that was given back")


class runtime:  # noqa: N801 (CuPy's name)
    """CUDA's runtime, with two devices."""

    CUDARuntimeError = CUDARuntimeError
    memcpyDeviceToHost = 2  # noqa: N815 (CUDA's name)
    memcpyDeviceToDevice = 3  # noqa: N815 (CUDA's name)

    @staticmethod
    def getDevice():
        """Return the number of the device in force."""
        return WORLD.devices[-1]

    @staticmethod
    def getDeviceCount():
        return 2

    @staticmethod
    def getDeviceProperties(index):
        return {"name": b"stand-in", "multiProcessorCount": 108, "totalGlobalMem": 2 * 10**10}

    @staticmethod
    def driverGetVersion():
        return WORLD.driver

    @staticmethod
    def runtimeGetVersion():
        return 12090

    @staticmethod
    def memGetInfo():
        return 10**10, 2 * 10**10

    @staticmethod
    def deviceSynchronize():
        Device(runtime.getDevice()).synchronize()

    @staticmethod
    def memcpyAsync(target, source, size, kind, stream):
        if kind not in (runtime.memcpyDeviceToDevice, runtime.memcpyDeviceToHost):
            raise CUDARuntimeError("cudaErrorInvalidMemcpyDirection: only from a device's memory here")
        if (kind == runtime.memcpyDeviceToHost) != (target in WORLD.locked):
            raise CUDARuntimeError("a copy to the host that is not to page-locked memory would wait")

        def work():
            follow("memcpyAsync", [target, source])
            ctypes.memmove(target, source, size)

        STREAMS[stream].put(work, "memcpy")


STREAMS = {}
WORLD = types.SimpleNamespace(
    devices=[0], streams=[], log=[], launches=[], allocated=0, waits=0, freed=Freed(), fault=None, driver=13020,
    nvrtc=(13, 0), locked=set(),
)  # fmt: skip
Stream(-1, ptr=0)


def reset():
    """Forget all streams, and what was put on them, after their work; raise where a device has faulted."""
    synchronize_all()
    fault, written = WORLD.fault, WORLD.freed.written()
    STREAMS.clear()
    Stream(-1, ptr=0)
    WORLD.devices[:] = [0]
    driver()[0].stand_in_set_device(0)
    WORLD.fault, WORLD.freed = None, Freed()
    for record in (WORLD.streams, WORLD.log, WORLD.launches):
        record.clear()
    if fault is not None:
        raise fault
    if written:
        raise CUDARuntimeError(f"{written} blocks of memory were written to after they were given back")


cuda = types.SimpleNamespace(
    Device=Device,
    Event=Event,
    Memory=Memory,
    MemoryPointer=MemoryPointer,
    PinnedMemory=PinnedMemory,
    PinnedMemoryPointer=pointer_to,
    Stream=Stream,
    get_current_stream=get_current_stream,
    get_elapsed_time=get_elapsed_time,
    nvrtc=types.SimpleNamespace(getVersion=lambda: WORLD.nvrtc),
    runtime=runtime,
)
