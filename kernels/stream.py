"""A GPU through CuPy: memory, the current stream, and launches on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import cuda, driver, graphs
from .tables import GPU, MESSAGE, WORDS

Words = npt.NDArray[np.int64]

MESSENGERS = 128  # threads that write a message into memory
SMALL = 8 * WORDS  # up to here, sending messages takes the host less time than waiting for the stream

RELEASED: list[Any] = []  # memory that nobody uses any more


class Memory:
    """Zeroed GPU memory, allocated by the driver, not from a pool.

    The driver waits for the device before it frees memory, so no kernel can still be reading it; a pool would hand it
    to the next request on the stream that allocated it, whichever streams still use it. Memory is freed by the next
    allocation, not by the garbage collector, which may run during a capture and invalidate it.
    """

    def __init__(self, stream: Stream, size: int) -> None:
        self.pointer: Any = None
        while RELEASED:
            RELEASED.pop()
        with stream.cupy.cuda.Device(stream.index):
            self.pointer = stream.cupy.cuda.MemoryPointer(stream.cupy.cuda.Memory(max(size, 1)), 0)
            self.pointer.memset_async(0, max(size, 1), stream.current)
            stream.current.synchronize()  # another stream may use it first
        self.address = int(self.pointer.ptr)

    def __del__(self, released: list[Any] = RELEASED) -> None:
        """Leave it to the next allocation to free the memory."""
        released.append(self.pointer)


class Told(Memory):
    """GPU memory of a struct that the host sees some time later, without waiting for it.

    Attributes
    ----------
    seen : array
        What has come, in page-locked memory of the driver's.
    """

    def __init__(self, stream: Stream, dtype: np.dtype[Any]) -> None:
        super().__init__(stream, dtype.itemsize)
        self.stream, cuda_of = stream, stream.cupy.cuda
        self.locked = cuda_of.PinnedMemoryPointer(cuda_of.PinnedMemory(dtype.itemsize), 0)
        self.seen = np.frombuffer(self.locked, dtype, 1)
        self.seen[:] = 0

    def tell(self) -> None:
        """Copy the struct to the host, in stream order."""
        runtime = self.stream.cupy.cuda.runtime
        with self.stream.cupy.cuda.Device(self.stream.index):
            to, size, kind = self.locked.ptr, self.seen.nbytes, runtime.memcpyDeviceToHost
            runtime.memcpyAsync(to, self.address, size, kind, self.stream.current.ptr)

    def __del__(self, released: list[Any] = RELEASED) -> None:
        """Leave it to the next allocation to free both, that on the GPU first, which waits for copies from there."""
        released.append(getattr(self, "locked", None))
        super().__del__()


class Stream:
    """The current stream of one library (CuPy or torch) on a GPU.

    Parameters
    ----------
    cupy : module
    index : int
        The device's number.
    current_stream : callable
        Returns the library's current stream as one of CuPy's.
    exchange : int, default 0
        The address of the library's table of functions, which tell the extension the same; see `exchange_table`.

    Attributes
    ----------
    current : cupy.cuda.Stream
        The current stream as of the last `begin`.
    capturing : bool
        Whether it was capturing a graph.
    functions : array
        See `driver.functions`.
    gpu : array
        A GPU, for the extension.
    """

    def __init__(self, cupy: Any, index: int, current_stream: Callable[[], Any], exchange: int = 0) -> None:
        self.cupy = cupy
        self.index = index
        self.current_stream = current_stream
        with cupy.cuda.Device(index):
            context = driver.current_context()
        self.functions = driver.functions() if context else driver.NONE
        self.gpu = np.array([(context, exchange, index, 0)], GPU)
        self.pointer = None if exchange else self.gpu["stream"]  # a view
        self.message = np.zeros(1, MESSAGE)
        numbers = self.message.view(np.int64)  # setting one field takes as long as setting all of these
        self.head, self.body = numbers[:-WORDS], numbers[-WORDS:]
        self.begin()

    def begin(self) -> None:
        """Ask for the current stream, and release what belonged to graphs that are gone."""
        self.current, cuda_of = self.current_stream(), self.cupy.cuda
        if cuda_of.runtime.getDevice() == self.index:
            self.capturing = bool(self.current.is_capturing())
        else:
            with cuda_of.Device(self.index):  # each device has its own default stream
                self.capturing = bool(self.current.is_capturing())
        if not self.capturing:
            graphs.drop_gone()

    def tell(self) -> None:
        """Tell the extension which stream is the current one, if the library's table does not."""
        if self.pointer is not None:
            self.pointer[0] = self.current_stream().ptr

    def function(self, kernel: Any) -> int:
        """Return the address of a kernel's function on this device."""
        with self.cupy.cuda.Device(self.index):
            return int(kernel.kernel.ptr)

    def launch(self, kernel: Any, blocks: int, argument: npt.NDArray[Any], threads: int = MESSENGERS) -> None:
        """Launch a kernel on the stream, with a copy of its argument, one struct."""
        cuda_of = self.cupy.cuda
        # Entering the contexts takes as long as the launch, and usually device and stream are current already.
        if cuda_of.runtime.getDevice() == self.index and cuda_of.get_current_stream().ptr == self.current.ptr:
            kernel((blocks,), (threads,), (argument,))
        else:
            with cuda_of.Device(self.index), self.current:
                kernel((blocks,), (threads,), (argument,))

    def send(self, to: int, words: Words, apart: int = 1, version: int = 0, number: int = 0) -> None:
        """Write numbers into memory, in order with everything else on the stream.

        They are arguments of the launch: the host's memory is not read later, and a captured graph has its own copy.

        Parameters
        ----------
        to : int
            Where the first number goes.
        words : array of int64
        apart : int, default 1
            Distance from one number to the next, in units of 8 bytes.
        version, number : int, optional
            The address of a version: the numbers are written only if that version is below `number`.
        """
        send = cuda.small_kernels(self.cupy)["send"]
        for start in range(0, len(words), WORDS):
            part = words[start : start + WORDS]
            self.head[:] = to + 8 * start * apart, apart, len(part), version, number
            self.body[: len(part)] = part
            self.launch(send, 1, self.message)

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy bytes within the GPU's memory, in stream order."""
        runtime = self.cupy.cuda.runtime
        with self.cupy.cuda.Device(self.index):
            runtime.memcpyAsync(to, source, size, runtime.memcpyDeviceToDevice, self.current.ptr)

    def write(self, memory: Memory, *arrays: npt.NDArray[Any]) -> None:
        """Copy arrays, whose bytes together are a multiple of 8, into memory, one behind the other, in stream order.

        Small ones are sent as messages; for large ones this waits.
        """
        data = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.int64)
        if len(data) <= SMALL:
            self.send(memory.address, data)
        else:
            with self.cupy.cuda.Device(self.index):
                memory.pointer.copy_from_host_async(data.ctypes.data, data.nbytes, self.current)
                self.current.synchronize()

    def download(self, memory: Memory, count: int) -> list[int]:
        """Wait for all streams of the device, and return the first `count` numbers in memory."""
        self.begin()
        if self.capturing:
            raise RuntimeError("steps cannot be counted while a graph is captured: ask for states and rates outside")
        words = np.zeros(count, np.int64)
        with self.cupy.cuda.Device(self.index) as device:
            device.synchronize()
            memory.pointer.copy_to_host(words.ctypes.data, words.nbytes)
        return [int(word) for word in words]
