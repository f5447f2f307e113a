"""The registry: every update rule, its states and hyperparameters, and the numbers that its kernel is given.

The arithmetic of a rule stands in ``kernels/cpu.py`` and ``kernels/rules.h``, under the same name. Here stands what
happens once per step, in float64, on the host: which rule the options of an optimizer ask for, and the *hyper row*, the
handful of numbers that one (group, parameter step) gives to the kernel. A row begins with the factor of the gradient
and the weight decay, which every rule knows, ``g <- factor * g + weight_decay * p``; the rule's own follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .checks import LARGEST, Flag, Number

Options = Mapping[str, Any]
Row = tuple[float, ...]

HYPERPARAMETERS: dict[str, Number | Flag] = {
    "lr": Number("learning rate"),
    "momentum": Number("momentum value"),
    "dampening": Number("dampening value", minimum=-LARGEST),
    "nesterov": Flag(),
    "lr_decay": Number("lr_decay value"),
    "initial_accumulator_value": Number("initial_accumulator_value value"),
    "eps": Number("epsilon value"),
    "weight_decay": Number("weight_decay value"),
    "maximize": Flag(),
}

SCHEDULABLE = ("lr", "momentum", "weight_decay")  # those that may be functions of the step


def check(name: str, value: Any) -> float | bool:
    """Return a hyperparameter's value as a plain float or bool, or raise an error that names it."""
    return HYPERPARAMETERS[name].check(name, value)


def never(options: Options) -> bool:
    """Say that a row depends on the options alone."""
    return False


@dataclass(frozen=True, eq=False)
class Rule:
    """One update rule.

    Attributes
    ----------
    name : str
        Of the scalar function in ``kernels/cpu.py``, the functor in ``kernels/rules.h`` and the oracle in the tests.
    states : tuple of str
        The arrays kept for each parameter, named as in a state dict.
    options : tuple of str
        What the row is computed from, in the order in which the functor takes it.
    hypers : tuple of str
        The rule's own numbers in a hyper row, in the order in which the scalar function takes them.
    row : callable
        ``row(options, step, first)``, the hyper row; ``step`` counts this parameter's steps from 1, ``first`` says
        whether its states begin with this step.
    initial : str or None
        The option with which states begin; zero if None.
    moves : callable
        ``moves(options)``, whether the row changes from step to step while the options stay.
    sparse : bool
        Whether an element whose gradient is zero stays as it is, with its states, so that it can be left out.
    """

    name: str
    states: tuple[str, ...]
    options: tuple[str, ...]
    hypers: tuple[str, ...]
    row: Callable[[Options, int, bool], Row]
    initial: str | None = None
    moves: Callable[[Options], bool] = never
    sparse: bool = False

    def bytes_moved(self, itemsize: int) -> int:
        """Count what one step reads and writes for each element: p, g and the states read, p and the states written."""
        return (3 + 2 * len(self.states)) * itemsize


def factor(options: Options) -> float:
    """Turn ascent into descent: the gradient's sign."""
    return -1.0 if options["maximize"] else 1.0


def sgd_row(options: Options, step: int, first: bool) -> Row:
    """p <- p - lr * g."""
    return factor(options), options["weight_decay"], options["lr"]


def momentum_row(options: Options, step: int, first: bool) -> Row:
    """v <- momentum * v + (1 - dampening) * g; p <- p - lr * v, or with Nesterov p <- p - lr * (g + momentum * v).

    Dampening scales the gradient with its weight decay and is 0 with Nesterov, so that it goes into both factors and
    no kernel has to know it. The first gradient is not dampened.
    """
    gain = 1.0 if first else 1.0 - options["dampening"]
    return gain * factor(options), gain * options["weight_decay"], options["lr"], options["momentum"]


def adagrad_row(options: Options, step: int, first: bool) -> Row:
    """s <- s + g * g; p <- p - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(s) + eps)."""
    lr = options["lr"] / (1.0 + (step - 1) * options["lr_decay"])
    return factor(options), options["weight_decay"], lr, options["eps"]


OF_SGD = ("maximize", "weight_decay", "lr")
OF_MOMENTUM = (*OF_SGD, "momentum", "dampening")

SGD = Rule("sgd", (), OF_SGD, ("lr",), sgd_row, sparse=True)
MOMENTUM = Rule("momentum", ("momentum_buffer",), OF_MOMENTUM, ("lr", "momentum"), momentum_row)
NESTEROV = Rule("nesterov", ("momentum_buffer",), OF_MOMENTUM, ("lr", "momentum"), momentum_row)
ADAGRAD = Rule(
    "adagrad",
    ("sum",),
    ("maximize", "weight_decay", "lr", "eps", "lr_decay"),
    ("lr", "eps"),
    adagrad_row,
    initial="initial_accumulator_value",
    moves=lambda options: bool(options["lr_decay"] != 0),
    sparse=True,
)

RULES = {rule.name: rule for rule in (SGD, MOMENTUM, NESTEROV, ADAGRAD)}


def choose_sgd(options: Options) -> Rule:
    """Choose between gradient descent, momentum and Nesterov by SGD's options."""
    if options["nesterov"]:
        if options["momentum"] == 0 or options["dampening"] != 0:
            raise ValueError(
                "Nesterov momentum requires a momentum and zero dampening, not "
                f"momentum={options['momentum']:g} and dampening={options['dampening']:g}"
            )
        return NESTEROV
    return MOMENTUM if options["momentum"] != 0 else SGD


def choose_adagrad(options: Options) -> Rule:
    """AdaGrad has one rule."""
    return ADAGRAD


@dataclass(frozen=True, eq=False)
class Family:
    """The rules of one optimizer.

    Attributes
    ----------
    rules : tuple of Rule
        All that its options can ask for.
    choose : callable
        ``choose(options)``, the one that they do; raises ValueError where they contradict each other.
    counts : bool
        Whether the count of a parameter's steps is part of its state in torch.optim.
    """

    rules: tuple[Rule, ...]
    choose: Callable[[Options], Rule]
    counts: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """Name the states of all rules."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.states))


FAMILIES = {
    "SGD": Family((SGD, MOMENTUM, NESTEROV), choose_sgd),
    "Adagrad": Family((ADAGRAD,), choose_adagrad, counts=True),
}
