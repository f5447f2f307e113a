"""The options of all rules: how each is checked, whether it may be a schedule, and what docstrings say of it.

A new option is one entry here. Its default stands in the signatures of the classes and functions that have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .checks import LARGEST, Betas, Flag, Number

NOTHING: Mapping[str, str] = MappingProxyType({})


class Argument:
    """A parameter of faces. A plain class, since one that `dataclass` or `NamedTuple` makes takes longer to import.

    Attributes
    ----------
    kind : str
        What it is, as numpydoc has it after the name.
    text : str
        What it means.
    check : Number, Flag, Betas or None
        What it may be, if it is a hyperparameter.
    scheduled : str or None
        What is to be said of schedules in its place; None if there can be none.
    of : mapping of str to str
        Other texts, for rules that mean something else by it.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        check: Number | Flag | Betas | None = None,
        scheduled: str | None = None,
        of: Mapping[str, str] = NOTHING,
    ) -> None:
        self.kind = kind
        self.text = text
        self.check = check
        self.scheduled = scheduled
        self.of = of


OPTIONS = {
    "lr": Argument(
        "float",
        "Learning rate, 0 or more.",
        check=Number("learning rate"),
        scheduled="A schedule is one of `fastopt.schedules`, or any callable ``step -> lr``, of the number of "
        "completed steps, from 0.",
    ),
    "momentum": Argument(
        "float", "Factor of the momentum buffer, 0 or more.", check=Number("momentum value"), scheduled=""
    ),
    "dampening": Argument(
        "float",
        "Takes this share off every gradient but a parameter's first; with momentum only.",
        check=Number("dampening value", minimum=-LARGEST),
    ),
    "nesterov": Argument(
        "bool", "Look ahead by one step of momentum; requires a momentum, and no dampening.", check=Flag()
    ),
    "lr_decay": Argument(
        "float",
        "How fast the rate falls with a parameter's own steps, 0 or more.",
        check=Number("lr_decay value"),
    ),
    "initial_accumulator_value": Argument(
        "float",
        "Where the accumulators start, 0 or more; a group may have its own.",
        check=Number("initial_accumulator_value value"),
    ),
    "alpha": Argument(
        "float",
        "How much of an average is kept at each step, from 0 to 1: it remembers some ``1 / (1 - alpha)`` steps.",
        check=Number("alpha value", maximum=1.0),
    ),
    "betas": Argument(
        "pair of float",
        "How much of each average is kept at each step, 0 or more and below 1.",
        check=Betas(),
        scheduled="Each of the two may be a schedule, as in ``betas=(OneCycle(...).momentum(), 0.999)``.",
    ),
    "eps": Argument(
        "float",
        "Keeps the divisor from zero; added to the root, not under it; 0 or more.",
        check=Number("epsilon value"),
    ),
    "weight_decay": Argument(
        "float",
        "L2 penalty, 0 or more: ``g + weight_decay * p`` is used for g.",
        check=Number("weight_decay value"),
        scheduled="",
        of={"adamw": "The share of a parameter that a step with a rate of 1 takes off, 0 or more."},
    ),
    "decoupled_weight_decay": Argument("bool", "Whether weight decay is `AdamW`'s.", check=Flag()),
    "amsgrad": Argument("bool", "Divide by the largest average of squares so far.", check=Flag()),
    "centered": Argument(
        "bool",
        "Divide by the standard deviation of the gradients, not by the root of their mean square.",
        check=Flag(),
    ),
    "maximize": Argument("bool", "Ascend instead: ``-g`` is used for g.", check=Flag()),
}

HYPERPARAMETERS: dict[str, Number | Flag | Betas] = {
    name: option.check for name, option in OPTIONS.items() if option.check is not None
}
SCHEDULABLE = tuple(name for name, option in OPTIONS.items() if option.scheduled is not None)  # functions of the step
PAIRS = tuple(name for name, check in HYPERPARAMETERS.items() if isinstance(check, Betas))  # each number may be one
