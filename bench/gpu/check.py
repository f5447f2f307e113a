"""Checks updates on the GPU before anything is measured: every rule and dtype, graphs, contenders, stages.

The formulas are the oracle's, in NumPy and float64. Numbers are drawn as multiples of 1/32, exact in every dtype.
"""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import fastopt
from fastopt.rules import RULES as REGISTRY
from fastopt.schedules import Cosine

from .. import contenders as of_cpu
from .. import oracle
from ..cases import case
from ..contenders import Step
from ..workloads import Arrays
from .contenders import Contender, Say, left_out
from .device import WARM_UP, Device
from .stages import OPTIONS, PLAIN, Contestant, contestants
from .stages import RULES as STAGE_RULES

Array = npt.NDArray[np.float64]

STEPS = 3
REPLAYS = 5
SHAPES = ((1,), (127,), (3, 5, 7), (1025,), (70, 129))  # no size is a multiple of a thread's or a block's share

LR, DECAY, LR_DECAY, ALPHA = 1 / 32, 1 / 64, 0.25, 0.9
OF_CLASS = {"Adagrad": {"lr_decay": LR_DECAY}, "RMSprop": {"alpha": ALPHA}}  # options that are not the defaults
# For each dtype: half the distance from 1 to the next number, and how many roundings of about a parameter's size a step
# may add up. float16 and bfloat16 are computed in float32, so only the parameter's last rounding shows, doubled since
# the number may have been larger on the way. float32 and float64 round after each of a rule's six to eight operations;
# fused multiply-adds and another order change no more than that. Numbers are about 1, so absolute and relative
# tolerance are the same.
ROUNDINGS = {
    "float64": (2.0**-53, 8),
    "float32": (2.0**-24, 8),
    "float16": (2.0**-11, 2),
    "bfloat16": (2.0**-8, 2),
}


class WrongResultError(ValueError):
    """An update on the GPU differs from its formula."""


def tolerance(dtype: str, steps: int) -> float:
    """Return the tolerance after a number of steps, absolute and relative."""
    rounding, count = ROUNDINGS[dtype]
    return steps * count * rounding


@dataclass(frozen=True)
class Case:
    """One rule in one dtype, by one library."""

    library: str
    rule: str
    dtype: str


@dataclass(frozen=True)
class Trained:
    """Parameters and their states, if the rule has any, after some steps."""

    params: Sequence[Array]
    states: Sequence[Array]


Run = Callable[[Case, Sequence[Array], Sequence[Sequence[Array]]], Trained]  # trains, from parameters and gradients


def drawn(seed: int, steps: int) -> tuple[list[Array], list[list[Array]]]:
    """Draw parameters, and gradients for some steps."""
    rng = np.random.default_rng(seed)

    def some() -> list[Array]:
        return [np.clip(np.round(32 * rng.standard_normal(shape)), -127, 127) / 32 for shape in SHAPES]

    return some(), [some() for _ in range(steps)]


def trained_by_formula(
    rule: str,
    params: Sequence[Array],
    gradients: Sequence[Sequence[Array]],
    lr: float = LR,
    decay: float = DECAY,
    lr_decay: float = LR_DECAY,
    stages: oracle.Options = oracle.NONE,
) -> Trained:
    """Take the steps by the oracle's formulas, with weight decay."""
    _, options = case(rule, lr=lr, weight_decay=decay, lr_decay=lr_decay, alpha=ALPHA)
    trainer = oracle.Trainer(params)
    for grads in gradients:
        trainer.step(rule, grads, options, stages)
    return Trained(trainer.params, [state for states in trainer.states for state in states or ()])


def compare(what: str, found: Trained, expected: Trained, allowed: float, reference: str = "the formula") -> None:
    """Raise WrongResultError if numbers differ by more than is allowed, and name the first one."""
    for kind in ("params", "states"):
        arrays = getattr(expected, kind)
        for number, (got, wanted) in enumerate(zip(getattr(found, kind), arrays, strict=True)):
            i = number * len(expected.params) // len(arrays)  # the tensor, which may have several states
            off = np.abs(got - wanted)
            wrong = ~(off <= allowed * (1 + np.abs(wanted)))  # NaN is wrong
            if wrong.any():
                at = int(np.argmax(wrong))
                raise WrongResultError(
                    f"{what} is wrong: of the {kind} of tensor {i}, of shape {got.shape}, {wrong.sum()} of {got.size} "
                    f"elements differ from {reference}; element {at} is {got.flat[at]:.17g}, not {wanted.flat[at]:.17g}"
                )


def check_case(case: Case, run: Run) -> None:
    """Check one rule in one dtype."""
    params, gradients = drawn(0, STEPS)
    what = f"{case.library}'s {case.rule} in {case.dtype}"
    expected = trained_by_formula(case.rule, params, gradients)
    compare(what, run(case, params, gradients), expected, tolerance(case.dtype, STEPS))


class Library(ABC):
    """Makes, reads and trains one library's arrays on a device."""

    name: str
    module: Any
    dtypes: Sequence[str]

    def __init__(self, device: Device) -> None:
        self.device = device

    def optimizer(self, rule: str, params: Sequence[Any], lr: Any) -> Any:
        """Make an optimizer."""
        name, options = case(rule, lr=lr, weight_decay=DECAY)
        return getattr(self.module, name)(params, **options, **OF_CLASS.get(name, {}))

    def trained(self, case: Case, params: Sequence[Array], gradients: Sequence[Sequence[Array]]) -> Trained:
        """Take a step with each of the gradients; this is a `Run`."""
        here = [self.on_device(param, case.dtype) for param in params]
        opt = self.optimizer(case.rule, here, LR)
        for grads in gradients:
            self.give(opt, here, [self.on_device(grad, case.dtype) for grad in grads])
            opt.step()
        self.device.synchronize()
        states = [self.state(opt, i, here[i], name) for i in range(len(here)) for name in REGISTRY[case.rule].states]
        return Trained([self.read(array) for array in here], [self.read(state) for state in states])

    def replayed(self, params: Sequence[Array], gradients: Sequence[Sequence[Array]], schedule: Any) -> Trained:
        """Take momentum steps in float32: the warm-up with the first gradients, then a replay with each."""
        here, grads = ([self.on_device(array, "float32") for array in arrays] for arrays in (params, gradients[0]))
        opt = self.optimizer("momentum", here, schedule)
        self.give(opt, here, grads)
        replay = self.captured(opt.step)
        for given in gradients:
            for grad, values in zip(grads, given, strict=True):
                self.write(grad, values)
            self.device.synchronize()
            replay()
            self.device.synchronize()
        return Trained([self.read(array) for array in here], [])

    def eager(self, params: Sequence[Array], gradients: Sequence[Sequence[Array]], schedule: Any) -> Trained:
        """Take the same steps one by one."""
        here = [self.on_device(param, "float32") for param in params]
        opt = self.optimizer("momentum", here, schedule)
        for given in [*(WARM_UP * [gradients[0]]), *gradients]:
            self.give(opt, here, [self.on_device(values, "float32") for values in given])
            opt.step()
        self.device.synchronize()
        return Trained([self.read(array) for array in here], [])

    @abstractmethod
    def on_device(self, values: Array, dtype: str) -> Any:
        """Copy numbers to the device, to an address that is aligned to a single element only."""

    @abstractmethod
    def write(self, array: Any, values: Array) -> None:
        """Overwrite numbers on the device."""

    @abstractmethod
    def read(self, array: Any) -> Array:
        """Fetch numbers."""

    @abstractmethod
    def give(self, opt: Any, params: Sequence[Any], grads: Sequence[Any]) -> None:
        """Give an optimizer the gradients of its next step."""

    @abstractmethod
    def state(self, opt: Any, index: int, param: Any, name: str) -> Any:
        """Return a state of a parameter."""

    @abstractmethod
    def captured(self, step: Step) -> Step:
        """Capture a step in a graph after the warm-up, and return a function that replays it."""


class OfCupy(Library):
    """CuPy's arrays, which fastopt trains."""

    name = "fastopt"
    module = fastopt
    dtypes = ("float32", "float64", "float16")

    def on_device(self, values: Array, dtype: str) -> Any:
        """Copy numbers to the device."""
        array = self.device.cupy.empty(values.size + 1, dtype)[1:].reshape(values.shape)
        self.write(array, values)
        return array

    def write(self, array: Any, values: Array) -> None:
        """Overwrite numbers on the device."""
        array[...] = self.device.cupy.asarray(values.astype(array.dtype))

    def read(self, array: Any) -> Array:
        """Fetch numbers."""
        fetched: Array = self.device.cupy.asnumpy(array).astype(np.float64)
        return fetched

    def give(self, opt: Any, params: Sequence[Any], grads: Sequence[Any]) -> None:
        """Bind the gradients."""
        opt.bind(grads)

    def state(self, opt: Any, index: int, param: Any, name: str) -> Any:
        """Return a state of a parameter."""
        return opt.state[index][name]

    def captured(self, step: Step) -> Step:
        """Capture a step in a graph."""
        return self.device.captured_by_cupy(step)


class OfTorch(Library):
    """torch's tensors, which fastopt.torch trains."""

    name = of_cpu.FASTOPT_TORCH
    dtypes = (*OfCupy.dtypes, "bfloat16")

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        import fastopt.torch

        self.module = fastopt.torch

    def on_device(self, values: Array, dtype: str) -> Any:
        """Copy numbers to the device."""
        torch = self.device.torch
        memory = torch.empty(values.size + 1, dtype=getattr(torch, dtype), device=self.device.in_torch)
        tensor = memory[1:].view(values.shape)
        self.write(tensor, values)
        return tensor

    def write(self, array: Any, values: Array) -> None:
        """Overwrite numbers on the device."""
        array.copy_(self.device.torch.from_numpy(values))

    def read(self, array: Any) -> Array:
        """Fetch numbers."""
        fetched: Array = array.detach().cpu().double().numpy()
        return fetched

    def give(self, opt: Any, params: Sequence[Any], grads: Sequence[Any]) -> None:
        """Assign the gradients."""
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad

    def state(self, opt: Any, index: int, param: Any, name: str) -> Any:
        """Return a state of a parameter."""
        return opt.state[param][name]

    def captured(self, step: Step) -> Step:
        """Capture a step in a graph."""
        return self.device.captured_by_torch(step)


def libraries(device: Device) -> list[Library]:
    """Return the libraries that can use the device."""
    return [OfCupy(device)] if device.torch is None else [OfCupy(device), OfTorch(device)]


def check_graph(library: Library) -> None:
    """Check that replays of a captured step with a schedule equal the same steps without a graph."""
    params, gradients = drawn(1, REPLAYS)
    schedule = Cosine(LR, steps=2 * REPLAYS)
    allowed = tolerance("float32", WARM_UP + REPLAYS)
    eager = library.eager(params, gradients, schedule)
    replayed = library.replayed(params, gradients, schedule)
    compare(f"{library.name}'s captured step", replayed, eager, allowed, "the same steps without a graph")


def trained_by(contender: Contender, rule: str, cupy: Any) -> Trained:
    """Take a contender's steps with the benchmark's learning rate, from the numbers that `check_contenders` draws."""
    params, gradients = drawn(2, STEPS)
    here = Arrays(*([cupy.asarray(array.astype(np.float32)) for array in of] for of in (params, gradients[0])))
    step = contender.make(here, rule)
    for given in gradients:
        for grad, values in zip(here.grads, given, strict=True):  # anew: some contenders write into them
            grad[...] = cupy.asarray(values.astype(np.float32))
        step()
    return Trained([cupy.asnumpy(param).astype(np.float64) for param in here.params], [])


def check_contenders(device: Device, contenders: Mapping[str, Contender], say: Say) -> Iterator[str]:
    """Check the steps of all contenders; yield a line for each correct one."""
    for rule, (name, contender) in itertools.product(of_cpu.RULES, contenders.items()):
        yield from check_contender(device, name, contender, rule, {}, say)


def check_stages(device: Device, say: Say) -> Iterator[str]:
    """Check the steps that clip or average; yield a line for each correct one."""
    for rule, one in itertools.product(STAGE_RULES, staged(device)):
        yield from check_contender(device, one.name, one, rule, OPTIONS[one.stage], say)


def staged(device: Device) -> list[Contestant]:
    """Return the contestants that clip or average."""
    return [one for one in contestants(device).values() if one.stage != PLAIN]


def check_contender(
    device: Device, name: str, contender: Contender, rule: str, stages: oracle.Options, say: Say
) -> Iterator[str]:
    """Check one contender's steps by one rule, with the class's own weight decay; yield a line if they are correct."""
    found = None
    with left_out(name, rule, say):
        found = trained_by(contender, rule, device.cupy)
    if found is not None:
        of_class = inspect.signature(getattr(fastopt, case(rule)[0])).parameters
        decay = of_class["weight_decay"].default
        expected = trained_by_formula(rule, *drawn(2, STEPS), of_cpu.LR, decay, lr_decay=0, stages=stages)
        compare(f"{name}'s {rule}", found, Trained(expected.params, []), tolerance("float32", STEPS))
        yield f"{name}, {rule}"


def checks(device: Device, contenders: Mapping[str, Contender], say: Say) -> Iterator[str]:
    """Check every rule in every dtype, graphs, contenders, and stages; yield a line for each correct one."""
    for library in libraries(device):
        for rule, dtype in itertools.product(REGISTRY, library.dtypes):
            check_case(Case(library.name, rule, dtype), library.trained)
            yield f"{library.name}, {rule}, {dtype}"
        check_graph(library)
        yield f"{library.name}, captured"
    yield from check_contenders(device, contenders, say)
    yield from check_stages(device, say)


def count(device: Device, contenders: Mapping[str, Contender]) -> int:
    """Return the largest possible number of checks."""
    of_fastopt = sum(len(REGISTRY) * len(library.dtypes) + 1 for library in libraries(device))
    return of_fastopt + len(of_cpu.RULES) * len(contenders) + len(STAGE_RULES) * len(staged(device))
