"""Reads where tensors of PyTorch lie, many in one call where extension and torch offer it, and else one by one.

Like the reader of arrays it saves time and rules nothing: what is not as expected is left to the caller.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .extension import ffi, lib
from .reader import UNREAD, Array, address
from .tables import EXTENTS, GRADIENTS, HOLDINGS, REPETITION, SHAPE

# Prototypes of our own: ctypes.pythonapi and its functions belong to the whole process.
pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# Takes an object off the garbage collector's round, as Python does itself with a tuple of numbers: what is in no cycle.
untrack = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("PyObject_GC_UnTrack", ctypes.pythonapi))

# DLPack's codes of types; what stands here can be read, all else is UNREAD.
CODES = {"float16": 2, "float32": 2, "float64": 2, "bfloat16": 4, "complex64": 5, "complex128": 5}


OUT_OF_DATE, RAISED, ASSIGNED, REPEATED = -1, -2, -3, -4  # what the extension may return in the place of a count
PARAMS = "params"


def exchange_table(tensor_type: Any) -> int:
    """Return the address of the table of functions through which tensors of a type can be read, 0 where there is none.

    That is ``__dlpack_c_exchange_api__`` of DLPack 1, which torch publishes from 2.10 on.
    """
    capsule = getattr(tensor_type, "__dlpack_c_exchange_api__", None)
    if lib is None or type(capsule).__name__ != "PyCapsule":
        return 0
    table = pointer_of(capsule, b"dlpack_exchange_api")
    major = ctypes.cast(table, ctypes.POINTER(ctypes.c_uint32))[0]
    return int(table) if major == 1 else 0


DEVICES = {"cpu": 1, "cuda": 2}  # DLPack's codes
Shape = tuple[str, int, Sequence[int], Sequence[int], tuple[int, int]]


def shape_of(tensor: Any) -> Shape:
    """Describe a tensor: name of its dtype, size of an element in bytes, shape and strides, in elements, and device."""
    device = DEVICES[tensor.device.type], tensor.device.index or 0
    return str(tensor.dtype).removeprefix("torch."), tensor.itemsize, tensor.shape, tensor.stride(), device


class Shapes:
    """A table of what tensors are expected to be; None where nothing in particular is, which nothing equals."""

    def __init__(self, expected: Sequence[Shape | None]) -> None:
        self.table = np.zeros(len(expected), SHAPE)
        self.table["ndim"] = -1
        self.pointed_to: list[Array] = []
        for row, shape in zip(self.table, expected, strict=True):
            if shape is None or shape[0] not in CODES:
                continue
            name, itemsize, lengths, strides, device = shape
            axes = np.array([lengths, strides], np.int64).reshape(2, -1)
            self.pointed_to.append(axes)
            row["lengths"], row["strides"], row["ndim"] = address(axes[0]), address(axes[1]), len(lengths)
            row["itemsize"], row["format"] = itemsize, CODES[name]
            row["device_type"], row["device_id"] = device


def same(objects: list[Any], others: list[Any]) -> bool:
    """Say whether two lists hold the same objects."""
    return [*map(id, objects)] == [*map(id, others)]


class Watch:
    """Watches what an optimizer holds, and reads where its gradients lie.

    Parameters
    ----------
    table : int
        See `exchange_table`.
    groups : list of dicts
        Whose keys and values, and what their lists ``params`` hold, are to stay the same objects.
    states : dict of dicts
        The same, of keys and values.
    tensors : list
        Tensors that are to stay in their places. They may be exchanged in the list for others in the same places.
    counts, expected : array of float64
        Numbers that are to be those expected; may be empty.
    """

    def __init__(
        self,
        table: int,
        groups: list[dict[str, Any]],
        states: dict[Any, Any],
        tensors: list[Any],
        counts: npt.NDArray[np.float64],
        expected: npt.NDArray[np.float64],
    ) -> None:
        self.counts, self.expected_counts = counts, expected
        self.table = table
        self.groups, self.states, self.tensors = groups, states, tensors
        self.listed, self.assigned, self.stated = self._listed(), self._assigned(), self._stated()
        self.places = self._places()
        self.shapes = Shapes([shape_of(tensor) for tensor in tensors])
        self.addresses = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
        objects = self.groups, PARAMS, self.listed, self.assigned, self.states, self.stated, self.tensors
        numbers = len(tensors), address(self.shapes.table), address(self.addresses), address(counts), address(expected)
        self.holdings = np.array((*map(id, objects), *numbers, len(counts)), HOLDINGS)

    def note_options(self) -> None:
        """Take what is assigned in the groups as it is now."""
        self.assigned[:] = self._assigned()

    def _listed(self) -> list[Any]:
        lists = [dict.__getitem__(group, PARAMS) for group in self.groups]  # as they stand, whatever a subclass does
        return [item for group, held in zip(self.groups, lists, strict=True) for item in (group, held, *held)]

    def _assigned(self) -> list[Any]:
        return [part for group in self.groups for pair in dict.items(group) for part in pair]

    def _stated(self) -> list[Any]:
        stated: list[Any] = []
        for key, state in self.states.items():
            stated += key, state
            if isinstance(state, dict):
                stated += [part for pair in state.items() for part in pair]
        return stated

    def _places(self) -> list[Any]:
        places: list[Any] = []  # flat: with a tuple for each, the garbage collector would walk them all
        for tensor in self.tensors:
            places += tensor.data_ptr(), tensor.dtype, tensor.device, tensor.ndim, *tensor.shape, *tensor.stride()
        return places

    def expect(
        self,
        parameters: list[Any],
        frozen: list[Any],
        descriptor: Any,
        tensor_type: Any,
        shapes: Sequence[Shape | None],
        starts: npt.NDArray[np.int64],
        reaches: npt.NDArray[np.int64],
    ) -> None:
        """Say what gradients are expected to be.

        Parameters
        ----------
        parameters : list
            Whose gradients.
        frozen : list
            Those that are to have none: one that has a gradient makes all out of date.
        descriptor : descriptor or None
            Gives a parameter's gradient; if None, the caller puts them into `gradients`, and looks at the frozen ones.
        tensor_type : type
            Of the gradients, exactly.
        shapes : sequence of Shape or None
            None where nothing in particular is expected.
        starts, reaches : array of int64
            Ranges of addresses that nothing may touch, as `Extents` has them.
        """
        self.repetition = np.zeros((), REPETITION)
        self.gradients: list[Any] = [None] * len(parameters)
        self.nones = list(self.gradients)
        self.found = np.empty(len(parameters) + 1, np.int64)
        self.expected = Shapes(shapes)
        occupied = np.array((len(starts), address(starts), address(reaches)), EXTENTS)
        self.pointed_to = parameters, frozen, descriptor, tensor_type, starts, reaches, occupied
        lists = id(parameters), id(frozen), id(descriptor) if descriptor else 0, id(self.gradients)
        objects = *lists, id(tensor_type)
        numbers = len(parameters), address(self.expected.table), address(occupied), address(self.found)
        self.wanted = np.array((*objects, *numbers), GRADIENTS)
        if self.table:
            self.arguments = (
                ffi.cast("void *", self.table),
                ffi.cast("fastopt_holdings *", address(self.holdings)),
                ffi.cast("fastopt_gradients *", address(self.wanted)),
            )

    def prepare(self, launch: dict[str, int], increment: Any, written: list[Any]) -> None:
        """Prepare the repetition of a step.

        Parameters
        ----------
        launch : dict of str to int
            The fields of REPETITION that concern the launch.
        increment : callable
            Called with ``written`` before the launch.
        written : list
        """
        self.repetition = np.zeros((), REPETITION)
        for name, value in launch.items():
            self.repetition[name] = value
        self.repetition["increment"], self.repetition["written"] = id(increment), id(written)
        self.called = increment, written
        self.repetition_pointer = ffi.cast("fastopt_repetition *", address(self.repetition))

    def prepare_rows(self, cohorts: npt.NDArray[Any] | None, hypers: npt.NDArray[np.float64], scale: float) -> None:
        """Say how a repetition's hyper rows are computed, from COHORTs as they are now; None: they stay."""
        self.rows = cohorts, hypers  # held
        self.repetition["cohorts"] = 0 if cohorts is None else address(cohorts)
        self.repetition["rows"] = 0 if cohorts is None else len(cohorts)
        self.repetition["hypers"], self.repetition["scale"] = address(hypers), scale

    def step(self, threads: int) -> int:
        """Read the gradients, and where there is one for each parameter, as expected, take the step that was prepared.

        Returns REPEATED then, else what `read` does.
        """
        result = int(lib.fastopt_read_tensors(*self.arguments, self.repetition_pointer, threads))
        return self.read() if result == RAISED else result

    def take_times(self) -> int:
        """Return how often the prepared step was taken since this was last asked for."""
        times, self.repetition["times"] = int(self.repetition["times"]), 0
        return times

    def read(self) -> int:
        """Read the gradients; return how many are UNREAD, or that something is not as it was.

        That is OUT_OF_DATE, or ASSIGNED where it is only options of the groups. The gradients are in `gradients` then,
        their addresses in `found`, UNREAD or 0 for None, and at its end the number of these. Not for two threads at
        once.
        """
        if self.table:
            unread = int(lib.fastopt_read_tensors(*self.arguments, ffi.NULL, 1))
            if unread != RAISED:
                return unread
        if not same(self._listed(), self.listed):
            return OUT_OF_DATE
        if not same(self._assigned(), self.assigned):
            return ASSIGNED
        unchanged = same(self._stated(), self.stated) and self._places() == self.places
        unchanged = unchanged and np.array_equal(self.counts, self.expected_counts)
        _, frozen, descriptor = self.pointed_to[:3]
        if descriptor:
            unchanged = unchanged and all(descriptor.__get__(parameter) is None for parameter in frozen)
        return self.collect() if unchanged else OUT_OF_DATE

    def collect(self) -> int:
        """Take the gradients, look at nothing, and leave all of them UNREAD."""
        parameters, _, descriptor = self.pointed_to[:3]
        if descriptor:
            self.gradients[:] = [descriptor.__get__(parameter) for parameter in parameters]
        none = [gradient is None for gradient in self.gradients]
        self.found[:-1] = np.where(none, 0, UNREAD)
        self.found[-1] = sum(none)
        return len(none) - sum(none)

    def release(self) -> None:
        """Hold the gradients no longer, so that the next ones can have their memory."""
        self.gradients[:] = self.nones
