"""A GPU for the tests, real or imitated on the host, with one interface; no tests here."""

import contextlib
import ctypes
import importlib
import sys

import cuda_stand_in
import cupy_stand_in
import numpy as np

from fastopt.step.memory import extent


def memory_of(array):
    """Copy the bytes that an array of NumPy spans; return them, and where among them its first element lies."""
    start, end = extent(array)
    whole = np.frombuffer(ctypes.string_at(start, end - start), np.uint8).copy()
    return whole, array.__array_interface__["data"][0] - start


class Recorded:
    """What a stream has recorded, once that has ended."""

    def __init__(self, stream):
        self.stream = stream
        self.graph = None

    def launch(self, stream=None):
        """Put all of it on a stream: the one that has recorded it, or another."""
        self.graph.launch(stream or self.stream)


class Shared:
    """What the stand-in and a real GPU have in common.

    Attributes
    ----------
    cupy : module
        CuPy, or its stand-in.
    """

    def get(self, array):
        """Return a copy on the host, after all work is done."""
        self.synchronize()
        return array.get()

    def synchronize(self):
        """Wait for all work."""
        self.cupy.cuda.Device(0).synchronize()

    def stream(self):
        """Return a new stream, which does not wait for the default one."""
        return self.cupy.cuda.Stream(non_blocking=True)

    @contextlib.contextmanager
    def capture(self, stream):
        """Record what is put on a stream."""
        recorded = Recorded(stream)
        with stream:
            stream.begin_capture()
            try:
                yield recorded
            finally:
                recorded.graph = stream.end_capture()


class StandIn(Shared):
    """The host instead of two GPUs: work waits for `synchronize`."""

    cupy = cupy_stand_in

    def array(self, array):
        """Return a copy on the device, that lies as an array of NumPy does."""
        return cupy_stand_in.ndarray(cuda_stand_in.placed(array))

    def foreign(self, array):
        """Return the same memory as an array of another library."""
        return cupy_stand_in.Foreign(array.host)

    def only_dlpack(self, array):
        """Return the same memory as an array of a library that has nothing but DLPack."""
        return cupy_stand_in.DLPackOnly(array.host)

    def take_turns(self):
        """Let all streams work at once, a piece of each at a time."""
        while busy := [stream for stream in cuda_stand_in.STREAMS.values() if stream.queue]:
            for stream in busy:
                work, _ = stream.queue.pop(0)
                work()

    def log(self):
        """Name what was put on streams, in order, and forget it."""
        names = [name for name, _ in cuda_stand_in.WORLD.log]
        cuda_stand_in.WORLD.log.clear()
        cuda_stand_in.WORLD.launches.clear()
        return names


@contextlib.contextmanager
def standing_in(monkeypatch):
    """Let the host stand in for a GPU, with nothing on its streams; what has gone wrong there is raised at the end."""
    cuda_stand_in.reset()
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in)
    monkeypatch.setattr("fastopt.kernels.driver.LIBRARY", cuda_stand_in.driver()[1])
    yield StandIn()
    cuda_stand_in.reset()


class Interface:
    """An array of another library, with CUDA's array interface."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array


class OnlyDLPack:
    """An array of another library, with DLPack."""

    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


class Cuda(Shared):
    """A real GPU, through CuPy."""

    def __init__(self):
        self.cupy = importlib.import_module("cupy")

    def array(self, array):
        """Return a copy on the device, that lies as an array of NumPy does."""
        if array.size == 0:
            return self.cupy.empty(array.shape, array.dtype)
        whole, offset = memory_of(array)
        there = self.cupy.asarray(whole)
        self.synchronize()  # other streams do not wait for the default one
        return self.cupy.ndarray(array.shape, array.dtype, there.data + offset, array.strides)

    def foreign(self, array):
        """Return the same memory as an array of another library."""
        return Interface(array)

    def only_dlpack(self, array):
        """Return the same memory as an array of a library that has nothing but DLPack."""
        return OnlyDLPack(array)

    def take_turns(self):
        """Let all streams work at once, as they do anyway."""

    def log(self):
        """A real GPU does not say what was put on its streams."""
        return []
