"""One parameter: how it lies in memory, its states, and the count of its own steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..kernels.reader import Array
from ..rules import Rule
from .group import GroupOptions
from .launch import Device, Launch
from .memory import Layout, extent

NOTHING: dict[str, Any] = {}  # new states where there are none: one for all parameters, which nobody writes into


class Parameter(ABC):
    """One parameter, of whatever library.

    Attributes
    ----------
    array : ndarray
        The parameter; where it lies on a GPU, a stand-in that says how, and must not be read.
    states : dict of str to ndarray
        The same for the states.
    dtype : str
        What its kernel is compiled for.
    step : int
        How many steps it has taken, as of the last time that the clock has written it here.
    carried : float
        A number that its rule hands on from step to step, likewise; see `Rule.carried`.
    """

    # No dict for each, and no tuples: hundreds of these would keep the garbage collector busy in the midst of training.
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
        self.step = 0
        self.carried = 1.0
        self.states: dict[str, Array] = {}
        self.launch: Launch  # the plan's choice, and its row there
        self.row: int

    def __str__(self) -> str:
        """Name the parameter, for messages."""
        return f"parameter {self.key!r}"

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Iterate over all that an update writes, with names for messages."""
        yield str(self), self.array
        for name, array in self.states.items():
            yield f"the {name} of {self}", array

    def memories(self) -> list[Array]:
        """Return the arrays that keep all memory alive which an update writes."""
        return [self.array, *(array for _, array in self.arrays())]

    def new_states(self, rule: Rule) -> dict[str, Array]:
        """Allocate what a rule needs and the parameter does not have."""
        value = self.group.entries[rule.initial] if rule.initial else 0.0
        return {name: self.new_state(value) for name in rule.states if name not in self.states} or NOTHING

    @abstractmethod
    def new_state(self, value: float) -> Any:
        """Allocate a state that lies as the parameter does."""

    def restore(self, step: int, carried: float, states: Mapping[str, Array]) -> None:
        """Take over a count and states, and drop the present ones."""
        self.step, self.carried, self.states = step, carried, {}
        self.keep(states)

    def keep(self, states: Mapping[str, Array]) -> None:
        """Take new states."""
        self.states.update(states)

    def drop(self, names: Iterable[str]) -> None:
        """Give up states that no step has written."""
        for name in names:
            self.states.pop(name, None)


@dataclass(eq=False)
class StepGroup:
    """Parameters of one group that have taken the same number of steps: they share a hyper row.

    Attributes
    ----------
    step : int
        That number.
    carried : float
        What their rule hands on from step to step.
    first : bool
        Whether their states begin with this step.
    """

    group: GroupOptions
    rule: Rule
    step: int
    carried: float
    first: bool
    parameters: list[Parameter] = field(default_factory=list)
    new_states: list[dict[str, Array]] = field(default_factory=list)
