"""One parameter: how it lies in memory, its states, and the count of its own steps."""

from __future__ import annotations

import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..kernels.dtypes import CODES, DTYPES, ROUNDED
from ..kernels.reader import Array
from ..kernels.tables import STATES
from ..options import ADDED_DEFAULTS, dtype_in_memory
from ..rules import Rule
from .codes import SCALES, constant
from .group import GroupOptions
from .launch import NO_STORAGE, Device, Launch, StorageRow, Variant
from .masters import MASTER, dtype_of_remainder
from .memory import Layout, extent

EMA = "ema"  # the state that is the parameter's average
STOCHASTIC = "stochastic"  # a rounding
NOTHING: dict[str, Any] = {}  # no new states; one dict for all parameters, never written to


class Parameter(ABC):
    """One parameter, of whatever library.

    Attributes
    ----------
    array : ndarray
        The parameter; on a GPU, an array that only describes its layout, and must not be read.
    states : dict of str to ndarray
        The same for the states.
    dtype, gradient : str
        What its kernel is compiled for: its own dtype, and that of the last gradient.
    step : int
        Its step count when the clock last wrote it here.
    carried : float
        The carried number, likewise; see `Rule.carried`.
    number : int
        Its place among all parameters of the optimizer.
    """

    # No dict and no tuples for each: with hundreds of parameters, the garbage collector would be busy during training.
    __slots__ = (
        "address",
        "array",
        "carried",
        "device",
        "dtype",
        "gradient",
        "group",
        "key",
        "launch",
        "layout",
        "number",
        "of_rows",
        "row",
        "states",
        "step",
    )

    def __init__(
        self, key: Hashable, array: Array, layout: Layout, dtype: str, group: GroupOptions, device: Device
    ) -> None:
        self.key = key
        self.array, self.layout = array, layout
        self.dtype, self.group, self.device = dtype, group, device
        self.gradient = dtype
        self.address = extent(array)[0]
        self.step = self.number = 0
        self.carried = 1.0
        self.states: dict[str, Array] = {}
        self.launch: Launch  # the plan's choice, and the row in its table
        self.row: int
        self.of_rows: tuple[Rule, Variant] | None = None  # the last rule and kernel of rows

    def __str__(self) -> str:
        """Name the parameter, for messages."""
        return f"parameter {self.key!r}"

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Iterate over all arrays that an update writes, with names for messages."""
        yield str(self), self.array
        for name, array in self.states.items():
            yield f"the {name} of {self}", array

    def memories(self) -> list[Array]:
        """Return arrays that keep alive all memory that an update writes."""
        return [self.array, *(array for _, array in self.arrays())]

    def new_states(self, rule: Rule, averages: bool = False) -> dict[str, Array]:
        """Allocate what the parameter lacks of the states that a rule needs, and of the average if that is kept."""
        value = self.group.entries[rule.initial] if rule.initial else 0.0
        new: dict[str, Array] = {}
        for name in rule.states:
            if name not in self.states:
                new |= self.new_state_of(name, value)
        if averages and EMA not in self.states:
            new[EMA] = self.new_average()
        if self.master and MASTER not in self.states:
            new[MASTER] = self.new_state(0.0, self.master)
        return new or NOTHING

    @property
    def rowwise(self) -> bool:
        """Whether its states have one number for each row, and not for each element."""
        return bool(self.group.entries.get("rowwise")) and len(self.shape) > 1

    def is_of_rows(self, name: str) -> bool:
        """Say whether a state has one number for each row."""
        return self.rowwise and name not in (EMA, MASTER)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape of a state that has one number for each row: it can be broadcast to the parameter's."""
        return (*self.shape[:1], *[1] * (len(self.shape) - 1))

    def check_rows_shape(self, what: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless this is the shape of a state that has one number for each row."""
        if shape != self.rows_shape:
            raise ValueError(f"{what} has shape {shape}, and needs {self.rows_shape} to be rowwise")

    def new_state_of(self, name: str, value: float) -> dict[str, Array]:
        """Allocate a state by its name, with its scales if it has 8 bits."""
        if self.is_of_rows(name):
            return {name: self.new_numbers(value)}
        dtype = self.state_dtype(name)
        if dtype not in CODES:
            return {name: self.new_state(value, dtype)}
        code, scale = constant(value, dtype)
        return {name: self.new_state(code, dtype), name + SCALES: self.new_scales(scale)}

    @property
    def elements(self) -> int:
        """How many elements the whole parameter has, also those that other processes hold."""
        return self.array.size

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the dtypes that are asked for."""
        asked = self.group.entries.get("state_dtype")
        return () if asked is None else (asked,) if isinstance(asked, str) else tuple(asked.values())

    def state_dtype(self, name: str) -> str:
        """Return the name of a state's dtype: that in which kernels compute, unless another is asked for."""
        asked = self.group.entries.get("state_dtype")
        default = DTYPES[self.dtype].real_name
        if name == MASTER:
            return self.master
        if asked is None or name == EMA or self.rowwise or not self.is_as_asked:
            return default
        return dtype_in_memory(name, asked if isinstance(asked, str) else asked.get(name, default))

    @property
    def has_codes(self) -> bool:
        """Whether it may have states in 8 bits, whose blocks a gradient in another storage order would cut across."""
        return "int8" in self.asked and self.is_as_asked

    @property
    def is_as_asked(self) -> bool:
        """Whether its states lie as the group asks: it is neither small nor complex."""
        smallest: int = self.group.entries.get("min_quantized_size", ADDED_DEFAULTS["min_quantized_size"])
        return self.elements >= smallest and not self.is_complex

    def state_dtypes(self, rule: Rule) -> tuple[str, ...]:
        """Return the dtypes of a rule's states by name; nothing if kernels compute in all of them."""
        dtypes = tuple([self.state_dtype(name) for name in rule.states])
        return () if {*dtypes} <= {DTYPES[self.dtype].real_name} else dtypes

    @property
    def master(self) -> str:
        """The dtype of the remainder beside the parameter; empty if it has no master."""
        asked = self.group.entries.get("master_weights", ADDED_DEFAULTS["master_weights"])
        return "" if self.is_complex else dtype_of_remainder(self.dtype, asked)

    def rounding(self, rule: Rule) -> str:
        """Say how what a rule writes in 16 or 8 bits is rounded: STOCHASTIC, or "" for to nearest, or if nothing is."""
        written = self.state_dtypes(rule) if self.master else (self.dtype, *self.state_dtypes(rule))
        return STOCHASTIC if self.group.entries.get("stochastic_rounding") and not ROUNDED.isdisjoint(written) else ""

    def variant(self, rule: Rule, stages: tuple[str, ...], gradient: str) -> Variant:
        """Return the kernel of a rule with these stages, for gradients of a dtype."""
        dtypes, other = self.state_dtypes(rule), gradient if gradient != self.dtype else ""
        return Variant(rule.name, self.dtype, stages, dtypes, other, self.master, self.rounding(rule))

    def variant_of_rows(self, rule: Rule, stages: tuple[str, ...], gradient: str) -> Variant:
        """Return the same of rows, which each step asks for: the last one is kept."""
        if self.of_rows is None or self.of_rows[0] is not rule or self.of_rows[1].of_gradient != gradient:
            self.of_rows = rule, self.variant(rule, stages, gradient)
        return self.of_rows[1]

    @property
    def part(self) -> int:
        """Which part of the whole parameter this process has."""
        return 0

    def storage_row(self, rule: Rule, states: Mapping[str, Array]) -> StorageRow:
        """Return where what a rule's states and the parameter have beside them lies, and the key of random bits."""
        scales, remainder = [states.get(name + SCALES) for name in rule.states], states.get(MASTER)
        addresses = [0 if found is None else extent(found)[0] for found in (*scales, remainder)]
        key = random_key(self.group.entries.get("seed", 0), self.number, self.part) if self.rounding(rule) else 0
        if not (key or any(addresses)):
            return NO_STORAGE
        unused = [0] * (STATES - len(scales))
        return StorageRow((*addresses[:-1], *unused), addresses[-1], key)

    @property
    def is_complex(self) -> bool:
        """Whether it consists of pairs of reals."""
        return False

    @property
    def gradient_bytes(self) -> int:
        """How many bytes a gradient has, like the last one."""
        return self.array.size * DTYPES[self.gradient].itemsize

    @property
    def expected(self) -> Any:
        """The array that the reader expects a gradient to equal in type, dtype, shape and strides, or None."""
        return None

    @abstractmethod
    def new_state(self, value: float, dtype: str) -> Any:
        """Allocate a state of a dtype in the parameter's storage order."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape, as its user knows it."""

    @property
    def has_plain_rows(self) -> bool:
        """Whether its rows lie one after the other, where a step can update some of them."""
        return False

    @abstractmethod
    def new_numbers(self, value: float) -> Any:
        """Allocate a state that has one number for each row."""

    @abstractmethod
    def new_scales(self, value: float) -> Any:
        """Allocate the scales of a state's blocks."""

    @abstractmethod
    def new_average(self) -> Any:
        """Allocate the parameter's average, which starts at the parameter."""

    def restore(self, step: int, carried: float, states: Mapping[str, Array]) -> None:
        """Replace count, carried number and states."""
        self.step, self.carried, self.states = step, carried, {}
        self.keep(states)

    def keep(self, states: Mapping[str, Array]) -> None:
        """Take new states."""
        self.states.update(states)

    def drop(self, names: Iterable[str]) -> None:
        """Drop states that no step has written."""
        for name in names:
            self.states.pop(name, None)


def random_key(*numbers: int) -> int:
    """Return 64 bits for the random bits of a parameter, other ones for any other numbers."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    digest = hashlib.blake2b(packed, digest_size=8, usedforsecurity=False).digest()
    return int.from_bytes(digest, "little", signed=True)


@dataclass(eq=False)
class StepGroup:
    """Parameters of one group with the same step count and carried number: they share a hyper row.

    Attributes
    ----------
    step : int
        That count.
    first : bool
        Whether the rule's states begin with this step.
    begins : bool
        Whether any state does; an average may begin later.
    """

    group: GroupOptions
    rule: Rule
    step: int
    first: bool
    parameters: list[Parameter] = field(default_factory=list)
    new_states: list[dict[str, Array]] = field(default_factory=list)
    begins: bool = False
