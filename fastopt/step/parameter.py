"""One parameter: how it lies in memory, its states, and the count of its own steps."""

from __future__ import annotations

import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..kernels.dtypes import DTYPES
from ..kernels.reader import Array
from ..rules import ADDED_DEFAULTS, Rule
from .group import GroupOptions
from .launch import NO_STORAGE, Device, Launch, StorageRow
from .memory import Layout, extent

EMA = "ema"  # the state that is the parameter's average
HALVES = {"float16", "bfloat16"}
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
    dtype : str
        What its kernel is compiled for.
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
        "group",
        "key",
        "launch",
        "layout",
        "number",
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
        self.address = extent(array)[0]
        self.step = self.number = 0
        self.carried = 1.0
        self.states: dict[str, Array] = {}
        self.launch: Launch  # the plan's choice, and the row in its table
        self.row: int

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
        new = {name: self.new_state(value, self.state_dtype(name)) for name in rule.states if name not in self.states}
        if averages and EMA not in self.states:
            new[EMA] = self.new_average()
        return new or NOTHING

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
        if asked is None or name == EMA or self.is_complex:
            return default
        if self.elements < self.group.entries.get("min_quantized_size", ADDED_DEFAULTS["min_quantized_size"]):
            return default
        return asked if isinstance(asked, str) else asked.get(name, default)

    def state_dtypes(self, rule: Rule) -> tuple[str, ...]:
        """Return the dtypes of a rule's states by name; nothing if kernels compute in all of them."""
        dtypes = tuple([self.state_dtype(name) for name in rule.states])
        return () if {*dtypes} <= {DTYPES[self.dtype].real_name} else dtypes

    def rounding(self, rule: Rule) -> str:
        """Say how what a rule writes in 16 bits is rounded: STOCHASTIC, or "" for to nearest, or if nothing is."""
        in_halves = not HALVES.isdisjoint((self.dtype, *self.state_dtypes(rule)))
        return STOCHASTIC if in_halves and self.group.entries.get("stochastic_rounding") else ""

    @property
    def part(self) -> int:
        """Which part of the whole parameter this process has."""
        return 0

    def storage_row(self, rule: Rule, states: Mapping[str, Array]) -> StorageRow:
        """Return where what a rule's states and the parameter have beside them lies, and the key of its random bits."""
        if not self.rounding(rule):
            return NO_STORAGE
        return StorageRow(key=random_key(self.group.entries.get("seed", 0), self.number, self.part))

    @property
    def is_complex(self) -> bool:
        """Whether it consists of pairs of reals."""
        return False

    @property
    def expected(self) -> Any:
        """The array that the reader expects a gradient to equal in type, dtype, shape and strides, or None."""
        return None

    @abstractmethod
    def new_state(self, value: float, dtype: str) -> Any:
        """Allocate a state of a dtype in the parameter's storage order."""

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
