"""A GPU through CuPy: its memory, its current stream, and launches there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import cuda, graphs
from .tables import MESSAGE, WORDS

Words = npt.NDArray[np.int64]

MESSENGERS = 128  # threads that write a message into memory
SMALL = 8 * WORDS  # a few messages do not keep the host as long as waiting for the stream

RELEASED: list[Any] = []  # memory that nobody uses any more


class Memory:
    """Zeros in a GPU's memory, from the driver itself.

    Giving it back waits for the device, so that no kernel can still be reading it; a pool's memory would be free for
    the next one to ask on the stream where it was allocated, whichever streams it was used on. It is given back when
    the next is asked for, not when the garbage collector comes: inside of somebody's capture that would spoil it.
    """

    def __init__(self, stream: Stream, size: int) -> None:
        self.pointer: Any = None
        RELEASED.clear()
        with stream.cupy.cuda.Device(stream.index):
            self.pointer = stream.cupy.cuda.MemoryPointer(stream.cupy.cuda.Memory(max(size, 1)), 0)
            self.pointer.memset_async(0, max(size, 1), stream.current)
            stream.current.synchronize()  # another may be the first to use it
        self.address = int(self.pointer.ptr)

    def __del__(self, released: list[Any] = RELEASED) -> None:
        """Leave it to the next one to give the memory back."""
        released.append(self.pointer)


class Stream:
    """The stream on which one library puts its work on a GPU: whichever is current there.

    Parameters
    ----------
    cupy : module
    index : int
        The device's number.
    current_stream : callable
        Returns the stream of that library, as one of CuPy.

    Attributes
    ----------
    current : cupy.cuda.Stream
        Where work is put, as of the last `begin`.
    capturing : bool
        Whether that records a graph, in the place of working.
    """

    def __init__(self, cupy: Any, index: int, current_stream: Callable[[], Any]) -> None:
        self.cupy = cupy
        self.index = index
        self.current_stream = current_stream
        self.message = np.zeros(1, MESSAGE)
        numbers = self.message.view(np.int64)  # by field, each would take as long as all
        self.head, self.body = numbers[:-WORDS], numbers[-WORDS:]
        self.begin()

    def begin(self) -> None:
        """Find out which stream is the current one, and let go of what belonged to graphs that are gone."""
        self.current, cuda_of = self.current_stream(), self.cupy.cuda
        if cuda_of.runtime.getDevice() == self.index:
            self.capturing = bool(self.current.is_capturing())
        else:
            with cuda_of.Device(self.index):  # where a default stream is another one
                self.capturing = bool(self.current.is_capturing())
        if not self.capturing:
            graphs.drop_gone()

    def launch(self, kernel: Any, blocks: int, argument: npt.NDArray[Any], threads: int = MESSENGERS) -> None:
        """Put a kernel on the stream, with a copy of its argument, one struct."""
        cuda_of = self.cupy.cuda
        # The contexts take as long as the launch, and as a rule both are in force.
        if cuda_of.runtime.getDevice() == self.index and cuda_of.get_current_stream().ptr == self.current.ptr:
            kernel((blocks,), (threads,), (argument,))
        else:
            with cuda_of.Device(self.index), self.current:
                kernel((blocks,), (threads,), (argument,))

    def send(self, to: int, words: Words, apart: int = 1, version: int = 0, number: int = 0) -> None:
        """Write numbers into memory, one every `apart` of 8 bytes, in order with all else on the stream.

        They travel with the launch: nothing of the host's is read later, and a graph that is captured has a copy.

        Parameters
        ----------
        to : int
            Address of the first one's place.
        words : array of int64
        apart : int, default 1
        version, number : int, optional
            The address of a version; all is written only if that version is below this number.
        """
        send, _ = cuda.send_and_advance(self.cupy)
        for start in range(0, len(words), WORDS):
            part = words[start : start + WORDS]
            self.head[:] = to + 8 * start * apart, apart, len(part), version, number
            self.body[: len(part)] = part
            self.launch(send, 1, self.message)

    def write(self, memory: Memory, *arrays: npt.NDArray[Any]) -> None:
        """Copy arrays, of 8 bytes or several, into memory, one behind the other, in order with all on the stream.

        Small ones are sent; for large ones this waits.
        """
        data = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.int64)
        if len(data) <= SMALL:
            self.send(memory.address, data)
        else:
            with self.cupy.cuda.Device(self.index):
                memory.pointer.copy_from_host_async(data.ctypes.data, data.nbytes, self.current)
                self.current.synchronize()

    def download(self, memory: Memory, count: int) -> list[int]:
        """Wait for all streams of the device, and return the first numbers in memory."""
        self.begin()
        if self.capturing:
            raise RuntimeError("steps cannot be counted while a graph is captured: ask for states and rates outside")
        words = np.zeros(count, np.int64)
        with self.cupy.cuda.Device(self.index) as device:
            device.synchronize()
            memory.pointer.copy_to_host(words.ctypes.data, words.nbytes)
        return [int(word) for word in words]
