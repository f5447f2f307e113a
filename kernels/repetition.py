"""Repeats a step in one call of C when only the gradients' addresses and the step count have changed."""

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
        The fields of LAUNCH, for each launch.
    grads : array of int64
        For each gradient, the address of its field in a tensor table.
    threads : object
        Has ``get_num_threads()``, and ``parallel``: the function of an OpenMP runtime, or 0 for the pool.
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
        """Set the hyper rows, and the ROW_INPUTS from which each step computes them; if None, the rows stay.

        Parameters
        ----------
        hypers, carried, inputs : array
            See `fastopt_step`.
        records : sequence of array
            The schedules' records, to which the inputs point.
        scale : float
            The factor of the gradients.
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
        """How often the step was taken since the rows were set."""
        return int(self.step["taken"])

    def take(self, grads: Array | None) -> bool:
        """Take the step with gradients at these addresses, or, for None, at the same ones as before.

        Return False if a number of a hyper row is too large for the kernels; nothing was done then.
        """
        addresses = ffi.NULL if grads is None else ffi.cast("int64_t *", address(grads))
        return bool(lib.fastopt_take(self.pointer, addresses, self.get_num_threads()))
