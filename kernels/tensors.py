"""Reads the addresses of PyTorch tensors, many in one call if the extension and torch allow it, else one by one.

Like the reader of arrays it only saves time: it leaves whatever is not as expected to the caller.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .dtypes import PAIRS, PAIRS_DLPACK, STORED
from .extension import ffi, lib
from .reader import UNREAD, Array, address
from .repetition import Repetition
from .tables import EXTENTS, GRADIENTS, SHAPE, WATCHED

# Prototypes of our own: ctypes.pythonapi and its functions belong to the whole process.
pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# Untracks an object that is in no reference cycle, as Python does with a tuple of numbers: less work for the collector.
untrack = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("PyObject_GC_UnTrack", ctypes.pythonapi))

# DLPack's codes for the dtypes that can be read; all others are UNREAD.
INTEGERS = {"int16": 0}  # of remainders; "int8" is a code's, too
KINDS = {**{name: dtype.dlpack for name, dtype in STORED.items()}, **dict.fromkeys(PAIRS, PAIRS_DLPACK), **INTEGERS}

NO_STEP = (ffi.NULL, ffi.NULL, ffi.NULL, 1) if lib is not None else ()

OUT_OF_DATE, RAISED, ASSIGNED, REPEATED = -1, -2, -3, -4  # what the extension may return instead of a count
PARAMS = "params"


def exchange_table(tensor_type: Any) -> int:
    """Return the address of the table of functions that read tensors of a type, or 0 if there is none.

    It is DLPack 1's ``__dlpack_c_exchange_api__``, which torch has from 2.10 on.
    """
    capsule = getattr(tensor_type, "__dlpack_c_exchange_api__", None)
    if lib is None or type(capsule).__name__ != "PyCapsule":
        return 0
    table = pointer_of(capsule, b"dlpack_exchange_api")
    major = ctypes.cast(table, ctypes.POINTER(ctypes.c_uint32))[0]
    return int(table) if major == 1 else 0


def call_of(increment: Any, written: list[Any]) -> tuple[Any, ...]:
    """Return what the extension makes a call from, ``increment(written)``: the caller keeps the two alive."""
    return tuple(ffi.cast("void *", id(part)) for part in (increment, written)) if lib is not None else ()


DEVICES = {"cpu": 1, "cuda": 2}  # DLPack's codes
Behind = Sequence[tuple[int, int]]
Shape = tuple[str, int, Sequence[int], Sequence[int], tuple[int, int]]


def shape_of(tensor: Any) -> Shape:
    """Describe a tensor: the name of its dtype, bytes per element, shape, strides in elements, and device."""
    device = DEVICES[tensor.device.type], tensor.device.index or 0
    return str(tensor.dtype).removeprefix("torch."), tensor.itemsize, tensor.shape, tensor.stride(), device


class Shapes:
    """A table of what tensors are expected to be; a row for None matches no tensor."""

    def __init__(self, expected: Sequence[Shape | None]) -> None:
        self.table = np.zeros(len(expected), SHAPE)
        self.table["ndim"] = -1
        self.pointed_to: dict[Any, Array] = {}  # one for all tensors that lie alike: it stays in the cache
        for row, shape in zip(self.table, expected, strict=True):
            if shape is None or shape[0] not in KINDS:
                continue
            name, itemsize, lengths, strides, device = shape
            key = (*lengths, *strides)  # flat: one object for the garbage collector
            axes = self.pointed_to.setdefault(key, np.array(key, np.int64).reshape(2, -1))
            row["lengths"], row["strides"], row["ndim"] = address(axes[0]), address(axes[1]), len(lengths)
            row["itemsize"], row["code"] = itemsize, KINDS[name]
            row["device_type"], row["device_id"] = device


def same(objects: list[Any], others: list[Any]) -> bool:
    """Say whether two lists hold the same objects."""
    return [*map(id, objects)] == [*map(id, others)]


class Watch:
    """Checks that Python objects have not changed, and reads the addresses of gradients.

    Parameters
    ----------
    table : int
        See `exchange_table`.
    dicts : list of dicts
        Their keys and values, and the items of their lists ``params``, must stay the same objects.
    nested : dict of dicts
        Their keys and values must stay the same objects.
    tensors : list
        Their addresses, dtypes, devices, shapes and strides must stay the same.
    counts, expected : array of float64
        Numbers that must be equal; may be empty. A step that is taken again counts them.
    rows : array of int64 or None
        For each count, the row of the step whose carried number stands behind all counts in the two arrays.
    behind : sequence of pairs of int
        For each tensor, where its objects in C++ lie, of tensor and storage: they are fetched in good time.
    """

    def __init__(
        self,
        table: int,
        dicts: list[dict[str, Any]],
        nested: dict[Any, Any],
        tensors: list[Any],
        counts: npt.NDArray[np.float64],
        expected: npt.NDArray[np.float64],
        rows: npt.NDArray[np.int64] | None,
        behind: Behind,
    ) -> None:
        self.counts, self.expected_counts, self.rows = counts, expected, rows
        self.table = table
        self.dicts, self.nested, self.tensors = dicts, nested, tensors
        self.listed, self.assigned, self.stated = self._listed(), self._assigned(), self._stated()
        self.described = self._described()
        self.shapes = Shapes([shape_of(tensor) for tensor in tensors])
        self.addresses = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
        self.behind = np.array(behind, np.int64)
        self.distributed: list[Any] = []
        self.parts: list[Any] = []
        self.slots: tuple[Any, ...] = ()
        objects = self.dicts, PARAMS, self.listed, self.assigned, self.nested, self.stated, self.tensors
        arrays = self.shapes.table, self.addresses, self.behind, counts, expected
        of_rows = (len(counts), 0) if rows is None else (len(rows), address(rows))
        of_parts = id(self.distributed), id(self.parts), 0, 0
        self.watched = np.array((*map(id, objects), len(tensors), *map(address, arrays), *of_rows, *of_parts), WATCHED)

    def expect_parts(self, distributed: list[Any], slots: tuple[Any, Any]) -> None:
        """Expect the local parts of distributed tensors, and how these are distributed, to stay the same objects.

        Parameters
        ----------
        distributed : list
        slots : tuple of descriptor
            They return a tensor's local part, and its spec: how it is distributed.
        """
        self.slots = slots
        self.distributed[:] = distributed
        self.parts[:] = self._parts()
        self.watched["local"], self.watched["spec"] = map(id, slots)

    def note_entries(self) -> None:
        """Expect the entries of the dicts to stay as they are now."""
        self.assigned[:] = self._assigned()

    def forget_entries(self) -> None:
        """Take the entries of the dicts for changed."""
        self.assigned.clear()

    def _listed(self) -> list[Any]:
        lists = [dict.__getitem__(given, PARAMS) for given in self.dicts]  # whatever a subclass overrides
        return [item for given, held in zip(self.dicts, lists, strict=True) for item in (given, held, *held)]

    def _assigned(self) -> list[Any]:
        return [part for given in self.dicts for pair in dict.items(given) for part in pair]

    def _stated(self) -> list[Any]:
        stated: list[Any] = []
        for key, state in self.nested.items():
            stated += key, state
            if isinstance(state, dict):
                stated += [part for pair in state.items() for part in pair]
        return stated

    def _parts(self) -> list[Any]:
        return [slot.__get__(tensor) for tensor in self.distributed for slot in self.slots]

    def _described(self) -> list[Any]:
        described: list[Any] = []  # flat: the garbage collector would walk a tuple for each tensor
        for tensor in self.tensors:
            described += tensor.data_ptr(), tensor.dtype, tensor.device, tensor.ndim, *tensor.shape, *tensor.stride()
        return described

    def expect(
        self,
        parameters: list[Any],
        frozen: list[Any],
        descriptor: Any,
        tensor_type: Any,
        specs: list[Any],
        shapes: Sequence[Shape | None],
        starts: npt.NDArray[np.int64],
        reaches: npt.NDArray[np.int64],
    ) -> None:
        """Set what gradients are expected to be.

        Parameters
        ----------
        parameters : list
            The parameters whose gradients are read.
        frozen : list
            Parameters that must have no gradient: if one has, everything is OUT_OF_DATE.
        descriptor : descriptor or None
            Returns a parameter's gradient; if None, the caller puts them into `gradients`, and checks the frozen ones.
        tensor_type : type
            The exact type of the gradients, or of the local parts of distributed ones.
        specs : list
            How each gradient is to be distributed; None if it is not.
        shapes : sequence of Shape or None
            A gradient with None here is always UNREAD.
        starts, reaches : array of int64
            Ranges of addresses that no gradient may overlap, as `Extents` has them.
        """
        gradients: list[Any] = [None] * len(parameters)
        found, expected = np.empty(len(parameters) + 1, np.int64), Shapes(shapes)
        occupied = np.array((len(starts), address(starts), address(reaches)), EXTENTS)
        lists = id(parameters), id(frozen), id(descriptor) if descriptor else 0, id(gradients), id(specs)
        numbers = len(parameters), address(expected.table), address(occupied), address(found)
        wanted = np.array((*lists, id(tensor_type), *numbers), GRADIENTS)
        arguments: tuple[Any, ...] = ()
        if self.table:
            arguments = (
                ffi.cast("void *", self.table),
                ffi.cast("fastopt_watched *", address(self.watched)),
                ffi.cast("fastopt_gradients *", address(wanted)),
            )
        nones = list(gradients)
        # From here on no call: an interrupt would leave arguments that point to what is gone.
        self.gradients, self.nones, self.found = gradients, nones, found
        self.pointed_to = parameters, frozen, descriptor, tensor_type, specs, starts, reaches, occupied, expected
        self.wanted, self.arguments = wanted, arguments

    def take(self, step: Repetition, call: tuple[Any, ...]) -> int:
        """Read the gradients, and if every parameter has one, as expected, repeat the step.

        Return REPEATED then, after the call of `call_of`; else what `read` does.
        """
        result: int = lib.fastopt_read_tensors(*self.arguments, step.pointer, *call, step.get_num_threads())
        return self.read() if result == RAISED else result

    def read(self) -> int:
        """Read the gradients; return how many are UNREAD, or that something has changed.

        That is ASSIGNED if entries of the dicts have, else OUT_OF_DATE. Afterwards `gradients` holds the gradients
        and `found` their addresses, UNREAD, or 0 for None, with the number of Nones at the end. Not thread-safe.
        """
        if self.table:
            unread = int(lib.fastopt_read_tensors(*self.arguments, *NO_STEP))
            if unread != RAISED:
                return unread
        if not same(self._listed(), self.listed):
            return OUT_OF_DATE
        if not same(self._assigned(), self.assigned):
            return ASSIGNED
        unchanged = same(self._stated(), self.stated) and same(self._parts(), self.parts)
        unchanged = unchanged and self._described() == self.described
        unchanged = unchanged and np.array_equal(self.counts, self.expected_counts)
        _, frozen, descriptor = self.pointed_to[:3]
        if descriptor:
            unchanged = unchanged and all(descriptor.__get__(parameter) is None for parameter in frozen)
        return self.collect() if unchanged else OUT_OF_DATE

    def collect(self) -> int:
        """Collect the gradients, and mark each one for the slow check."""
        parameters, _, descriptor = self.pointed_to[:3]
        if descriptor:
            self.gradients[:] = [descriptor.__get__(parameter) for parameter in parameters]
        none = [gradient is None for gradient in self.gradients]
        self.found[:-1] = np.where(none, 0, UNREAD)
        self.found[-1] = sum(none)
        return len(none) - sum(none)

    def release(self) -> None:
        """Drop the gradients, so that the next ones can reuse their memory."""
        if self.table:
            lib.fastopt_release_tensors(self.arguments[-1])
        else:
            self.gradients[:] = self.nones
