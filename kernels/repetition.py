"""A step that differs from the last one only in where the gradients lie, and in its count: one call of C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .extension import ffi, lib
from .reader import Array, address
from .tables import LAUNCH, STEP


class Repetition:
    """Takes a step again, and counts how often.

    Parameters
    ----------
    launches : sequence of tuple
        For each launch what LAUNCH lists.
    grads : array of int64
        For each gradient the address of the place where its address goes.
    threads : object
        Whose threads work, so many as ``get_num_threads()`` says: those of the OpenMP team at ``parallel``, or of the
        pool where that is 0.
    """

    def __init__(self, launches: Sequence[tuple[int, ...]], grads: npt.NDArray[np.int64], threads: Any) -> None:
        self.launches = np.array(launches, LAUNCH)
        self.grads = grads
        self.step = np.zeros((), STEP)
        self.step["launches"], self.step["count"] = address(self.launches), len(launches)
        self.step["grads"], self.step["n"] = address(grads), len(grads)
        self.step["parallel"] = threads.parallel
        self.get_num_threads = threads.get_num_threads
        self.pointer = ffi.cast("fastopt_step *", address(self.step))

    def set_rows(
        self,
        hypers: npt.NDArray[np.float64],
        carried: npt.NDArray[np.float64],
        inputs: npt.NDArray[Any] | None,
        records: Sequence[Array],
        scale: float,
        largest: float,
    ) -> None:
        """Say how hyper rows come about: from ROW_INPUTS as they are now, or, where these are None, they stay.

        Parameters
        ----------
        hypers, carried, inputs : array
            See `fastopt_step`.
        records : sequence of array
            The schedules' that the inputs point to.
        scale : float
            What gradients are multiplied by.
        largest : float
            The largest number that the kernels compute with.
        """
        self.held = hypers, carried, inputs, records
        self.next = np.empty_like(carried)
        self.step["next"] = address(self.next)
        self.step["inputs"] = 0 if inputs is None else address(inputs)
        self.step["rows"] = 0 if inputs is None else len(inputs)
        self.step["hypers"], self.step["carried"], self.step["scale"] = address(hypers), address(carried), scale
        self.step["largest"], self.step["taken"] = largest, 0

    @property
    def taken(self) -> int:
        """How often it was taken since the rows were set."""
        return int(self.step["taken"])

    def take(self, grads: Array | None) -> bool:
        """Take it, with gradients at these addresses; None where they lie as before.

        False where a number of a hyper row would be too large: nothing was done then.
        """
        addresses = ffi.NULL if grads is None else ffi.cast("int64_t *", address(grads))
        return bool(lib.fastopt_take(self.pointer, addresses, self.get_num_threads()))
