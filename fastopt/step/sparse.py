"""Rows of a table that a step updates where they lie: those that a sparse gradient has, and no others.

A row is a chunk of the table, so that the kernels are those of whole tensors. Values that belong to the same row are
added up first, in the order in which they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ..kernels.dtypes import CODES, DTYPES
from ..kernels.reader import Array, address
from ..kernels.tables import BLOCK, CHUNK
from ..options import ADDED_DEFAULTS
from ..rules import Family, Row, Rule
from .chunks import Table
from .cpu import ELEMENTS_PER_THREAD, ROW_ELEMENTS_PER_THREAD, CpuLaunch
from .launch import NO_STORAGE, StorageRow, Variant
from .memory import extent
from .norm import Measured, Piece
from .parameter import EMA, Parameter
from .stages import Stages

Clip: TypeAlias = tuple[float, float] | None
LARGEST_KEY = 2**63 - 1  # a row's number, then a place
ROWS, ROWWISE = ("rows",), ("rows", "rowwise")  # what kernels for them have instead of stages
REALS = {np.dtype(name): name for name in ("float32", "float64")}  # ``dtype.name`` takes 5 µs


class Given(NamedTuple):
    """Rows as they were given: keys, sorted by rows, of the lines of values, which are float32 or float64."""

    what: str
    keys: npt.NDArray[np.int64]  # see `kernels.row_chunks`
    values: Array  # two axes
    needed: int  # how many rows the table must have
    dense: bool = False  # whether they are all that the table has

    @classmethod
    def all_of(cls, what: str, gradient: Array) -> Given:
        """Take all rows of a dense gradient; 16 bits become float32."""
        n = len(gradient)
        if n - 1 > LARGEST_KEY >> bits_of(n):
            raise ValueError(f"{what} has {n} rows, more than {LARGEST_KEY >> bits_of(n)}: pass parts of the table")
        places = np.arange(n)
        lines = in_order(as_reals(what, gradient)).reshape(n, -1 if n else 0)
        return cls(what, (places << bits_of(n)) | places, lines, n, dense=True)

    @classmethod
    def of(cls, what: str, indices: Array, values: Array) -> Given:
        """Take indices of any shape and values that have their axes and those of a row; 16 bits become float32."""
        from ..kernels.row_chunks import orderer  # numba is imported when it is first needed

        n = indices.size
        lines = in_order(as_reals(what, values)).reshape(n, -1 if n else 0)
        flat = in_order(np.asarray(indices, np.int64)).reshape(-1)
        keys, bits = np.empty(n, np.int64), bits_of(n)
        largest = LARGEST_KEY >> bits
        lowest, highest = orderer()(flat, bits, largest, keys, np.empty_like(keys))
        if lowest < 0:
            raise ValueError(f"{what} has an index {lowest}: indices are rows of the table, from 0")
        if highest > largest:
            raise ValueError(f"{what} has an index {highest}: no table has so many rows")
        return cls(what, keys, lines, highest + 1)

    @property
    def width(self) -> int:
        """How many elements a row has."""
        return int(self.values.shape[1])

    @property
    def bits(self) -> int:
        """How many bits of a key are the place."""
        return bits_of(self.keys.size)

    def check_below(self, rows: int) -> None:
        """Raise ValueError unless all indices are rows of a table with so many."""
        if self.needed > rows:
            raise ValueError(f"{self.what} has an index {self.needed - 1}, the table has {rows} rows")

    def cut(self, copies: bool = False) -> tuple[Table, Array]:
        """Return a chunk for each row, and the sums of those that come more than once, or copies of all."""
        from ..kernels.row_chunks import cutter  # numba is imported when it is first needed

        n = self.keys.size
        chunks = np.empty(n, CHUNK)
        most = n if copies else 0 if self.dense else n // 2
        sums = np.empty((most, self.width), self.values.dtype)
        count, summed = cutter(REALS[self.values.dtype])(self.keys, self.bits, self.values, sums, chunks, copies)
        return chunks[:count], sums[:summed]

    def clipped(self, factor: float, limit: float) -> Given:
        """Return each row once, multiplied, and clipped to a size."""
        found = self.coalesced()
        with np.errstate(all="ignore"):
            np.multiply(found.values, factor, out=found.values, casting="same_kind")
            np.clip(found.values, -limit, limit, out=found.values)
        return found

    @property
    def summed(self) -> Array:
        """The values of each row once, added up."""
        return self.values if self.dense else self.cut(copies=True)[1]

    def coalesced(self) -> Given:
        """Return each row once, with values of its own."""
        _, sums = self.cut(copies=True)
        rows = self.rows
        return self._replace(keys=(rows << bits_of(rows.size)) | np.arange(rows.size), values=sums)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Each row once, in order."""
        rows = self.keys >> self.bits
        new = np.ones(rows.size, bool)
        np.not_equal(rows[1:], rows[:-1], out=new[1:])  # `np.unique` does not know that they are sorted
        return rows[new]


def as_reals(what: str, values: Array) -> Array:
    """Return values as float32 or float64; 16 bits become float32."""
    if values.dtype in REALS:
        return values
    if values.dtype.name not in DTYPES or not values.dtype.isnative:
        raise TypeError(f"{what} has dtype {values.dtype}, and must have one of {', '.join(DTYPES)}")
    return values.astype(DTYPES[values.dtype.name].real)


def in_order(array: Array) -> Array:
    """Return an array, or a copy, whose elements lie in the order of its axes, and aligned."""
    array = np.asarray(array)  # matrices would keep two axes
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=("C", "A"))


def bits_of(n: int) -> int:
    """Return how many bits number so many places."""
    return max(n - 1, 0).bit_length()


def check_rule(parameter: Parameter, family: Family, rule: Rule, advice: str, others: str) -> None:
    """Raise if a rule would also change rows that a sparse gradient leaves out, unless it is asked to leave them.

    Parameters
    ----------
    parameter : Parameter
    family : Family
        The rules of its optimizer.
    rule : Rule
    advice : str
        How to make the gradient dense.
    others : str
        Which optimizers leave such rows alone.

    Raises
    ------
    RuntimeError
        If no rule of its optimizer does.
    ValueError
        If options have it change them.
    """
    lazy = rule.carried is None  # whose number would have to be a row's
    if lazy and parameter.group.entries.get("lazy_update", ADDED_DEFAULTS["lazy_update"]):
        return
    asked = "lazy_update=True to leave these as they are, or pass " if lazy else ""
    if not any(able.sparse for able in family.rules):
        raise RuntimeError(
            f"the gradient of {parameter} is sparse, and {rule.name} does not support that: its averages change in "
            f"the rows that it leaves out, too; pass {asked}{advice}, or use {others}"
        )
    if not rule.sparse or parameter.group.upcoming.get("weight_decay", 0) != 0:
        raise ValueError(
            f"the gradient of {parameter} is sparse, which does not work with a momentum or weight decay: these "
            f"move the rows that it leaves out; pass {asked}{advice}, or put the parameter into a group without"
        )


def check_there(parameter: Parameter, rule: Rule, stages: Stages) -> None:
    """Raise if a parameter on a GPU cannot take a gradient by rows.

    Raises
    ------
    ValueError
        If its states are in 8 bits, or parameters are averaged.
    """
    if parameter.rowwise and stages.averages:
        raise ValueError(
            f"rowwise=True, of {parameter}, goes without ema_decay on a GPU, where the average of rows that have no "
            "gradient would not follow: leave one of the two out"
        )
    if {*parameter.state_dtypes(rule)} & {*CODES}:
        raise ValueError(
            f"the gradient of {parameter} is sparse, and its states are in 8 bits, in blocks that rows cut across on a "
            'GPU: put it into a group with state_dtype="float32"'
        )
    if stages.averages:
        raise ValueError(
            f"the gradient of {parameter} is sparse, and on a GPU the average of rows that it leaves out would not "
            "follow: pass a dense one, or leave ema_decay out"
        )


def check_rowwise(parameter: Parameter, family: Family) -> None:
    """Raise ValueError if a parameter is to have one number for each row, and cannot."""
    if not parameter.group.entries.get("rowwise"):
        return
    if not any(rule.rowwise for rule in family.rules):
        raise ValueError(
            f"rowwise=True, of {parameter}, is for Adagrad alone: other rules have no numbers that a row can share"
        )
    if {*parameter.asked} - {"float32"}:
        raise ValueError(
            f"rowwise=True, of {parameter}, keeps its accumulators in float32: leave state_dtype out of the group"
        )
    if parameter.rowwise and not parameter.has_plain_rows:
        raise ValueError(
            "rowwise=True is for tables of real numbers, whole and with one row after the other, and "
            f"{parameter} is none: put it into a group with rowwise=False"
        )


class Rows:
    """The rows of one parameter in a step, on the CPU: all that can fail or take memory comes before the update.

    Parameters
    ----------
    parameter : Parameter
        Whose elements lie in the order of its axes.
    rule : Rule
    given : Given
        Rows that the parameter has.
    clip : (float, float) or None
        A factor of the gradient, and the largest size of an element after it; None leaves both to the update.
    averages : bool
        Whether parameters are averaged.

    Attributes
    ----------
    read : ndarray
        The values of the gradient, as they were given.
    new_states : dict of str to ndarray
        States that begin with this step.
    first : bool
        Whether the rule's states do.

    Raises
    ------
    ValueError
        If rows cut across blocks of states in 8 bits.
    """

    def __init__(self, parameter: Parameter, rule: Rule, given: Given, clip: Clip, averages: bool) -> None:
        used, stages = given if clip is None else given.clipped(*clip), ROWWISE if parameter.rowwise else ROWS
        variant = parameter.variant_of_rows(rule, stages, REALS[used.values.dtype])
        if variant.has_codes and given.width % BLOCK:
            raise ValueError(
                f"the gradient of {parameter} is sparse, and its states are in 8 bits, in blocks of {BLOCK} that rows "
                f'of {given.width} elements cut across: put it into a group with state_dtype="float32"'
            )
        self.parameter, self.rule, self.given, self.read = parameter, rule, given, given.values
        self.new_states = parameter.new_states(rule, averages)
        self.first = not self.new_states.keys().isdisjoint(rule.states)
        states = {**parameter.states, **self.new_states}
        addresses = [parameter.address, *(address(states[name]) for name in rule.states)]
        storage = parameter.storage_row(rule, states) if variant.uses_storages else NO_STORAGE
        self.change = Change(parameter.device, variant, used, addresses, storage)

    @property
    def norm(self) -> float:
        """The norm of the gradient as it was given."""
        values, cpu = self.given.summed, cast(Any, self.parameter.device)
        measured: Measured = cpu.norm([Piece.of(values.dtype.name, values)])
        return measured.norm

    def keep_new_states(self) -> None:
        """Give the parameter the states that begin with this step; the launch brings the average up to date."""
        keep_new_states(self.parameter, self.rule, self.new_states)

    def update(self, row: Row, count: int) -> None:
        """Update the rows by a hyper row, after so many steps."""
        self.change(row, count)


class Change:
    """An update of rows of a table with parameter and states at these addresses, ready to run."""

    def __init__(
        self,
        device: Any,
        variant: Variant,
        given: Given,
        addresses: Sequence[int],
        storage: StorageRow = NO_STORAGE,
    ) -> None:
        chunks, sums = given.cut()
        param, *states = addresses
        both = [[param, address(values), *states] for values in (given.values, sums)]
        self.held = given, sums
        self.device, self.key = device, (variant, "rows")
        self.launch: CpuLaunch = device.launch_of_places(self.key, variant, both, storage)
        per_thread = ELEMENTS_PER_THREAD if given.dense else ROW_ELEMENTS_PER_THREAD
        self.launch.take_chunks(chunks, len(chunks) * given.width, per_thread)

    def __call__(self, numbers: Row, count: int) -> None:
        """Update by a hyper row, after so many steps."""
        self.launch.hypers[0, : len(numbers)] = numbers
        self.launch.write_count(count)
        self.launch()
        self.device.cache.put(self.key, self.launch)


def keep_new_states(parameter: Parameter, rule: Rule, new_states: Mapping[str, Array]) -> None:
    """Give a parameter whose gradient is sparse the states that begin with a step, and tell its launch of the average.

    The launch brings averages up to date, those of rows that the gradient leaves out, too.
    """
    if new_states:
        parameter.keep(new_states)
    if EMA in new_states:
        parameter.launch.write_average(parameter.row, extent(new_states[EMA])[0])
        parameter.launch.write_storage(parameter.row, parameter.storage_row(rule, parameter.states))
