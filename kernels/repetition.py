"""Repeats a step in one call of C when only the gradients' addresses and the hyper rows have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .extension import ffi, lib
from .reader import Array, address
from .tables import GPU_LAUNCH, LAUNCH, STEP

if TYPE_CHECKING:
    from .stream import Stream

TORN = -5  # FASTOPT_TORN


class Repetition:
    """Takes a step again, and counts how often.

    Parameters
    ----------
    launches, gpu_launches : sequence of tuple
        The fields of LAUNCH for each launch on the CPU, and of GPU_LAUNCH for each one on a GPU.
    streams : sequence of Stream
        Those of the GPUs, each once.
    grads : array of int64
        For each gradient, the address of the place where a kernel reads its address.
    threads : object
        Has ``get_num_threads()``, and ``parallel``: the function of an OpenMP runtime, or 0 for the pool.
    """

    def __init__(
        self,
        launches: Sequence[tuple[int, ...]],
        gpu_launches: Sequence[tuple[int, ...]],
        streams: Sequence[Stream],
        grads: npt.NDArray[np.int64],
        threads: Any,
    ) -> None:
        self.launches = launches, gpu_launches
        self.tables = np.array(launches, LAUNCH), np.array(gpu_launches, GPU_LAUNCH)
        self.grads, self.streams = grads, streams
        self.gpus = np.array([address(stream.gpu) for stream in streams], np.int64)
        self.step = np.zeros((), STEP)
        self.step["launches"], self.step["count"] = address(self.tables[0]), len(launches)
        self.step["gpu_launches"], self.step["gpu_count"] = address(self.tables[1]), len(gpu_launches)
        self.step["gpus"], self.step["gpu_n"] = address(self.gpus), len(self.gpus)
        for stream in streams:
            self.step["driver"] = address(stream.functions)  # those of the one driver
        self.step["grads"], self.step["n"] = address(grads), len(grads)
        self.step["parallel"] = threads.parallel
        self.get_num_threads = threads.get_num_threads
        self.workers = int(self.tables[0]["workers"].max(initial=1))
        self.inputs = self.step["inputs"]  # a view
        self.pointer = ffi.cast("fastopt_step *", address(self.step))

    def set_rows(
        self,
        hypers: npt.NDArray[np.float64],
        carried: npt.NDArray[np.float64],
        upcoming: npt.NDArray[np.float64],
        scale: float,
        largest: float,
    ) -> None:
        """Set the hyper rows, which stay as they are until they are described.

        Parameters
        ----------
        hypers, carried, upcoming : array
            See `fastopt_step`, which calls the last one ``next``.
        scale : float
            The factor of the gradients.
        largest : float
            The largest number that the kernels compute with.
        """
        self.keep_rows()
        self.rows = hypers, carried, upcoming
        self.step["rows"], self.step["hypers"] = len(hypers), address(hypers)
        self.step["carried"], self.step["next"] = address(carried), address(upcoming)
        self.step["scale"], self.step["largest"] = scale, largest

    def set_clip(self, clip: Any) -> None:
        """Have each step take the norm of its gradients, as a record of CLIP says; None: it does not."""
        self.clip = clip
        self.step["clip"] = 0 if clip is None else address(clip)

    def describe(self, inputs: npt.NDArray[Any] | None, records: Sequence[Array]) -> None:
        """Have each step compute the rows from ROW_INPUTS, which point to these schedules' records; None: they stay."""
        self.keep_rows()
        self.held = inputs, records
        self.inputs[...] = 0 if inputs is None else address(inputs)

    def keep_rows(self) -> None:
        """Leave the hyper rows and the next carried numbers as they are, or as the caller changes them."""
        self.inputs[...] = 0

    @property
    def taken(self) -> int:
        """How often the step was taken."""
        return int(self.pointer.taken)

    def take(self, grads: Array | None) -> bool:
        """Take the step with gradients at these addresses, or, for None, at the same ones as before.

        Return False if a number of a hyper row is too large for the kernels, a stream is capturing, or a GPU refuses
        the launch: then nothing was done, except that the caller has to compute the rows and to write the addresses
        again. Raise RuntimeError if a GPU refuses a launch after others of the same step.
        """
        for stream in self.streams:
            stream.tell()
        addresses = ffi.NULL if grads is None else ffi.from_buffer("int64_t[]", grads)
        threads = self.get_num_threads()
        if threads > self.workers:  # in C it is an int
            threads = self.workers
        taken = lib.fastopt_take(self.pointer, addresses, threads)
        if taken == TORN:
            raise self.torn()
        return bool(taken)

    def torn(self) -> RuntimeError:
        """Return the error of a step of which a GPU has refused a launch, but not the first one."""
        return RuntimeError(
            f"a GPU has refused a launch in the midst of a step, with the CUDA driver's error {self.step['error']}: "
            "some parameters are updated and others are not, so go on from a checkpoint"
        )
