"""A stand-in for CUDA whose devices are the host: memory, streams and graphs, as CuPy shows them; no tests here.

Work waits until its stream is synchronised, so that whatever reads memory of the host too late fails a test. What CUDA
refuses while a graph is captured, is refused here.
"""

import ctypes
import types

import numpy as np


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where CUDA refuses something."""


class Memory:
    """Memory on a device: full of ones at first, so that nothing can rely on zeros."""

    def __init__(self, size):
        self.bytes = np.zeros(0, np.uint8)
        if any(stream.capturing is not None for stream in STREAMS.values()):
            raise CUDARuntimeError("cudaMalloc while a stream is capturing")
        self.bytes = np.full(size, 255, np.uint8)
        self.ptr = self.bytes.ctypes.data
        self.device = runtime.getDevice()
        WORLD.allocated += 1

    def __del__(self):
        WORLD.allocated -= len(self.bytes) > 0  # unless it was refused
        synchronize_all()  # as cudaFree does
        self.bytes[...] = 255


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
        ctypes.memmove(address, self.ptr, size)


class Graph:
    """What a stream has recorded."""

    def __init__(self, work):
        self.work = work

    def launch(self, stream=None):
        stream = stream or get_current_stream()
        for work, name in self.work:
            stream.put(work, name)


class Stream:
    """Work in order, which waits for `synchronize`."""

    def __init__(self, device=None, ptr=None, non_blocking=True):
        self.device_id = runtime.getDevice() if device is None else device
        self.ptr = len(STREAMS) * 8 if ptr is None else ptr
        self.queue = []
        self.capturing = None
        self.running = False
        STREAMS[self.ptr] = self

    @classmethod
    def from_external(cls, stream):
        version, ptr = stream.__cuda_stream__()
        assert version == 0
        return STREAMS.get(ptr) or cls(runtime.getDevice(), ptr)

    def put(self, work, name):
        WORLD.log.append((name, self.ptr))
        (self.queue if self.capturing is None else self.capturing).append((work, name))

    def run(self):
        if not self.running:  # what is given back while work is done waits no more than it must
            self.running = True
            try:
                while self.queue:
                    self.queue.pop(0)[0]()
            finally:
                self.running = False

    def synchronize(self):
        if self.capturing is not None:
            raise CUDARuntimeError("cudaStreamSynchronize while the stream is capturing")
        self.run()

    def is_capturing(self):
        return self.capturing is not None

    def begin_capture(self):
        if self.ptr == 0:
            raise CUDARuntimeError("the default stream cannot be captured")
        self.capturing = []

    def end_capture(self):
        work, self.capturing = self.capturing, None
        return Graph(work)

    def __enter__(self):
        device = runtime.getDevice()
        if self.device_id not in (-1, device):
            raise RuntimeError(f"a stream of device {self.device_id} does not match with device {device}")
        WORLD.streams.append((device, self))
        return self

    def __exit__(self, *exception):
        WORLD.streams.pop()


class Device:
    """A device, as a context."""

    compute_capability = "90"

    def __init__(self, index):
        self.id = index

    def __enter__(self):
        WORLD.devices.append(self.id)
        return self

    def __exit__(self, *exception):
        WORLD.devices.pop()

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return self.id

    def synchronize(self):
        if any(stream.capturing is not None for stream in STREAMS.values()):
            raise CUDARuntimeError("cudaDeviceSynchronize while a stream is capturing")
        WORLD.waits += 1
        synchronize_all()


def get_current_stream(device_id=None):
    """Return the innermost stream in force on a device: each has its own."""
    device_id = runtime.getDevice() if device_id is None else device_id
    return next((stream for device, stream in reversed(WORLD.streams) if device == device_id), STREAMS[0])


def synchronize_all():
    """Let all streams do their work."""
    for stream in STREAMS.values():
        stream.run()


class runtime:  # noqa: N801 (CuPy's name)
    """CUDA's runtime."""

    @staticmethod
    def getDevice():  # noqa: N802 (CUDA's name)
        """Return the number of the device in force."""
        return WORLD.devices[-1]


STREAMS = {}
WORLD = types.SimpleNamespace(devices=[0], streams=[], log=[], launches=[], allocated=0, waits=0)
Stream(-1, ptr=0)


def reset():
    """Forget all streams, and what was put on them, after their work."""
    synchronize_all()
    STREAMS.clear()
    Stream(-1, ptr=0)
    WORLD.devices[:] = [0]
    for record in (WORLD.streams, WORLD.log, WORLD.launches):
        record.clear()


cuda = types.SimpleNamespace(
    Device=Device,
    Memory=Memory,
    MemoryPointer=MemoryPointer,
    Stream=Stream,
    get_current_stream=get_current_stream,
    runtime=runtime,
)
