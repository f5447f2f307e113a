"""Storages to compare: how an optimizer keeps parameters and states, and what a training says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..base import Optimizer
from ..extras import require
from ..schedules import Schedule
from . import network, training
from .network import Array, Objective

BASE = "float32"  # the storage that the others are compared with
# The networks are small: none of their states is to stay in float32 for that. They are read as numbers.
TO_NEAREST = {"stochastic_rounding": False}  # where squares are otherwise rounded stochastically
EVERY_SIZE = {"min_quantized_size": 0, "compress_state_dict": False}


@dataclass(frozen=True)
class Storage:
    """The options that an optimizer gets, and the dtype of its parameters.

    Its mean loss should be that of float32, but for a share `within`, or lie within the spread of float32's seeds.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    parameters: str = "float32"
    within: float = 0.001


STORAGES = {
    BASE: Storage(),
    "bf16 states": Storage({"state_dtype": "bfloat16"}),
    "bf16 states to nearest": Storage({"state_dtype": "bfloat16", **TO_NEAREST}),
    "bf16 parameters": Storage(parameters="bfloat16"),
    "bf16 both": Storage({"state_dtype": "bfloat16", "stochastic_rounding": True}, parameters="bfloat16"),
    "bf16 both to nearest": Storage({"state_dtype": "bfloat16", **TO_NEAREST}, parameters="bfloat16"),
    "bf16 with masters": Storage({"master_weights": True}, parameters="bfloat16"),
    "8-bit states": Storage({"state_dtype": "int8"}, within=0.005),
    "8-bit states to nearest": Storage({"state_dtype": "int8", **TO_NEAREST}, within=0.005),
}
SQUARES = {"momentum": None, "adagrad": "sum", "adam": "exp_avg_sq"}  # rule -> its state that has squares of gradients


@dataclass(frozen=True)
class Measured:
    """What is known after an epoch: the training loss, the mean of the squares, and the bytes per parameter."""

    loss: float
    squares: float | None
    bytes: float


class Measurable(Protocol):
    """An optimizer, of arrays or of tensors."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the states of each parameter, by name, as its entry "state"."""

    def memory(self) -> dict[str, int]:
        """Count the bytes of parameters, gradients and states."""


class Training(Protocol):
    """A training that every rule and storage can go through."""

    @property
    def rates(self) -> Mapping[str, float]:
        """The highest learning rate of each rule."""

    @property
    def steps(self) -> int:
        """How many steps an epoch has."""

    def train(self, rule: str, storage: Storage, lr: Schedule, epochs: int, seed: int) -> Iterator[Measured]:
        """Train a new network, and yield after each epoch what is known."""


def measured(loss: float, rule: str, optimizer: Measurable, size: int, wide: Callable[[Any], Array]) -> Measured:
    """Return what is known after an epoch.

    Parameters
    ----------
    loss : float
    rule : str
    optimizer : Measurable
    size : int
        The number of parameters.
    wide : callable
        Returns the numbers of a state as an array of float32.
    """
    name = SQUARES[rule]
    states = [] if name is None else [wide(entry[name]).ravel() for entry in optimizer.state_dict()["state"].values()]
    squares = float(np.concatenate(states).mean()) if states else None
    return Measured(loss, squares, sum(optimizer.memory().values()) / size)


class Stored:
    """An optimizer whose parameters are kept in a dtype of their own: the network computes with float32 copies.

    Parameters
    ----------
    values : dict of ndarray
        The copies, which each step brings up to date.
    storage : Storage
        How parameters and states are kept.
    make_optimizer : callable
        From `training.OPTIMIZERS`.
    lr : Schedule
        The learning rate.
    """

    def __init__(
        self, values: dict[str, Array], storage: Storage, make_optimizer: Callable[..., Optimizer], lr: Schedule
    ) -> None:
        dtype = dtype_of(storage.parameters)
        self.values = values
        self.params = {name: array.astype(dtype) for name, array in values.items()}
        self.grads = {name: np.zeros_like(array) for name, array in self.params.items()}
        self.optimizer = make_optimizer(self.params, lr=lr, **EVERY_SIZE, **storage.options)
        self.optimizer.bind(self.grads)
        self.read()

    def bind(self, grads: Mapping[str, Array]) -> None:
        """Take gradients of the copies from these arrays at each step."""
        self.computed = grads

    def step(self) -> None:
        """Round the gradients, take a step, and bring the copies up to date."""
        for name, array in self.computed.items():
            self.grads[name][...] = array
        self.optimizer.step()
        self.read()

    def read(self) -> None:
        """Bring the copies up to date."""
        for name, array in self.params.items():
            self.values[name][...] = array


def dtype_of(name: str) -> np.dtype[Any]:
    """Return a dtype of NumPy, or of ml_dtypes, which has bfloat16."""
    return np.dtype(require("ml_dtypes", "lab").bfloat16 if name == "bfloat16" else name)


@dataclass(frozen=True)
class InNumpy:
    """A training of a network in NumPy."""

    x: Array
    y: Array
    sizes: tuple[int, ...]  # of the network's layers
    batch: int
    objective: Objective
    rates: Mapping[str, float]

    @property
    def steps(self) -> int:
        """Those of an epoch."""
        return -(-len(self.y) // self.batch)

    def train(self, rule: str, storage: Storage, lr: Schedule, epochs: int, seed: int) -> Iterator[Measured]:
        """Train a new network, and yield after each epoch what is known; only the seed determines start and batches."""
        rng = np.random.default_rng(seed)
        values = network.new_parameters(rng, self.sizes)
        size = sum(array.size for array in values.values())
        stored = Stored(values, storage, training.OPTIMIZERS[rule], lr)
        for _ in training.train(
            values, stored, self.x, self.y, epochs=epochs, batch=self.batch, rng=rng, objective=self.objective
        ):
            loss = network.loss(values, self.x, self.y, self.objective)
            yield measured(loss, rule, stored.optimizer, size, lambda state: state.astype(np.float32))
