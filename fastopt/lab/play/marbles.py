"""A marble: its rule and options, the hyper rows of its steps, and the optimizer that does the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import optimizers
from ...base import Optimizer
from ...kernels.tables import STATES
from ...rules import RULES
from ...schedules import Constant, Schedule
from ..network import Array
from ..training import EPS
from .fields import Field, Options
from .landscapes import Landscape
from .shapes import NUMBERS, SHAPES
from .walk import WITHOUT_ROOT, Walked, update_of, walk

VELOCITIES = ("momentum_buffer", "exp_avg")  # the states that carry a marble on
HISTORIES = ("sum", "square_avg", "max_exp_avg_sq", "exp_avg_sq")  # those of which a rule takes the root
# What the rules' options are on the page, and what they are where it has no field for them: torch's defaults.
DEFAULTS: dict[str, Any] = {"dampening": 0.0, "eps": 1e-8, "maximize": False, "momentum_decay": 4e-3, "lr_decay": 0.0}


@dataclass(frozen=True)
class Kind:
    """A rule as the page offers it.

    Attributes
    ----------
    title : str
        Its name on the page.
    rule : str
        Its name in the registry.
    optimizer : str
        The class that takes such steps.
    fields : tuple of str
        The fields of the page that are its options, beside the rate, the weight decay and the clipping, which all have.
    given : dict
        The options that choose it among the rules of its class.
    """

    title: str
    rule: str
    optimizer: str
    fields: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def states(self) -> tuple[str, ...]:
        """The names of its states."""
        return RULES[self.rule].states if self.rule in RULES else ("sum",)

    @property
    def momentum(self) -> str | None:
        """The field that is a momentum, which may follow a schedule."""
        return next((name for name in self.fields if name in ("momentum", "beta1")), None)


BETAS = ("beta1", "beta2")
ADAGRAD_EPS = {"eps": EPS}
KINDS = {
    "sgd": Kind("gradient descent", "sgd", "SGD"),
    "momentum": Kind("momentum", "momentum", "SGD", ("momentum",)),
    "nesterov": Kind("Nesterov's momentum", "nesterov", "SGD", ("momentum",), {"nesterov": True}),
    "adagrad": Kind("AdaGrad", "adagrad", "Adagrad", (), ADAGRAD_EPS),
    WITHOUT_ROOT: Kind("AdaGrad without the root", WITHOUT_ROOT, "Adagrad", (), ADAGRAD_EPS),
    "rmsprop": Kind("RMSProp", "rmsprop", "RMSprop", ("alpha",)),
    "rmsprop_momentum": Kind("RMSProp with momentum", "rmsprop_momentum", "RMSprop", ("alpha", "momentum")),
    "rmsprop_centered": Kind("RMSProp, centered", "rmsprop_centered", "RMSprop", ("alpha",), {"centered": True}),
    "rmsprop_centered_momentum": Kind(
        "RMSProp, centered, with momentum", "rmsprop_centered_momentum", "RMSprop", ("alpha", "momentum"),
        {"centered": True},
    ),
    "adam": Kind("Adam", "adam", "Adam", BETAS),
    "adam_amsgrad": Kind("Adam with AMSGrad", "adam_amsgrad", "Adam", BETAS, {"amsgrad": True}),
    "adamw": Kind("AdamW", "adamw", "AdamW", BETAS),
    "adamw_amsgrad": Kind("AdamW with AMSGrad", "adamw_amsgrad", "AdamW", BETAS, {"amsgrad": True}),
    "nadam": Kind("NAdam", "nadam", "NAdam", BETAS),
    "nadamw": Kind("NAdam with AdamW's decay", "nadamw", "NAdam", BETAS, {"decoupled_weight_decay": True}),
    "lion": Kind("Lion", "lion", "Lion", BETAS),
}  # fmt: skip

BELOW_ONE = 1 - 2**-53  # the largest number below 1
MARBLE: dict[str, Field | Options] = {
    "rule": Options("rule", "sgd", {name: kind.title for name, kind in KINDS.items()}),
    "lr": Field("rate", 0.05, 0.0, 1e9, "logarithmic", (1e-4, 10.0), help="The learning rate."),
    "momentum": Field("momentum", 0.9, 0.0, 10.0, "near one", (0.0, 0.999), help="How much of the velocity stays."),
    "alpha": Field("alpha", 0.99, 0.0, 1.0, "near one", (0.0, 0.9999), help="How much of the history stays."),
    "beta1": Field("beta1", 0.9, 0.0, BELOW_ONE, "near one", (0.0, 0.999), help="How much of the average stays."),
    "beta2": Field("beta2", 0.999, 0.0, BELOW_ONE, "near one", (0.0, 0.9999), help="How much of the squares stays."),
    "weight_decay": Field("weight decay", 0.0, 0.0, 1e6, "logarithmic", (1e-4, 1.0), zero=True),
    "max_grad_norm": Field(
        "clip to norm", 0.0, 0.0, 1e12, "logarithmic", (1e-3, 10.0), help="0: gradients are not clipped.", zero=True
    ),
}
for _of, _title in (("lr", "rate over time"), ("momentum", "momentum over time")):
    MARBLE[f"{_of}_shape"] = Options(_title, "constant", {name: shape.title for name, shape in SHAPES.items()})
    MARBLE |= {f"{_of}_{name}": number for name, number in NUMBERS.items()}


@dataclass(frozen=True)
class Marble:
    """The settings of one marble: the values of all fields of `MARBLE`, in their order."""

    values: tuple[Any, ...]

    def __getitem__(self, name: str) -> Any:
        """Return the value of a field."""
        return self.values[PLACES[name]]

    @property
    def kind(self) -> Kind:
        """The rule."""
        return KINDS[self["rule"]]

    def shape(self, of: str, value: float, steps: int) -> Schedule:
        """Return the schedule of "lr" or "momentum"."""
        shape = SHAPES[self[f"{of}_shape"]]
        return shape.make(value, steps, *(self[f"{of}_{name}"] for name in shape.numbers))

    def scheduled(self, steps: int) -> dict[str, Schedule]:
        """Return the schedules of the rate, and of the momentum if the rule has one, by the names of the fields."""
        found = {"lr": self.shape("lr", self["lr"], steps)}
        if (name := self.kind.momentum) is not None:
            found[name] = self.shape("momentum", self[name], steps)
        return found

    def options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the optimizer, by torch's names, where some fields have these values."""
        values = {**{name: self[name] for name in ("lr", *self.kind.fields)}, **values}
        options = {"lr": values["lr"], **{name: values[name] for name in self.kind.fields if name not in BETAS}}
        if "beta1" in self.kind.fields:
            options["betas"] = tuple(values[name] for name in BETAS)
        if self["weight_decay"] or self.kind.optimizer == "AdamW":  # whose default is not 0
            options["weight_decay"] = self["weight_decay"]
        if self["max_grad_norm"]:
            options["max_grad_norm"] = self["max_grad_norm"]
        return {**options, **self.kind.given}


PLACES = {name: place for place, name in enumerate(MARBLE)}


def optimizer(marble: Marble, steps: int, params: Any) -> Optimizer:
    """Return the optimizer whose steps the marble takes (without the root: AdaGrad), or raise what it raises."""
    make = getattr(optimizers, marble.kind.optimizer)
    scheduled = {name: option_of(each) for name, each in marble.scheduled(steps).items()}
    made: Optimizer = make(params, **marble.options(scheduled))
    return made


def option_of(schedule: Schedule) -> float | Schedule:
    """Return a schedule as one writes it: a constant is a number."""
    return schedule.lr if isinstance(schedule, Constant) else schedule


@functools.lru_cache(maxsize=64)
def rows(marble: Marble, steps: int) -> tuple[Array, dict[str, Array]]:
    """Return the hyper rows of all steps, and the rate and the momentum by step; they depend on no start.

    Raises
    ------
    TypeError, ValueError
        What the optimizer raises for such options.
    """
    optimizer(marble, steps, np.zeros(2))
    rule = RULES.get(marble["rule"], RULES["adagrad"])
    scheduled = {name: each(np.arange(steps)) for name, each in marble.scheduled(steps).items()}
    columns = {name: each.tolist() for name, each in scheduled.items()}
    options = {**DEFAULTS, "weight_decay": marble["weight_decay"], **marble.options(dict.fromkeys(columns, 0.0))}
    carried, found = 1.0, []
    for step in range(steps):
        options["lr"] = columns["lr"][step]
        if "momentum" in columns:
            options["momentum"] = columns["momentum"][step]
        elif "beta1" in columns:
            options["betas"] = columns["beta1"][step], marble["beta2"]
        if rule.carried is not None:
            carried = options[rule.carried] = rule.carried_after(options, step + 1, carried)
        found.append(rule.row(options, step + 1, step == 0))
    return np.array(found), scheduled


def roll_from(marble: Marble, landscape: Landscape, start: tuple[float, float], noise: Array) -> Walked:
    """Let a marble roll from a start, with this noise in its gradients; return what it has done."""
    kind = marble.kind
    still = np.ones(STATES)
    still[: len(kind.states)] = [name not in VELOCITIES for name in kind.states]
    max_norm = marble["max_grad_norm"] or np.inf
    numbers, _ = rows(marble, len(noise))
    return walk(
        landscape.slope, update_of(kind.rule), np.array(start, np.float64), numbers, still, max_norm, noise,
        landscape.room(),
    )  # fmt: skip


def effective_rates(marble: Marble, walked: Walked, steps: int) -> Array | None:
    """Return the effective rate of each coordinate after each step of a run of so many; None if the rule has but one.

    It is the factor of the gradient, or of its average: ``lr / (sqrt(h) + eps)``, where h is the history of squares,
    whose bias Adam and its kin correct. Without the root it is ``lr / (h + eps)``.
    """
    kind, taken = marble.kind, walked.steps
    states = dict(zip(kind.states, np.moveaxis(walked.states, 1, 0), strict=False))
    history = next((states[name] for name in HISTORIES if name in states), None)
    if history is None:
        return None
    if "grad_avg" in states:
        history = np.maximum(history - states["grad_avg"] ** 2, 0.0)
    if "beta2" in kind.fields:
        history = history / (1 - marble["beta2"] ** np.arange(1.0, taken + 1))[:, np.newaxis]
    root = history if kind.rule == WITHOUT_ROOT else np.sqrt(history)
    lr = rows(marble, steps)[1]["lr"][:taken, np.newaxis]
    rates: Array = lr / (root + kind.given.get("eps", DEFAULTS["eps"]))
    return rates
