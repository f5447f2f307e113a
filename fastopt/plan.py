"""From checked arrays to launches: which tensors share a kernel, which share a hyper row, and who counts what.

A `Plan` belongs to an optimizer. It splits the tensors into one `Launch` per rule, format and place, the host or a
device, and those that take part in a step into `Cohort`s, one per hyper row: tensors of one group that have taken the
same number of steps. As a rule there is one launch and a cohort per group, and a step rewrites nothing but the
addresses of new gradients.

The plan counts steps, and computes their hyper rows; but not those that a captured graph takes when it is replayed, nor
those that are skipped where only the device can know. From the first of these on, the devices count, and are asked for
the count when somebody wants to know it: the steps are taken *away*.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from .arrays import Extents, Layout, extent, pin
from .away import Away
from .chunks import Strides, located
from .groups import GroupOptions
from .kernels.reader import UNREAD, Array, Reader
from .kernels.tables import COHORT, HYPERS, TENSOR
from .rules import RULES, Options, Row, Rule

NUMBERS = {name: number for number, name in enumerate(RULES)}  # of the rules in a cohort

Member = tuple[int, int, Sequence[int]]  # of a launch: a tensor's row, its hyper row, the addresses of its states


class Launch(ABC):
    """One kernel over tensors of one rule, one format, one place and these sizes: the tables, and the call."""

    strided: dict[int, Strides] | None  # row of a tensor -> how its gradient lies, where not as the parameter

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.table = np.zeros(len(sizes), TENSOR)
        self.gradients = self.table["grad"]

    def write_params(self, addresses: Sequence[int]) -> None:
        """Take the addresses of the parameters."""
        self.table["param"] = addresses

    def write_members(self, members: Sequence[Member]) -> None:
        """Take hyper rows and states of the tensors that take part."""
        for row, hyper, states in members:
            self.table[row]["hyper"] = hyper
            self.table[row]["states"][: len(states)] = states

    def memories(self) -> list[Any]:
        """Return what the tables lie in that a device reads."""
        return []

    @abstractmethod
    def write_hypers(self, hypers: npt.NDArray[np.float64]) -> None:
        """Take the hyper rows, which may change in place."""

    @abstractmethod
    def write_gradients(self, addresses: npt.NDArray[np.int64], strided: dict[int, Strides]) -> None:
        """Take the addresses of gradients, which the caller keeps until the work is done."""

    @abstractmethod
    def __call__(self) -> None:
        """Update."""


class Launches(Protocol):
    """What prepares a launch."""

    def launch(self, rule: Rule, format: str, sizes: Sequence[int]) -> Launch:
        """Prepare a launch over tensors of these sizes."""


class Verdict(Protocol):
    """What only the devices know of a step: what the gradients are divided by, and whether the step is skipped."""

    def addresses(self, place: Any) -> tuple[int, int]:
        """Return where a float and an int32 lie on a device that say so; 0 where gradients are not divided."""


class Course(Launches, Protocol):
    """A device's side of a plan's steps: their hyper rows, and the count of those that it takes away."""

    capturing: bool

    def begin(self, verdict: Verdict | None) -> None:
        """Find out on which stream the step is put, and whether that is being captured."""

    def send_rows(self, hypers: npt.NDArray[np.float64]) -> None:
        """Send hyper rows that the host has computed."""

    def hold(self, record: Array) -> int:
        """Return where a schedule's record lies in the device's memory, after putting it there."""

    def describe(self, cohorts: Sequence[Cohort], taken: int, restart: bool) -> None:
        """Take over what hyper rows are computed from, after so many steps away, and count from there, or anew."""

    def own(self, memories: Sequence[Any]) -> None:
        """Let the graph that is recorded own this memory, and the course's."""

    def tell(self) -> None:
        """Send that, unless the device has it already, from a graph."""

    def advance(self) -> None:
        """Count a step, unless it is skipped, and compute its hyper rows."""

    def taken(self) -> int:
        """Wait for the device, and return how many steps it has counted."""


class Place(Protocol):
    """Where tensors lie and are updated: the host's memory, or a device's."""

    on_device: bool

    def open(self) -> Launches:
        """Return what prepares a plan's launches: on a device, a course of the plan's own."""

    def update(
        self, rule: Rule, format: str, size: int, addresses: Sequence[int], strided: dict[int, Strides], numbers: Row
    ) -> None:
        """Update a single tensor, whose parameter, gradient and states lie at these addresses."""


NOTHING: dict[str, Any] = {}  # new states where there are none: one for all tensors, which nobody writes into


class Tensor(ABC):
    """One parameter: how it lies in memory, its states, and the count of its own steps.

    Attributes
    ----------
    array : ndarray
        The parameter; where it lies on a device, a stand-in that says how, and must not be read.
    states : dict of str to ndarray
        The same for the states.
    format : str
        What its kernel is compiled for.
    """

    # No dict for each, and no tuples: hundreds of these would keep the garbage collector busy in the midst of training.
    __slots__ = ("address", "array", "format", "group", "key", "launch", "layout", "place", "row", "states", "step")

    def __init__(
        self, key: Hashable, array: Array, layout: Layout, format: str, group: GroupOptions, place: Place
    ) -> None:
        self.key = key
        self.array, self.layout = array, layout
        self.format, self.group, self.place = format, group, place
        self.address = extent(array)[0]
        self.step = 0
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
        """Allocate what a rule needs and the tensor does not have."""
        value = self.group.entries[rule.initial] if rule.initial else 0.0
        return {name: self.new_state(value) for name in rule.states if name not in self.states} or NOTHING

    @abstractmethod
    def new_state(self, value: float) -> Any:
        """Allocate a state that lies as the parameter does."""

    def restore(self, step: int, states: Mapping[str, Array]) -> None:
        """Take over a count and states, and drop the present ones."""
        self.step, self.states = step, {}
        self.keep(states)

    def keep(self, states: Mapping[str, Array]) -> None:
        """Take new states."""
        self.states.update(states)

    def drop(self, names: Iterable[str]) -> None:
        """Give up states that no step has written."""
        for name in names:
            self.states.pop(name, None)


class ArrayTensor(Tensor):
    """One parameter that is an array, of NumPy or on a GPU."""

    __slots__ = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the parameter holds."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.array.shape

    def shown(self) -> Mapping[str, Any]:
        """Return the states as a user sees them."""
        return self.states

    @abstractmethod
    def loaded(self, what: str, given: Any) -> Array:
        """Copy a state from a state dict, after checking that it is this tensor's."""

    def alike(self, given: Any) -> int:
        """Return the address of a gradient that lies as the parameter does; UNREAD where that takes a closer look."""
        return UNREAD

    @abstractmethod
    def gradient(self, what: str, given: Any) -> tuple[Any, Array]:
        """Check a gradient; return it, to be held, and how it lies."""


class Gradients:
    """Gradients that have been checked against their tensors, and held.

    Attributes
    ----------
    addresses : array of int64
        One for each tensor, of the first element in the parameter's storage order; 0 where there is no gradient.
    taking_part : bytes
        One byte for each tensor, 1 where there is a gradient.
    strided : dict
        Index of a tensor -> how its gradient lies, where that is not as the parameter lies.
    """

    def __init__(self, plan: Plan, tensors: Sequence[ArrayTensor], given: Sequence[Any]) -> None:
        self.arrays = list(given)
        if len(self.arrays) != len(tensors):
            raise ValueError(f"there are {len(tensors)} parameters and {len(self.arrays)} gradients")
        self.strided: dict[int, Strides] = {}
        self.addresses, unread, none = plan.reader.read(self.arrays)
        if unread and plan.courses:
            self._read_alike(tensors, plan.extents)
        if unread:
            for i in np.flatnonzero(self.addresses == UNREAD).tolist():
                self._check(i, tensors[i], plan.extents)
        self.taking_part = (self.addresses != 0).tobytes() if none else plan.everyone

    def _read_alike(self, tensors: Sequence[ArrayTensor], extents: Extents) -> None:
        """Read those on devices that lie as their parameters do, off all that an update writes."""
        unread = np.flatnonzero(self.addresses == UNREAD)
        found = np.array([tensors[i].alike(self.arrays[i]) for i in unread.tolist()], np.int64)
        lengths = np.array([tensors[i].array.nbytes for i in unread.tolist()])
        self.addresses[unread] = np.where(extents.overlapped(found, found + lengths), UNREAD, found)

    def _check(self, i: int, tensor: ArrayTensor, extents: Extents) -> None:
        what = f"the gradient of {tensor}"
        self.arrays[i], array = tensor.gradient(what, self.arrays[i])
        if (other := extents.overlapping(array)) is not None:
            raise ValueError(f"{what} overlaps {other} in memory: pass a .copy() of it")
        self.addresses[i], strides = located(tensor.layout.in_storage_order(array))
        if strides is not None:
            self.strided[i] = strides

    def keep_in_place(self) -> None:
        """Hinder all resizing, also that without a check of references, for as long as this lives."""
        self.pins = [reference for array in self.arrays if array is not None for reference in pin(array)]

    def release(self) -> None:
        """Hold the arrays no longer, so that the next ones can have their memory; there is no step with these again."""
        self.arrays = []


class Located(Protocol):
    """What a step needs to know of gradients: what is said of `Gradients`, by whomever they were read."""

    addresses: npt.NDArray[np.int64]
    taking_part: bytes
    strided: dict[int, Strides]


@dataclass(eq=False)
class Cohort:
    """The tensors of a step that share a hyper row: one group, one count of steps."""

    group: GroupOptions
    rule: Rule
    step: int
    first: bool  # whether their states begin with this step
    tensors: list[Tensor] = field(default_factory=list)
    new_states: list[dict[str, Array]] = field(default_factory=list)

    def describe(self, row: Any) -> None:
        """Write into a row of COHORT what hyper rows are computed from, but for schedules and their clock."""
        row["rule"], row["first"], row["steps"] = NUMBERS[self.rule.name], self.first, self.step
        numbers = [number for _, number in self.rule.numbers(self.group.upcoming)]
        row["options"][: len(numbers)] = numbers


class Plan:
    """All launches of an optimizer, and what changes between two of its steps.

    Not for several threads at once: whoever calls holds `lock`.

    Parameters
    ----------
    groups : sequence of GroupOptions
    tensors : sequence of Tensor
        Those of all groups, in order.
    choose : callable
        ``choose(options)``, the rule that a group's options ask for; raises ValueError where they contradict.
    """

    def __init__(
        self,
        groups: Sequence[GroupOptions],
        tensors: Sequence[Tensor],
        choose: Callable[[Options], Rule],
    ) -> None:
        self.groups = groups
        self.tensors = tensors
        self.choose = choose
        self.counted = groups  # whose steps this plan counts
        self.scale = 1.0  # of all gradients in the next step
        self.rules: list[Rule] = []
        self._kinds: list[tuple[int, str]] | None = None  # indices of groups, and formats of tensors in each
        self.launches: list[Launch] = []
        self.opened: dict[Place, Launches] = {}
        self.courses: list[Course] = []  # of the devices
        self.away = Away(self)
        self.indices: list[npt.NDArray[np.int64]] = []  # of each launch's tensors
        self.cohorts: list[Cohort] = []
        self.hypers = np.zeros((0, HYPERS))
        self.formed: bytes | None = None  # who takes part in the cohorts
        self.loaded: Located | None = None
        self.versions: list[int] = []  # of the groups, when they were asked last
        self.looked = False  # whether the groups have been asked for the next step
        self.steady = False  # whether the hyper rows follow from the counts of steps alone
        self.moving = False  # whether they are others at each count
        self.stepping = False
        self._extents: Extents | None = None
        self._reader: Reader | None = None
        self.validate()
        self.lock = threading.RLock()  # a schedule may ask for the state
        _plans.add(self)

    def validate(self) -> None:
        """Check what concerns groups as a whole and all tensors together, and open the places where these lie."""
        self.check_options([self.choose(group.entries) for group in self.groups], [g.entries for g in self.groups])
        if (pair := self.extents.first_overlap()) is not None:
            raise ValueError(
                f"{pair[0]} and {pair[1]} overlap in memory: pass each once, and a copy of what they share"
            )
        for tensor in self.tensors:
            if tensor.place not in self.opened:
                self.opened[tensor.place] = tensor.place.open()
        self.courses = [cast("Course", opened) for place, opened in self.opened.items() if place.on_device]

    def check_options(self, rules: Sequence[Rule], options: Sequence[Options]) -> None:
        """Raise where options of a group are too large for what one of its parameters is computed in."""
        if self._kinds is None:
            self._kinds = sorted({(tensor.group.index, tensor.format) for tensor in self.tensors})
        for index, dtype in self._kinds:
            rules[index].check_options(options[index], dtype, f" of group {index}")

    @property
    def extents(self) -> Extents:
        """Where parameters and states lie, so that gradients can be kept off them."""
        if self._extents is None:
            self._extents = Extents(named for tensor in self.tensors for named in tensor.arrays())
        return self._extents

    @property
    def everyone(self) -> bytes:
        """What `Gradients.taking_part` is where there is a gradient for every tensor."""
        return b"\1" * len(self.tensors)

    @property
    def reader(self) -> Reader:
        """What reads the addresses of gradients that lie as their parameters do, and off all that an update writes."""
        if self._reader is None:
            here = [tensor.layout.forwards and not tensor.place.on_device for tensor in self.tensors]
            expected = [tensor.array if readable else None for tensor, readable in zip(self.tensors, here, strict=True)]
            self._reader = Reader(expected, self.extents.starts, self.extents.reaches)
        return self._reader

    @property
    def on_devices(self) -> bool:
        """Whether all tensors lie on devices."""
        return all(tensor.place.on_device for tensor in self.tensors)

    def step(self, gradients: Located) -> None:
        """Update every tensor that has a gradient; whatever can fail comes before the first launch."""
        self.refuse_inside_step()
        self.stepping = True
        try:
            if not self.looked:
                self.look()
            self.looked = False
            if self.courses and self.away.is_asked_for:
                self.away.step(gradients)
            else:
                self._step(gradients)
        finally:
            self.stepping = False

    def refuse_inside_step(self) -> None:
        """Raise where a schedule, or a signal's handler, would change tables that a step is about to use."""
        if self.stepping:
            raise RuntimeError(
                "this optimizer is inside a step: neither step nor load or add parameters before it ends"
            )

    def _step(self, gradients: Located) -> None:
        if gradients is not self.loaded:
            self.load(gradients)
        if self.moving or not self.steady:
            self._write_rows()
        # Counted first: an interrupt is delivered when a launch returns, and must find the books in order.
        for cohort in self.cohorts:
            cohort.step += 1
            if cohort.first:
                self.keep_states(cohort)
                cohort.first = False
        for group in self.counted:
            group.count()
        for launch in self.launches:
            launch()

    def can_repeat(self) -> bool:
        """Say whether the next step can differ from the last one only in where the gradients lie, and in its count."""
        return self.steady and len(self.launches) == 1 and not self.launches[0].strided and not self.courses

    def moving_rows(self) -> npt.NDArray[Any] | None:
        """Describe what the hyper rows of further steps are computed from; None where they stay as they are."""
        if not self.moving:
            return None
        described = np.zeros(len(self.cohorts), COHORT)
        for row, cohort in zip(described, self.cohorts, strict=True):
            cohort.describe(row)
        return described

    def count(self, steps: int) -> None:
        """Count steps that somebody else has taken, as repetitions of the last one."""
        for cohort in self.cohorts:
            cohort.step += steps
        for group in self.counted:
            group.count(steps)
        self.loaded = None  # other addresses than these stand in the tables

    def settle(self) -> None:
        """Bring all counts up to date, and write the cohorts' back to the tensors."""
        self.away.settle()
        for cohort in self.cohorts:
            for tensor in cohort.tensors:
                tensor.step = cohort.step

    def reset(self) -> None:
        """Forget the tables, after somebody else has written the tensors' counts and states."""
        self.away.end()
        self.rules = []
        self.cohorts = []
        self._kinds = None
        self._forget_extents()
        self.versions = []

    def forget(self) -> None:
        """Form the cohorts anew for the next step, after states were given up."""
        self.loaded = self.formed = None
        self._forget_extents()

    def look(self, scale: float = 1.0, verdict: Verdict | None = None) -> None:
        """Find out how the next step is taken, and by which options.

        Parameters
        ----------
        scale : float, default 1.0
            What all gradients are first multiplied by.
        verdict : Verdict, optional
            Has another factor, and may be that the step is skipped. Only where all tensors lie on devices.
        """
        if scale != self.scale:
            self.scale, self.steady = scale, False
        if self.courses:
            self.away.look(verdict)
        else:
            self.ask()
        self.looked = True

    def ask(self) -> None:
        """Ask the groups for the next step's options, where these may have changed, and choose their rules."""
        versions = []
        scheduled = False
        for group in self.groups:
            versions.append(group.version)
            scheduled = scheduled or bool(group.schedules)
        if scheduled or versions != self.versions:
            self.choose_rules()
            if self.courses and versions != self.versions:
                self.away.note_schedules()
            self.versions = versions  # of before: what a schedule assigns counts for the next step
            self.steady = False

    def chosen(self) -> list[Rule]:
        """Ask the schedules, and return the rules that the options of the next step ask for, which are checked."""
        for group in self.groups:
            group.ask_schedules()
        rules = [self.choose(group.upcoming) for group in self.groups]
        self.check_options(rules, [group.upcoming for group in self.groups])
        return rules

    def choose_rules(self) -> None:
        """Ask the schedules, choose the rules, and split the tensors where these are others."""
        rules = self.chosen()
        if rules != self.rules:
            self.loaded = self.formed = None
            self.launches = self._split(rules)
            self.rules = rules

    def _split(self, rules: Sequence[Rule]) -> list[Launch]:
        kinds: dict[tuple[Place, str, str], list[int]] = {}
        for i, tensor in enumerate(self.tensors):
            kinds.setdefault((tensor.place, rules[tensor.group.index].name, tensor.format), []).append(i)
        launches = []
        for (place, name, format), indices in kinds.items():
            members = [self.tensors[i] for i in indices]
            sizes = [tensor.array.size for tensor in members]
            launch = self.opened[place].launch(RULES[name], format, sizes)
            launch.write_params([tensor.address for tensor in members])
            launches.append(launch)
            for row, tensor in enumerate(members):
                tensor.launch, tensor.row = launch, row
        self.indices = [np.array(indices) for indices in kinds.values()]
        return launches

    def load(self, gradients: Located) -> None:
        """Take over where gradients lie, and who takes part."""
        self.loaded = None  # until all is written
        if gradients.taking_part != self.formed:
            self.formed = None
            self._form_cohorts(gradients.taking_part)
            self.formed = gradients.taking_part
        for launch, indices in zip(self.launches, self.indices, strict=True):
            strided = {}
            if gradients.strided:
                found = ((row, gradients.strided.get(index)) for row, index in enumerate(indices.tolist()))
                strided = {row: strides for row, strides in found if strides is not None}
            alone = len(self.launches) == 1  # the usual case; an index would take a copy
            launch.write_gradients(gradients.addresses if alone else gradients.addresses[indices], strided)
        self.loaded = gradients

    def _form_cohorts(self, taking_part: bytes) -> None:
        self.settle()
        self.away.end()
        cohorts: dict[tuple[int, int, bool], Cohort] = {}
        for tensor, part in zip(self.tensors, taking_part, strict=True):
            if not part:
                continue
            group, rule = tensor.group, self.rules[tensor.group.index]
            new_states = tensor.new_states(rule)
            key = group.index, tensor.step, bool(new_states)
            if key not in cohorts:
                cohorts[key] = Cohort(group, rule, tensor.step, bool(new_states))
            cohorts[key].tensors.append(tensor)
            cohorts[key].new_states.append(new_states)
        self.cohorts = list(cohorts.values())
        self.steady = False
        self.hypers = np.zeros((len(self.cohorts), HYPERS))
        members: dict[Launch, list[Member]] = {launch: [] for launch in self.launches}
        for number, cohort in enumerate(self.cohorts):
            for tensor, new_states in zip(cohort.tensors, cohort.new_states, strict=True):
                states = {**tensor.states, **new_states}
                addresses = [extent(states[name])[0] for name in cohort.rule.states]
                members[tensor.launch].append((tensor.row, number, addresses))
        for launch in self.launches:
            launch.write_hypers(self.hypers)
            launch.write_members(members[launch])

    def _write_rows(self) -> None:
        for group in self.groups:
            group.take_upcoming()
        self.steady, self.moving = True, False
        for number, cohort in enumerate(self.cohorts):
            options = cohort.group.upcoming
            gain, *row = cohort.rule.row(options, cohort.step + 1, cohort.first)
            self.hypers[number, : len(row) + 1] = gain * self.scale, *row
            self.steady = self.steady and not cohort.first
            self.moving = self.moving or cohort.rule.moves(options)
        for course in self.courses:
            course.send_rows(self.hypers)

    def keep_states(self, cohort: Cohort) -> None:
        """Make the states that a step begins the tensors' own."""
        for tensor, new_states in zip(cohort.tensors, cohort.new_states, strict=True):
            tensor.keep(new_states)
        cohort.new_states = []
        self._forget_extents()

    def _forget_extents(self) -> None:
        self._extents = self._reader = None


class Idle(dict[Hashable, Any]):
    """Launches of single updates, kept for the next of their kind: whoever pops one has it alone, in any thread."""

    LIMIT = 256

    def put(self, key: Hashable, launch: Any) -> None:
        """Keep a launch, and let go of the one that has been idle longest where there are too many."""
        self[key] = launch
        if len(self) > self.LIMIT:
            self.pop(next(iter(list(self))), None)  # another thread may be first


_plans: weakref.WeakSet[Plan] = weakref.WeakSet()


def _unlock_in_child() -> None:
    """Free the locks that threads held which a forked child does not have."""
    for plan in _plans:
        plan.lock = threading.RLock()
        plan.stepping = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)
