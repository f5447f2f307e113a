"""A stand-in for CuPy whose devices are the host: as much of it as fastopt uses, and stricter; no tests here.

Kernels are the ones that CuPy would compile, built by g++ (`host_cuda`). A launch records the bytes of its arguments,
and runs when its stream is synchronised, not before, so that whatever reads memory of the host too late fails a test.
What CUDA refuses while a graph is captured, is refused here.
"""

import ctypes
import functools
import re
import types

import host_cuda
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


class Kernel:
    """A compiled kernel."""

    def __init__(self, name):
        self.name = name

    def __call__(self, grid, block, args):
        (argument,) = args
        (blocks,), (threads,) = grid, block
        copied = argument.copy()  # as cuLaunchKernel copies it
        device, stream = runtime.getDevice(), get_current_stream()
        WORLD.launches.append((self.name, copied, device, stream.ptr))
        stream.put(lambda: host_cuda.launch(self.name, copied, blocks, threads), self.name)


class UserKernel:
    """A kernel of a source that is not fastopt's."""

    def __init__(self, library, name):
        self.library, self.name = library, name

    def __call__(self, grid, block, args):
        copied = [self.argument(given) for given in args]
        (blocks,), (threads,) = grid, block
        work = functools.partial(host_cuda.launched, self.library, self.name, copied, blocks, threads, seed=1)
        get_current_stream().put(work, self.name)

    @staticmethod
    def argument(given):
        """An argument as the kernel gets it: addresses of arrays, and scalars that have a type, as CuPy's are to."""
        if isinstance(given, ndarray):
            return np.array(given.data.ptr, np.uintp)
        if not isinstance(given, np.generic):
            raise TypeError(f"an argument without a type: {given!r}")
        return np.array(given)


class RawModule:
    """A source, of which kernels are taken by name: what `host_cuda` has compiled, or someone's own."""

    def __init__(self, *, code, options):
        self.code = code
        self.own = options == host_cuda.cuda.OPTIONS
        if not self.own:
            (standard,) = (option for option in options if option.startswith("-std"))
            flags = [option for option in options if option.startswith(("-I", "-D"))]
            self.library = host_cuda.compiled(code, standard, *flags)

    def get_function(self, name):
        assert re.search(rf"\b{name}\b", self.code)
        return Kernel(name) if self.own else UserKernel(self.library, name)


class ndarray:  # noqa: N801 (CuPy's name)
    """An array on a device. NumPy's functions cannot read it: `get` waits, and copies."""

    def __init__(self, host, device=None):
        self.host = host  # its memory
        self.device = device or Device(runtime.getDevice())
        self.dtype, self.shape, self.strides, self.size = host.dtype, host.shape, host.strides, host.size

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.host.__array_interface__["data"][0] if self.size else 0)

    @property
    def __cuda_array_interface__(self):
        return {**self.host.__array_interface__, "stream": None}

    def __getitem__(self, key):
        return ndarray(self.host[key], self.device)

    def __setitem__(self, key, value):
        view, source = self.host[key], value.host if isinstance(value, ndarray) else value
        get_current_stream().put(lambda: np.copyto(view, source), "copy")

    def transpose(self, axes):
        return ndarray(self.host.transpose(axes), self.device)

    def copy(self, order="C"):
        """Return a copy, written when the stream gets there."""
        new = np.empty_like(self.host, order=order)
        get_current_stream().put(lambda: np.copyto(new, self.host), "copy")
        return ndarray(new, self.device)

    def __del__(self):
        synchronize_all()  # a pool of CuPy's has other uses for the memory once all streams are done with it

    def get(self):
        """Return a copy on the host."""
        synchronize_all()
        return self.host.copy()


def asarray(value):
    """Return an array on the device: a view of one that is there already, a copy of one that is not."""
    if isinstance(value, ndarray):
        return value
    if isinstance(value, Foreign):
        return ndarray(value.array)
    return ndarray(np.array(value))


def zeros(shape, dtype=np.float64):
    """Return zeros; written when the stream gets there."""
    return full(shape, 0, dtype)


def full(shape, value, dtype=np.float64):
    """Return an array of one value; written when the stream gets there."""
    array = np.full(shape, 77, dtype)
    get_current_stream().put(lambda: array.fill(value), "fill")
    return ndarray(array)


def from_dlpack(value):
    """Return a view of what another library has on the device."""
    return ndarray(value.array)


class Foreign:
    """An array of another library, with an interface of CUDA."""

    def __init__(self, array, readonly=False):
        self.array, self.readonly = array, readonly

    @property
    def __cuda_array_interface__(self):
        interface = self.array.__array_interface__
        return {**interface, "data": (interface["data"][0], self.readonly), "version": 3}


class DLPackOnly:
    """An array of another library, which has nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **options):
        raise AssertionError("the stand-in reads it otherwise")


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
