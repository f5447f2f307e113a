"""Whether updates on the GPU are right, before anything there is measured: every rule and format, graphs, contenders.

The formulas are the oracle's, in NumPy and float64. What is drawn is exact in every format: multiples of 1/32.
"""

from __future__ import annotations

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

Array = npt.NDArray[np.float64]

STEPS = 3
REPLAYS = 5
SHAPES = ((1,), (127,), (3, 5, 7), (1025,), (70, 129))  # none a multiple of what a thread or a block takes at once

LR, DECAY, LR_DECAY, ALPHA = 1 / 32, 1 / 64, 0.25, 0.9
OF_CLASS = {"Adagrad": {"lr_decay": LR_DECAY}, "RMSprop": {"alpha": ALPHA}}  # where it is not at the default
# Of each format: half the distance from 1 to the next number, and how many roundings of about a parameter's size a step
# may add up. Halves are computed in float32, and only the parameter's last rounding shows, doubled since it may have
# been larger on its way. float32 and float64 round after every operation, of which a rule has six to eight; fused
# multiply-adds and another order of them change no more than that. Numbers are about 1, so that the same is the
# absolute and the relative tolerance.
ROUNDINGS = {
    "float64": (2.0**-53, 8),
    "float32": (2.0**-24, 8),
    "float16": (2.0**-11, 2),
    "bfloat16": (2.0**-8, 2),
}


class WrongResultError(ValueError):
    """An update on the GPU is not what its formula says."""


def tolerance(format: str, steps: int) -> float:
    """Return how far numbers may be off after so many steps, absolutely and relatively."""
    rounding, count = ROUNDINGS[format]
    return steps * count * rounding


@dataclass(frozen=True)
class Case:
    """One rule in one format, by one library."""

    library: str
    rule: str
    format: str


@dataclass(frozen=True)
class Trained:
    """Parameters and their states (none where a rule has none), after some steps."""

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
) -> Trained:
    """Take the steps by the oracle's formulas, with a weight decay."""
    _, options = case(rule, lr=lr, weight_decay=decay, lr_decay=lr_decay, alpha=ALPHA)
    trainer = oracle.Trainer(params)
    for grads in gradients:
        trainer.step(rule, grads, options)
    return Trained(trainer.params, [state for states in trainer.states for state in states or ()])


def compare(what: str, found: Trained, expected: Trained, allowed: float, reference: str = "the formula") -> None:
    """Raise where numbers differ by more than is allowed, and say which."""
    for kind in ("params", "states"):
        arrays = getattr(expected, kind)
        for place, (got, wanted) in enumerate(zip(getattr(found, kind), arrays, strict=True)):
            i = place * len(expected.params) // len(arrays)  # a tensor has several states, or one
            off = np.abs(got - wanted)
            wrong = ~(off <= allowed * (1 + np.abs(wanted)))  # NaN is wrong
            if wrong.any():
                at = int(np.argmax(wrong))
                raise WrongResultError(
                    f"{what} is wrong: of the {kind} of tensor {i}, of shape {got.shape}, {wrong.sum()} of {got.size} "
                    f"elements differ from {reference}; element {at} is {got.flat[at]:.17g}, not {wanted.flat[at]:.17g}"
                )


def check_case(case: Case, run: Run) -> None:
    """Check one rule in one format."""
    params, gradients = drawn(0, STEPS)
    what = f"{case.library}'s {case.rule} in {case.format}"
    expected = trained_by_formula(case.rule, params, gradients)
    compare(what, run(case, params, gradients), expected, tolerance(case.format, STEPS))


class Library(ABC):
    """How one library's arrays are made, read and trained on a device."""

    name: str
    module: Any
    formats: Sequence[str]

    def __init__(self, device: Device) -> None:
        self.device = device

    def optimizer(self, rule: str, params: Sequence[Any], lr: Any) -> Any:
        """Make an optimizer."""
        name, options = case(rule, lr=lr, weight_decay=DECAY)
        return getattr(self.module, name)(params, **options, **OF_CLASS.get(name, {}))

    def trained(self, case: Case, params: Sequence[Array], gradients: Sequence[Sequence[Array]]) -> Trained:
        """Take a step with each of the gradients: a `Run`."""
        here = [self.placed(param, case.format) for param in params]
        opt = self.optimizer(case.rule, here, LR)
        for grads in gradients:
            self.give(opt, here, [self.placed(grad, case.format) for grad in grads])
            opt.step()
        self.device.synchronize()
        states = [self.state(opt, i, here[i], name) for i in range(len(here)) for name in REGISTRY[case.rule].states]
        return Trained([self.read(array) for array in here], [self.read(state) for state in states])

    def replayed(self, params: Sequence[Array], gradients: Sequence[Sequence[Array]], schedule: Any) -> Trained:
        """Take steps with momentum in float32: the warm-up's with the first gradients, then a replay with each."""
        here, grads = ([self.placed(array, "float32") for array in arrays] for arrays in (params, gradients[0]))
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
        here = [self.placed(param, "float32") for param in params]
        opt = self.optimizer("momentum", here, schedule)
        for given in [*(WARM_UP * [gradients[0]]), *gradients]:
            self.give(opt, here, [self.placed(values, "float32") for values in given])
            opt.step()
        self.device.synchronize()
        return Trained([self.read(array) for array in here], [])

    @abstractmethod
    def placed(self, values: Array, format: str) -> Any:
        """Put numbers on the device, at an address that is a multiple of no more than an element."""

    @abstractmethod
    def write(self, array: Any, values: Array) -> None:
        """Put other numbers there."""

    @abstractmethod
    def read(self, array: Any) -> Array:
        """Fetch numbers."""

    @abstractmethod
    def give(self, opt: Any, params: Sequence[Any], grads: Sequence[Any]) -> None:
        """Let an optimizer know the gradients of its next step."""

    @abstractmethod
    def state(self, opt: Any, index: int, param: Any, name: str) -> Any:
        """Return a state of a parameter."""

    @abstractmethod
    def captured(self, step: Step) -> Step:
        """Record a step in a graph, after some that are taken, and return what replays it."""


class OfCupy(Library):
    """CuPy's arrays, which fastopt itself trains."""

    name = "fastopt"
    module = fastopt
    formats = ("float32", "float64", "float16")

    def placed(self, values: Array, format: str) -> Any:
        """Put numbers on the device."""
        array = self.device.cupy.empty(values.size + 1, format)[1:].reshape(values.shape)
        self.write(array, values)
        return array

    def write(self, array: Any, values: Array) -> None:
        """Put other numbers there."""
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
        """Record a step in a graph."""
        return self.device.captured_by_cupy(step)


class OfTorch(Library):
    """Tensors of torch, which fastopt.torch trains."""

    name = of_cpu.FASTOPT_TORCH
    formats = (*OfCupy.formats, "bfloat16")

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        import fastopt.torch

        self.module = fastopt.torch

    def placed(self, values: Array, format: str) -> Any:
        """Put numbers on the device."""
        torch = self.device.torch
        memory = torch.empty(values.size + 1, dtype=getattr(torch, format), device=self.device.in_torch)
        tensor = memory[1:].view(values.shape)
        self.write(tensor, values)
        return tensor

    def write(self, array: Any, values: Array) -> None:
        """Put other numbers there."""
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
        """Record a step in a graph."""
        return self.device.captured_by_torch(step)


def libraries(device: Device) -> list[Library]:
    """Return those that can use the device."""
    return [OfCupy(device)] if device.torch is None else [OfCupy(device), OfTorch(device)]


def check_graph(library: Library) -> None:
    """Check that a captured step with a schedule, replayed, does what the same steps do without a graph."""
    params, gradients = drawn(1, REPLAYS)
    schedule = Cosine(LR, steps=2 * REPLAYS)
    allowed = tolerance("float32", WARM_UP + REPLAYS)
    eager = library.eager(params, gradients, schedule)
    replayed = library.replayed(params, gradients, schedule)
    compare(f"{library.name}'s captured step", replayed, eager, allowed, "the same steps without a graph")


def trained_by(contender: Contender, rule: str, cupy: Any) -> Trained:
    """Take a contender's steps, at the benchmark's rates, from what `check_contenders` draws."""
    params, gradients = drawn(2, STEPS)
    here = Arrays(*([cupy.asarray(array.astype(np.float32)) for array in of] for of in (params, gradients[0])))
    step = contender.make(here, rule)
    for given in gradients:
        for grad, values in zip(here.grads, given, strict=True):  # anew, also for those that write into gradients
            grad[...] = cupy.asarray(values.astype(np.float32))
        step()
    return Trained([cupy.asnumpy(param).astype(np.float64) for param in here.params], [])


def check_contenders(device: Device, contenders: Mapping[str, Contender], say: Say) -> Iterator[str]:
    """Check that all contenders that can take the same steps do; yield what was found right."""
    params, gradients = drawn(2, STEPS)
    for rule, (name, contender) in itertools.product(of_cpu.RULES, contenders.items()):
        found = None
        with left_out(name, rule, say):
            found = trained_by(contender, rule, device.cupy)
        if found is not None:
            expected = trained_by_formula(rule, params, gradients, of_cpu.LR, decay=0, lr_decay=0)
            compare(f"{name}'s {rule}", found, Trained(expected.params, []), tolerance("float32", STEPS))
            yield f"{name}, {rule}"


def checks(device: Device, contenders: Mapping[str, Contender], say: Say) -> Iterator[str]:
    """Check every rule in every format, graphs, and contenders; yield what was found right, one after the other."""
    for library in libraries(device):
        for rule, format in itertools.product(REGISTRY, library.formats):
            check_case(Case(library.name, rule, format), library.trained)
            yield f"{library.name}, {rule}, {format}"
        check_graph(library)
        yield f"{library.name}, captured"
    yield from check_contenders(device, contenders, say)


def count(device: Device, contenders: Mapping[str, Contender]) -> int:
    """Count the checks, at most."""
    of_fastopt = sum(len(REGISTRY) * len(library.formats) + 1 for library in libraries(device))
    return of_fastopt + len(of_cpu.RULES) * len(contenders)
