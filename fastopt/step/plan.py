"""The layout of a step: which parameters share a launch, and the tables that its kernels read.

Usually there is one launch, and a step rewrites only the addresses of new gradients. Counts and hyper rows are the
clock's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from ..kernels.dtypes import DTYPES
from ..kernels.reader import Reader
from ..kernels.repetition import Repetition
from ..rules import Rule
from .chunks import Strides
from .index_check import Checked
from .launch import AmpState, Device, Entry, Launch, Launcher, Variant
from .masters import MASTER
from .memory import Extents, extent
from .parameter import EMA, Parameter, StepGroup
from .stages import Stages


class NoThreads:
    """For a step that does nothing on the CPU."""

    parallel = 0

    def get_num_threads(self) -> int:
        """Return how many threads there are."""
        return 1


NO_THREADS = NoThreads()


class Located(Protocol):
    """Gradients that have been checked against their parameters, and are held.

    Attributes
    ----------
    addresses : array of int64
        For each parameter the address of the gradient's first element in storage order; 0 if there is no gradient.
    taking_part : bytes
        One byte for each parameter, 1 where there is a gradient.
    strided : dict
        Index of a parameter -> strides of its gradient, if not those of the parameter.
    others : dict
        Index of a parameter -> dtype of its gradient, if not that of the last one.
    sparse : dict
        Index of a parameter -> its sparse gradient, which takes no part in launches.
    there : mapping
        Index of a parameter on a GPU -> its sparse gradient, or that of a table whose states are of rows, which has a
        launch of its own.
    """

    addresses: npt.NDArray[np.int64]
    taking_part: bytes
    strided: dict[int, Strides]
    others: dict[int, str]
    sparse: dict[int, Any]

    @property
    def there(self) -> Mapping[int, Any]:
        """Sparse gradients on a GPU."""


class Plan:
    """The launches over some parameters, one for each variant and device.

    Parameters
    ----------
    parameters : sequence of Parameter
        Those of all groups, in order.

    Raises
    ------
    ValueError
        If two parameters overlap in memory, or a GPU is too old.

    Attributes
    ----------
    taking_part : bytes or None
        Who takes part in the step that the tables describe; None until the tables are complete.
    loaded : Located or None
        The gradients whose addresses the tables have.
    largest : float
        The largest number that all kernels compute with.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.rules: Sequence[Rule] = ()
        self.stages: tuple[str, ...] = ()  # that kernels have
        self.there: dict[int, str] = {}  # dtypes of sparse gradients on a GPU, by their parameters' indices
        self.coefficient = 1.0  # that they have
        self.averages = False  # whether the tables have those of parameters
        self.launches: list[Launch] = []
        self.indices: list[npt.NDArray[np.int64]] = []  # of each launch's parameters
        self.taking_part: bytes | None = None
        self.loaded: Located | None = None
        self._repetition: Repetition | None = None
        self._extents: Extents | None = None
        self._reader: Reader | None = None
        if (pair := self.extents.first_overlap()) is not None:
            raise ValueError(
                f"{pair[0]} and {pair[1]} overlap in memory: pass each once, and a copy of what they share"
            )
        self.largest = min((DTYPES[parameter.dtype].largest for parameter in parameters), default=0.0)
        devices = dict.fromkeys(parameter.device for parameter in parameters)
        self.launchers: dict[Device, Launcher] = {device: device.open() for device in devices}

    @property
    def extents(self) -> Extents:
        """Where parameters and states lie, so that gradients can be kept off them."""
        if self._extents is None:
            self._extents = Extents(named for parameter in self.parameters for named in parameter.arrays())
        return self._extents

    @property
    def reader(self) -> Reader:
        """Reads the addresses of gradients in their parameters' layout that overlap nothing which an update writes."""
        if self._reader is None:
            expected = [parameter.expected for parameter in self.parameters]
            self._reader = Reader(expected, self.extents.starts, self.extents.reaches)
        return self._reader

    def forget_extents(self) -> None:
        """Compute the extents anew for the next step, since there are other states."""
        self._extents = self._reader = None

    def forget(self) -> None:
        """Write the tables anew for the next step, since states were dropped."""
        self.loaded = self.taking_part = None
        self.forget_extents()

    @property
    def everyone(self) -> bytes:
        """The value of `Located.taking_part` if every parameter has a gradient."""
        return b"\1" * len(self.parameters)

    @property
    def uses_gpus(self) -> bool:
        """Whether any parameter lies on a GPU."""
        return any(device.on_gpu for device in self.launchers)

    @property
    def only_gpus(self) -> bool:
        """Whether all parameters lie on GPUs."""
        return all(device.on_gpu for device in self.launchers)

    def has_other_kinds(self, gradients: Located) -> bool:
        """Say whether launches are for gradients of other dtypes, or sparse on a GPU where these are not."""
        return bool(gradients.others) or self.there != {i: given.dtype for i, given in gradients.there.items()}

    def arrange(self, rules: Sequence[Rule], stages: tuple[str, ...], gradients: Located) -> None:
        """Split the parameters into launches by rules, stages and kinds of gradients, if any of these changes."""
        if rules == self.rules and stages == self.stages and not self.has_other_kinds(gradients):
            return
        others, there = gradients.others, {i: given.dtype for i, given in gradients.there.items()}
        self.loaded = self.taking_part = self._repetition = None
        self.rules = ()  # until all is written
        for i, dtype in others.items():
            self.parameters[i].gradient = dtype
        if others:
            self.forget_extents()  # the reader is to expect these
        kinds: dict[tuple[Device, Variant, int | None], list[int]] = {}
        for i, parameter in enumerate(self.parameters):
            rule = rules[parameter.group.index]
            alone = i if i in there else None
            of_rows = ("rowwise",) if i in there and parameter.rowwise else ()
            variant = parameter.variant(rule, (*stages, *of_rows), there.get(i, parameter.gradient))
            kinds.setdefault((parameter.device, variant, alone), []).append(i)
        self.stages, self.there, self.coefficient = stages, there, 1.0
        self.launches = [self._launch(*kind, indices) for kind, indices in kinds.items()]
        self.indices = [np.array(indices) for indices in kinds.values()]
        self.rules = rules

    def _launch(self, device: Device, variant: Variant, alone: int | None, indices: Sequence[int]) -> Launch:
        parameters = [self.parameters[i] for i in indices]
        sizes = [parameter.array.size for parameter in parameters]
        launcher: Any = self.launchers[device]  # of a GPU, if there are rows
        launch: Launch = launcher.launch(variant, sizes) if alone is None else launcher.launch_rows(variant, *sizes)
        launch.write_params([parameter.address for parameter in parameters])
        for row, parameter in enumerate(parameters):
            parameter.launch, parameter.row = launch, row
        return launch

    def form(
        self,
        taking_part: bytes,
        step_groups: Sequence[StepGroup],
        hypers: npt.NDArray[np.float64],
        averages: bool = False,
    ) -> None:
        """Write into the tables who takes part, with which hyper rows and states, and whose average is kept."""
        self.loaded = self.taking_part = None  # until all is written
        entries: dict[Launch, list[Entry]] = {launch: [] for launch in self.launches}
        for number, group in enumerate(step_groups):
            for parameter, new_states in zip(group.parameters, group.new_states, strict=True):
                states = {**parameter.states, **new_states}
                addresses = [extent(states[name])[0] for name in group.rule.states]
                entry = Entry(parameter.row, number, addresses, parameter.storage_row(group.rule, states))
                entries[parameter.launch].append(entry)
        for launch in self.launches:
            launch.write_hypers(hypers)
            launch.write_entries(entries[launch])
        self.averages = averages
        if averages:
            self._write_averages(step_groups)
            self._write_masters(taking_part)
        self.taking_part = taking_part

    def _write_averages(self, step_groups: Sequence[StepGroup]) -> None:
        """Write the addresses of all averages: those of parameters without gradients, too, are brought up to date."""
        found = {id(parameter): parameter.states.get(EMA) for parameter in self.parameters}
        for group in step_groups:
            for parameter, new_states in zip(group.parameters, group.new_states, strict=True):
                found[id(parameter)] = new_states.get(EMA, found[id(parameter)])
        for launch, indices in zip(self.launches, self.indices, strict=True):
            averages = [found[id(self.parameters[i])] for i in indices.tolist()]
            launch.write_averages([0 if average is None else extent(average)[0] for average in averages])

    def _write_masters(self, taking_part: bytes) -> None:
        """Write where the masters lie that are averaged though they take no part; whatever has an average has one."""
        for parameter, takes_part in zip(self.parameters, taking_part, strict=True):
            if not takes_part and MASTER in parameter.states:
                row = parameter.storage_row(self.rules[parameter.group.index], parameter.states)
                parameter.launch.write_storage(parameter.row, row)

    def write_stages(self, stages: Stages, scale: float) -> None:
        """Write the numbers of the stages; `scale` is the factor of all gradients."""
        for launch in self.launches:
            limit = stages.limit / abs(scale) if scale else math.inf  # the rows have the scale
            launch.write_stages(limit, stages.gain)

    def multiply(self, coefficient: float, is_new: bool = True) -> None:
        """Have all gradients multiplied by a coefficient; `is_new` says that it is another one in each step."""
        if coefficient != self.coefficient:
            for launch in self.launches:
                launch.write_coefficient(coefficient)
        self.coefficient = math.nan if is_new else coefficient  # the extension writes those that follow

    @property
    def on_one_gpu(self) -> bool:
        """Whether all parameters lie on the same GPU."""
        return self.only_gpus and len(self.launchers) == 1

    def checked(self, amp: AmpState | None) -> AmpState:
        """Return the AMP state of a step with sparse gradients on the GPU, which checks their indices."""
        if not self.on_one_gpu:
            raise ValueError(
                "a gradient on a GPU is sparse, which takes all parameters on one GPU: use an optimizer for each device"
            )
        (launcher,) = self.launchers.values()
        return Checked(cast(Any, launcher).index_check(), amp)

    def prepare_norm(self) -> None:
        """Compile or load what takes the norm of the gradients, where that may fail or take long."""
        for launch in self.launches:
            launch.prepare_norm()

    def load(self, gradients: Located) -> None:
        """Write the addresses of gradients into the tables."""
        if gradients is self.loaded:
            return
        self.loaded = None  # until all is written
        for launch, indices in zip(self.launches, self.indices, strict=True):
            if launch.on_gpu and indices[0] in gradients.there:
                cast(Any, launch).take(gradients.there[indices[0]])
                continue
            strided = {}
            if gradients.strided:
                found = ((row, gradients.strided.get(index)) for row, index in enumerate(indices.tolist()))
                strided = {row: strides for row, strides in found if strides is not None}
            if not launch.on_gpu:  # a step would look at each chunk of a table, to find that it has no gradient
                rows = [row for row, index in enumerate(indices.tolist()) if index in gradients.sparse]
                launch.set_apart(frozenset(() if self.averages else rows))
            alone = len(self.launches) == 1  # the usual case; an index would take a copy
            launch.write_gradients(gradients.addresses if alone else gradients.addresses[indices], strided)
        self.loaded = gradients

    def take_again(self, repetition: Repetition, gradients: Located) -> bool:
        """Take the last step again, with other gradients; return False if nothing was done, and Python has to do it."""
        addresses = None if gradients is self.loaded else gradients.addresses
        self.loaded = None  # until all is written
        if not repetition.take(addresses):
            return False
        self.loaded = gradients
        return True

    def repetition(self, measures: bool = False) -> Repetition | None:
        """Return what takes the last step again in one call of C; None if that is not possible.

        It is not with strided gradients, or without the extension, nor where a GPU has to take a norm.
        """
        here: list[tuple[int, ...]] = []  # on the CPU
        there: list[tuple[int, ...]] = []  # on GPUs
        for launch in self.launches:
            if (fields := launch.again()) is None or (measures and launch.on_gpu):
                return None
            (there if launch.on_gpu else here).append(fields)
        if self._repetition is None or self._repetition.launches != (here, there):
            streams = list(dict.fromkeys(launch.stream for launch in self.launches if launch.on_gpu))
            threads = next((launch.threads for launch in self.launches if not launch.on_gpu), NO_THREADS)
            self._repetition = Repetition(here, there, streams, self._places(), threads)
        return self._repetition

    def _places(self) -> npt.NDArray[np.int64]:
        """Return, for each parameter, the address of the place from which its launch reads the gradient's address."""
        places = np.empty(len(self.parameters), np.int64)
        for launch, indices in zip(self.launches, self.indices, strict=True):
            places[indices] = launch.places()
        return places
