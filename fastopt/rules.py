"""The registry: every update rule, its options and states, and the numbers that its kernel gets.

The arithmetic of a rule is in ``kernels/cpu.py`` and ``kernels/rules.h``, under the same name. This module has what
happens once per step, in float64, on the host: the choice of a rule by the optimizer's options, and the *hyper row*,
the few numbers that the kernel gets for one (group, step count). A row begins with the factor of the gradient and the
weight decay, which every rule has, ``g <- factor * g + weight_decay * p``; the rule's own numbers follow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .checks import COUNT_LIMIT, Number
from .kernels import tables
from .kernels.dtypes import DTYPES
from .options import PAIRS

Options = Mapping[str, Any]
Row = tuple[float, ...]
RowFunction = Callable[[Options, int, bool], Row]

CARRIED = Number("number", maximum=1.0)  # a carried number

HARMLESS = 2.0**50  # a product of two such numbers, or of one and a bias correction, fits into float32

# Numbers of rows that are not options, as users can compute them; mu is NAdam's momentum.
SPELLED = {
    "factor": "1 - dampening",
    "keep": "1 - lr * weight_decay",
    "lr1": "lr * (1 - mu) / (1 - mu_product)",
    "lr2": "lr * next mu / (1 - mu_product * next mu)",
}


def never(options: Options) -> bool:
    """Return False: the row depends on the options only."""
    return False


def always(options: Options) -> bool:
    """Return True: the row changes at each step."""
    return True


@dataclass(frozen=True, eq=False)
class Rule:
    """One update rule.

    Attributes
    ----------
    name : str
        The name of the scalar function in ``kernels/cpu.py``, the functor in ``kernels/rules.h`` and the oracle.
    states : tuple of str
        The arrays kept for each parameter, named as in a state dict.
    options : tuple of str
        The options from which the row is computed, in the functor's order.
    hypers : tuple of str
        The rule's own numbers in a hyper row, in the scalar function's order.
    row : callable
        ``row(options, step, first)`` returns the hyper row; ``step`` counts the parameter's steps from 1, ``first``
        says whether its states begin with this step.
    initial : str or None
        The option with the initial value of the states; None means 0.
    moves : callable
        ``moves(options)`` says whether the row changes from step to step although the options stay.
    sparse : bool
        Whether an element with a zero gradient can be skipped, since it and its states do not change.
    carried : str or None
        The name, in state dicts, of a number that each parameter carries from step to step; initially 1.
    carry : callable or None
        ``carry(options, step, number)`` returns the carried number after a step. The row function finds it among the
        options, as the last one; it changes the row at each step, so that ``moves`` must be `always`.
    rowwise : bool
        Whether its states may have one number for each row: the kernel of rows knows how.
    of_gradient : tuple of str
        The options that only change the gradient: they determine the first two numbers of the row.
    """

    name: str
    states: tuple[str, ...]
    options: tuple[str, ...]
    hypers: tuple[str, ...]
    row: RowFunction
    initial: str | None = None
    moves: Callable[[Options], bool] = never
    sparse: bool = False
    carried: str | None = None
    carry: Callable[[Options, int, float], float] | None = None
    rowwise: bool = False
    of_gradient: tuple[str, ...] = ("maximize", "weight_decay")

    def __post_init__(self) -> None:
        """Raise ValueError where the tables have no room for the rule, or its carried number is said by halves."""
        options = len(self.options) + sum(name in PAIRS for name in self.options)  # each number of a pair counts
        tables.check_limits(
            self.name,
            states=(len(self.states), tables.STATES),
            numbers=(len(self.hypers), tables.NUMBERS),
            options=(options, tables.OPTIONS),
        )
        if self.carried is not None and (
            self.options[-1] != self.carried or self.carry is None or self.moves is not always
        ):
            raise ValueError(
                f"{self.name} carries {self.carried}: let that be the last of its options, where C++ looks for it, "
                "say by `carry` how it changes, and set moves=always"
            )

    def numbers(self, options: Options) -> Iterator[tuple[str, Any]]:
        """Iterate over (option, number) for the numbers from which the functor computes the row; betas are two.

        If an option is a schedule, the schedule comes instead of the number.
        """
        for name in self.options:
            value = options[name]
            for number in value if name in PAIRS else (value,):
                yield name, number

    @functools.cached_property
    def checked(self) -> tuple[str, ...]:
        """The options that can be too large."""
        return self.options if self.initial is None else (*self.options, self.initial)

    def carried_after(self, options: Options, step: int, carried: float) -> float:
        """Return the carried number after a step, from that before it."""
        return carried if self.carry is None else self.carry(options, step, carried)

    def with_carried(self, options: Options, carried: float) -> Options:
        """Return the options, with the carried number if the rule has one."""
        return options if self.carried is None else {**options, self.carried: carried}

    def check_options(self, options: Options, dtype: str, whose: str) -> None:
        """Raise if the row of some step would have numbers that kernels for a dtype cannot represent."""
        for name in self.checked:
            value = options.get(name)  # None for the carried number, which is at most 1
            if type(value) is float and not -HARMLESS <= value <= HARMLESS:
                break
        else:
            return
        for step in (1, COUNT_LIMIT):
            options = self.with_carried(options, self.carried_after(options, step, 1.0))
            self.check_row(self.row(options, step, step == 1), dtype, whose)
        if self.initial is not None:
            check_number(self.initial, options[self.initial], dtype, whose)

    def check_row(self, row: Row, dtype: str, whose: str = "") -> None:
        """Raise if a number of a hyper row is too large for the arithmetic of kernels for a dtype."""
        for name, number in zip(("factor", "weight_decay", *self.hypers), row, strict=True):
            check_number(SPELLED.get(name, name), number, dtype, whose)

    def bytes_moved(self, itemsize: int) -> int:
        """Count what one step reads and writes for each element: p, g and the states read, p and the states written."""
        return (3 + 2 * len(self.states)) * itemsize


def check_number(name: str, number: float, dtype: str, whose: str) -> None:
    """Raise if a number is NaN, or too large for the arithmetic of kernels for a dtype."""
    largest = DTYPES[dtype].largest
    if not abs(number) <= largest:
        raise ValueError(
            f"{name}{whose} comes to {number:g}, too large for {dtype} parameters, whose steps are computed with "
            f"numbers of {largest:g} at most: choose smaller ones"
        )


def factor(options: Options) -> float:
    """Return the sign of the gradient: -1 to ascend."""
    return -1.0 if options["maximize"] else 1.0


def sgd_row(options: Options, step: int, first: bool) -> Row:
    """p <- p - lr * g."""
    return factor(options), options["weight_decay"], options["lr"]


def momentum_row(options: Options, step: int, first: bool) -> Row:
    """v <- momentum * v + (1 - dampening) * g; p <- p - lr * v, or with Nesterov p <- p - lr * (g + momentum * v).

    Dampening scales the gradient with its weight decay and is 0 with Nesterov, so it goes into both factors and kernels
    do not need it. The first gradient is not dampened.
    """
    damping = 1.0 if first else 1.0 - options["dampening"]
    return damping * factor(options), damping * options["weight_decay"], options["lr"], options["momentum"]


def adagrad_row(options: Options, step: int, first: bool) -> Row:
    """s <- s + g * g; p <- p - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(s) + eps)."""
    lr = options["lr"] / (1.0 + (step - 1) * options["lr_decay"])
    return factor(options), options["weight_decay"], lr, options["eps"]


def rmsprop_row(options: Options, step: int, first: bool) -> Row:
    """s <- alpha * s + (1 - alpha) * g * g; p <- p - lr * g / (sqrt(s) + eps).

    Kernels get the gain, 1 - alpha, the weight of the new value in the average: computed from an alpha rounded to
    float32, it would have a much larger relative error.
    """
    return factor(options), options["weight_decay"], options["lr"], 1.0 - options["alpha"], options["eps"]


def rmsprop_momentum_row(options: Options, step: int, first: bool) -> Row:
    """v <- momentum * v + g / (sqrt(s) + eps); p <- p - lr * v."""
    return (*rmsprop_row(options, step, first), options["momentum"])


def adam_row(options: Options, step: int, first: bool) -> Row:
    """m <- beta1 * m + (1 - beta1) * g; v <- beta2 * v + (1 - beta2) * g * g; p <- p - lr * m' / (sqrt(v') + eps).

    m' and v' are m / (1 - beta1 ** step) and v / (1 - beta2 ** step), which corrects the averages' bias towards their
    start at 0. The corrections are the same for all elements, and go into lr and eps, as in section 2 of the paper.
    """
    beta1, beta2 = options["betas"]
    root = math.sqrt(1.0 - beta2 ** float(step))
    lr = options["lr"] * root / (1.0 - beta1 ** float(step))
    return factor(options), options["weight_decay"], lr, 1.0 - beta1, 1.0 - beta2, options["eps"] * root


def sparse_adam_row(options: Options, step: int, first: bool) -> Row:
    """Adam, but for eps, which torch's SparseAdam adds to a root that is not corrected; without weight decay."""
    *row, _ = adam_row({**options, "weight_decay": 0.0}, step, first)
    return (*row, options["eps"])


def decoupled(row: RowFunction) -> RowFunction:
    """Return the row function of AdamW, from Adam's: p <- (1 - lr * weight_decay) * p, then without weight decay."""

    def decoupled_row(options: Options, step: int, first: bool) -> Row:
        gradients_factor, weight_decay, *others = row(options, step, first)
        return gradients_factor, 0.0, *others, 1.0 - options["lr"] * weight_decay

    return decoupled_row


def lion_row(options: Options, step: int, first: bool) -> Row:
    """p <- (1 - lr * weight_decay) * p - lr * sign(beta1 * m + (1 - beta1) * g); m <- beta2 * m + (1 - beta2) * g."""
    beta1, beta2 = options["betas"]
    lr = options["lr"]
    return factor(options), 0.0, lr, 1.0 - beta1, 1.0 - beta2, 1.0 - lr * options["weight_decay"]


def nadam_momentum(options: Options, step: int) -> float:
    """The momentum of a step, which grows from beta1 / 2 to beta1."""
    momentum: float = options["betas"][0] * (1.0 - 0.5 * 0.96 ** (float(step) * options["momentum_decay"]))
    return momentum


def nadam_product(options: Options, step: int, product: float) -> float:
    """Multiply the momenta of all steps."""
    return product * nadam_momentum(options, step)


def nadam_row(options: Options, step: int, first: bool) -> Row:
    """p <- p - lr * ((1 - mu) * g / (1 - mu_product) + next * m / (1 - mu_product * next)) / (sqrt(v') + eps).

    m, v and v' are Adam's; mu is the step's momentum, next that of the next one. What stands before g and m is the same
    for all elements.
    """
    _, _, _, gain1, gain2, eps = adam_row(options, step, first)
    product, upcoming = options["mu_product"], nadam_momentum(options, step + 1)
    lr = options["lr"] * math.sqrt(1.0 - options["betas"][1] ** float(step))
    of_gradient = lr * (1.0 - nadam_momentum(options, step)) / (1.0 - product)
    of_average = lr * upcoming / (1.0 - product * upcoming)
    return factor(options), options["weight_decay"], of_gradient, of_average, gain1, gain2, eps


OF_SGD = ("maximize", "weight_decay", "lr")
OF_MOMENTUM = (*OF_SGD, "momentum", "dampening")

SGD = Rule("sgd", (), OF_SGD, ("lr",), sgd_row, sparse=True)
MOMENTUM = Rule(
    "momentum",
    ("momentum_buffer",),
    OF_MOMENTUM,
    ("lr", "momentum"),
    momentum_row,
    of_gradient=("maximize", "weight_decay", "dampening"),
)
NESTEROV = replace(MOMENTUM, name="nesterov")
ADAGRAD = Rule(
    "adagrad",
    ("sum",),
    ("maximize", "weight_decay", "lr", "eps", "lr_decay"),
    ("lr", "eps"),
    adagrad_row,
    initial="initial_accumulator_value",
    moves=lambda options: bool(options["lr_decay"] != 0),
    sparse=True,
    rowwise=True,
)

OF_RMSPROP = (*OF_SGD, "alpha", "eps")
RMSPROP = Rule("rmsprop", ("square_avg",), OF_RMSPROP, ("lr", "gain", "eps"), rmsprop_row)
RMSPROP_MOMENTUM = Rule(
    "rmsprop_momentum",
    ("square_avg", "momentum_buffer"),
    (*OF_RMSPROP, "momentum"),
    ("lr", "gain", "eps", "momentum"),
    rmsprop_momentum_row,
)
RMSPROP_CENTERED = replace(RMSPROP, name="rmsprop_centered", states=("square_avg", "grad_avg"))
RMSPROP_CENTERED_MOMENTUM = replace(
    RMSPROP_MOMENTUM, name="rmsprop_centered_momentum", states=("square_avg", "momentum_buffer", "grad_avg")
)

ADAM = Rule(
    "adam",
    ("exp_avg", "exp_avg_sq"),
    (*OF_SGD, "betas", "eps"),
    ("lr", "gain1", "gain2", "eps"),
    adam_row,
    moves=always,
)
SPARSE_ADAM = replace(  # it has Adam's kernels
    ADAM, options=("maximize", "lr", "betas", "eps"), row=sparse_adam_row, sparse=True, of_gradient=("maximize",)
)
ADAM_AMSGRAD = replace(ADAM, name="adam_amsgrad", states=("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
ADAMW = replace(ADAM, name="adamw", hypers=(*ADAM.hypers, "keep"), row=decoupled(adam_row), of_gradient=("maximize",))
ADAMW_AMSGRAD = replace(ADAMW, name="adamw_amsgrad", states=ADAM_AMSGRAD.states)
LION = Rule(
    "lion",
    ("exp_avg",),
    (*OF_SGD, "betas"),
    ("lr", "gain1", "gain2", "keep"),
    lion_row,
    of_gradient=("maximize",),
)

NADAM = Rule(
    "nadam",
    ADAM.states,
    (*ADAM.options, "momentum_decay", "mu_product"),
    ("lr1", "lr2", "gain1", "gain2", "eps"),
    nadam_row,
    moves=always,
    carried="mu_product",
    carry=nadam_product,
)
NADAMW = replace(
    NADAM, name="nadamw", hypers=(*NADAM.hypers, "keep"), row=decoupled(nadam_row), of_gradient=("maximize",)
)

RULES = {
    rule.name: rule
    for rule in (
        SGD,
        MOMENTUM,
        NESTEROV,
        ADAGRAD,
        RMSPROP,
        RMSPROP_MOMENTUM,
        RMSPROP_CENTERED,
        RMSPROP_CENTERED_MOMENTUM,
        ADAM,
        ADAM_AMSGRAD,
        ADAMW,
        ADAMW_AMSGRAD,
        LION,
        NADAM,
        NADAMW,
    )
}


def only(rule: Rule) -> Callable[[Options], Rule]:
    """Choose the only rule of an optimizer, whatever its options."""
    return lambda options: rule


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


def choose_rmsprop(options: Options) -> Rule:
    """Choose RMSProp with or without momentum, centered or not."""
    if options["centered"]:
        return RMSPROP_CENTERED_MOMENTUM if options["momentum"] != 0 else RMSPROP_CENTERED
    return RMSPROP_MOMENTUM if options["momentum"] != 0 else RMSPROP


def choose_adam(options: Options) -> Rule:
    """Choose Adam with or without AMSGrad's maximum, or AdamW, by an option of torch's Adam."""
    if options.get("decoupled_weight_decay", False):
        return choose_adamw(options)
    return ADAM_AMSGRAD if options["amsgrad"] else ADAM


def choose_adamw(options: Options) -> Rule:
    """Choose AdamW with or without AMSGrad's maximum."""
    return ADAMW_AMSGRAD if options["amsgrad"] else ADAMW


def choose_nadam(options: Options) -> Rule:
    """Choose NAdam with an L2 penalty, or with AdamW's weight decay."""
    return NADAMW if options["decoupled_weight_decay"] else NADAM


@dataclass(frozen=True, eq=False)
class Family:
    """The rules of one optimizer.

    Attributes
    ----------
    rules : tuple of Rule
        All rules that its options can select.
    selected : callable
        ``selected(options)`` returns the selected rule; raises ValueError if options contradict each other.
    counts : bool
        Whether the count of a parameter's steps is part of its state in torch.optim.
    only_sparse : bool
        Whether all gradients must be sparse.
    """

    rules: tuple[Rule, ...]
    selected: Callable[[Options], Rule]
    counts: bool = False
    only_sparse: bool = False

    def choose(self, options: Options) -> Rule:
        """Return the rule that options select; raise ValueError if they contradict each other."""
        if isinstance(dtypes := options.get("state_dtype"), dict) and (unknown := dtypes.keys() - {*self.states}):
            raise ValueError(
                f"Invalid state_dtype: there is no state {min(unknown)!r}; the states are {', '.join(self.states)}"
            )
        return self.selected(options)

    @property
    def carried(self) -> str | None:
        """Return the name of the number that a parameter carries from step to step."""
        return self.rules[0].carried

    @property
    def states(self) -> tuple[str, ...]:
        """Return the names of the states of all rules."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.states))

    @property
    def kept(self) -> tuple[str, ...]:
        """Return the names of the states that every rule has."""
        return tuple(name for name in self.states if all(name in rule.states for rule in self.rules))


FAMILIES = {
    "SGD": Family((SGD, MOMENTUM, NESTEROV), choose_sgd),
    "Adagrad": Family((ADAGRAD,), only(ADAGRAD), counts=True),
    "RMSprop": Family(
        (RMSPROP, RMSPROP_MOMENTUM, RMSPROP_CENTERED, RMSPROP_CENTERED_MOMENTUM), choose_rmsprop, counts=True
    ),
    "Adam": Family((ADAM, ADAM_AMSGRAD, ADAMW, ADAMW_AMSGRAD), choose_adam, counts=True),
    "AdamW": Family((ADAMW, ADAMW_AMSGRAD), choose_adamw, counts=True),
    "Lion": Family((LION,), only(LION)),
    "NAdam": Family((NADAM, NADAMW), choose_nadam, counts=True),
}

OF_ROWS = Family((SPARSE_ADAM,), only(SPARSE_ADAM), counts=True, only_sparse=True)  # of torch's SparseAdam alone
