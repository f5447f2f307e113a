"""All options of optimizers: how each is checked, whether it may be a schedule, what docstrings say of it; defaults."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from .checks import LARGEST, SMALLEST, Betas, Count, DTypes, Flag, MasterBits, Number, OrNone
from .pair import Pair

Check: TypeAlias = Number | OrNone | Flag | Betas | DTypes | Count | MasterBits
NOTHING: Mapping[str, str] = MappingProxyType({})


class Argument:
    """A parameter of faces. A plain class: `dataclass` or `NamedTuple` would make the import slower.

    Attributes
    ----------
    kind : str
        Its type, as numpydoc has it after the name.
    text : str
        Its description.
    check : Check or None
        Its check, if it is a hyperparameter.
    scheduled : str or None
        The description of schedules for it; None if it cannot be a schedule.
    of : mapping of str to str
        Other descriptions, for rules in which it means something else.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        check: Check | None = None,
        scheduled: str | None = None,
        of: Mapping[str, str] = NOTHING,
    ) -> None:
        self.kind = kind
        self.text = text
        self.check = check
        self.scheduled = scheduled
        self.of = of


# The rules' own. Their defaults stand in the signatures of the classes and functions that have them.
OPTIONS = {
    "lr": Argument(
        "float",
        "Learning rate, 0 or more.",
        check=Number("learning rate"),
        scheduled="A schedule is one of `fastopt.schedules`, or any callable ``step -> lr``, where step counts the "
        "completed steps, from 0.",
    ),
    "momentum": Argument(
        "float", "Factor of the momentum buffer, 0 or more.", check=Number("momentum value"), scheduled=""
    ),
    "dampening": Argument(
        "float",
        "Reduces every gradient but a parameter's first by this share; only with momentum.",
        check=Number("dampening value", minimum=-LARGEST),
    ),
    "nesterov": Argument(
        "bool", "Look ahead by one step of momentum; requires a momentum, and no dampening.", check=Flag()
    ),
    "lr_decay": Argument(
        "float",
        "How fast the rate falls with the parameter's step count, 0 or more.",
        check=Number("lr_decay value"),
    ),
    "initial_accumulator_value": Argument(
        "float",
        "Initial value of the accumulators, 0 or more; a group may have its own.",
        check=Number("initial_accumulator_value value"),
    ),
    "alpha": Argument(
        "float",
        "How much of an average is kept at each step, from 0 to 1; it remembers about ``1 / (1 - alpha)`` steps.",
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
        "Keeps the divisor from being zero; added to the root, not under it; 0 or more.",
        check=Number("epsilon value"),
    ),
    "weight_decay": Argument(
        "float",
        "L2 penalty, 0 or more: ``g + weight_decay * p`` is used for g.",
        check=Number("weight_decay value"),
        scheduled="",
        of=dict.fromkeys(
            ("adamw", "lion"), "The share by which a step with a rate of 1 reduces a parameter, 0 or more."
        ),
    ),
    "momentum_decay": Argument(
        "float",
        "How fast the momentum grows from half of beta1 to all of it, 0 or more.",
        check=Number("momentum_decay value"),
    ),
    "decoupled_weight_decay": Argument("bool", "Use the weight decay of `AdamW`.", check=Flag()),
    "amsgrad": Argument("bool", "Divide by the largest average of squares so far.", check=Flag()),
    "centered": Argument(
        "bool",
        "Divide by the standard deviation of the gradients, not by the root of their mean square.",
        check=Flag(),
    ),
    "maximize": Argument("bool", "Ascend instead: ``-g`` is used for g.", check=Flag()),
}

# Those of the stages, which belong to an optimizer as a whole: its groups have those that are in use, all the same.
STAGE_OPTIONS = {
    "max_grad_norm": Argument(
        "float",
        "The largest norm of all gradients together, above 0: where it is larger, the step uses the gradients times "
        "``max_grad_norm / (norm + 1e-6)``. The gradients stay as they are. With infinity the norm is only measured, "
        "for `grad_norm`.",
        check=OrNone(Number("max_grad_norm value", minimum=SMALLEST, maximum=math.inf)),
        scheduled="",
    ),
    "clip_grad_value": Argument(
        "float",
        "The largest size of an element of a gradient, above 0: the step uses larger ones as if they were of that "
        "size. Clipping by the norm comes after it, with the norm from before it.",
        check=OrNone(Number("clip_grad_value value", minimum=SMALLEST)),
        scheduled="",
    ),
    "skip_nonfinite": Argument(
        "bool",
        "Skip every step in which the norm of all gradients is not finite: nothing changes then, and `skipped_steps` "
        "grows.",
        check=Flag(),
    ),
    "ema_decay": Argument(
        "float",
        "How much of each parameter's average e is kept at each step, from 0 to 1: ``e <- ema_decay * e + (1 - "
        'ema_decay) * p``, after the update. The average, the state ``"ema"``, starts at the parameter before its '
        "first step; see `swap_ema_weights`.",
        check=OrNone(Number("ema_decay value", maximum=1.0)),
        scheduled="",
    ),
}

# Those of the storages: how numbers lie in memory and are rounded for it, fixed when the optimizer is made.
STATE_DTYPES = ("float32", "bfloat16", "float16", "int8")
NEVER_NEGATIVE = {"sum", "square_avg", "exp_avg_sq", "max_exp_avg_sq"}  # states that have other codes in 8 bits


def dtype_in_memory(state: str, dtype: str) -> str:
    """Return the dtype that a state has where this one is asked for: codes of what is never negative have no sign."""
    return "uint8" if dtype == "int8" and state in NEVER_NEGATIVE else dtype


STORAGE_OPTIONS = {
    "state_dtype": Argument(
        "dtype, or dict of dtypes",
        'How the states lie in memory: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``, by name or as a '
        "dtype of NumPy or torch, or a dict of these by the name of a state. Rules compute as before, and what they "
        "write is rounded to nearest, unless ``stochastic_rounding`` says otherwise. Averages of squares need more "
        "range than float16 has. With 8 bits, 64 elements share a float32 scale, which is the state of that name with "
        "``_scale`` behind it. By default, states are float32 (float64 of float64 parameters), as averages and the "
        "states of complex parameters always are.",
        check=DTypes(STATE_DTYPES),
    ),
    "min_quantized_size": Argument(
        "int",
        "Parameters with fewer elements have their states in the default dtype, whatever ``state_dtype`` says.",
        check=Count(),
    ),
    "compress_state_dict": Argument(
        "bool",
        "Whether a state dict has states in 8 bits as they are, codes and scales, where the parameter is contiguous "
        "and not distributed; else it has float32, as torch.optim loads it. Loading converts either way.",
        check=Flag(),
    ),
    "master_weights": Argument(
        "bool or int",
        "Keep each parameter of 16 bits in float32 as well: the step reads and writes that, and the parameter is what "
        'it rounds to. Beside bfloat16, the state ``"master"`` has the 16 bits that are missing, 8 of them with '
        "``master_weights=24``; beside float16 it is a float32 copy. What is written into a parameter between steps "
        "counts. Parameters of other dtypes need no masters. See `master_state_dict`.",
        check=MasterBits(),
    ),
    "stochastic_rounding": Argument(
        "bool or None",
        "Round what lies in 16 or 8 bits, parameters and states, up or down at random, such that the number before is "
        "the mean, and not to nearest: steps that are too small for it add up all the same. Float32 and float64 stay "
        "as they are. The random bits come from ``seed``, the count of steps, the parameter's place among all, and the "
        "element's: they are the same on CPU and GPU, on any number of threads, and when a checkpoint is resumed. By "
        "default a group has it whose ``state_dtype`` puts sums or averages of squares in bfloat16 or 8 bits, where "
        "what comes to them in one step is mostly too small for rounding to nearest.",
        check=OrNone(Flag()),
    ),
    "seed": Argument(
        "int",
        "Of these random bits, 0 or more and below 2**63. A checkpoint brings its own.",
        check=Count(limit=2**63),
    ),
}
FIXED_STORAGES = tuple(name for name in STORAGE_OPTIONS if name != "compress_state_dict")  # when an optimizer is made

SPARSE_OPTIONS = {
    "lazy_update": Argument(
        "bool",
        "Whether a step with a sparse gradient leaves the rows that it does not have as they are, where the rule would "
        "move them too: by momentum, averages or weight decay. Else such a gradient is refused there. What is left "
        "alone does not age: a row's averages stay as long as no gradient has it, and the bias corrections follow the "
        "parameter's count.",
        check=Flag(),
    ),
    "rowwise": Argument(
        "bool",
        "Of `Adagrad` alone: one accumulator for each row of a table, to which the mean of the row's squared gradients "
        "is added, ``s <- s + mean(g * g)``: of 64 columns, a 64th of the memory. A row is what one index of the first "
        "axis stands for; of parameters with one axis, each element is one. A table's rows lie one after the other; "
        "``state_dtype`` goes into other groups. It is fixed when the optimizer is made.",
        check=Flag(),
    ),
}
FIXED_OPTIONS = (*FIXED_STORAGES, "rowwise")
OWN_OPTIONS = (*STORAGE_OPTIONS, *SPARSE_OPTIONS)  # which an optimizer keeps when it loads a state dict
ADDED_OPTIONS = {**STAGE_OPTIONS, **STORAGE_OPTIONS, **SPARSE_OPTIONS}  # to those of torch, for every optimizer

# Their defaults; groups have no entries for options that are not in use.
STAGE_DEFAULTS: dict[str, Any] = {**dict.fromkeys(STAGE_OPTIONS), "skip_nonfinite": False}
STORAGE_DEFAULTS: dict[str, Any] = {
    "state_dtype": None,
    "min_quantized_size": 4096,
    "compress_state_dict": True,
    "master_weights": False,
    "stochastic_rounding": None,
    "seed": 0,
}
SPARSE_DEFAULTS: dict[str, Any] = {"lazy_update": False, "rowwise": False}
OWN_DEFAULTS = {**STORAGE_DEFAULTS, **SPARSE_DEFAULTS}
ADDED_DEFAULTS = {**STAGE_DEFAULTS, **OWN_DEFAULTS}

HYPERPARAMETERS: dict[str, Check] = {
    name: option.check for name, option in {**OPTIONS, **ADDED_OPTIONS}.items() if option.check is not None
}
SCHEDULABLE = tuple(  # functions of the step
    name for name, option in {**OPTIONS, **ADDED_OPTIONS}.items() if option.scheduled is not None
)
PAIRS = tuple(name for name, check in HYPERPARAMETERS.items() if isinstance(check, Betas))  # each number may be one


def rounding_by_default(states: Iterable[str], options: Mapping[str, Any]) -> dict[str, bool]:
    """Return the rounding of a group that has these options, where they leave it open and it has to be stochastic.

    ``states`` are those of the optimizer's rules.
    """
    asked = check("state_dtype", options.get("state_dtype"))
    if asked is None or options.get("stochastic_rounding") is not None:
        return {}
    dtypes = asked if isinstance(asked, dict) else dict.fromkeys(states, asked)
    losing = any(dtypes.get(name) in ("bfloat16", "int8") for name in NEVER_NEGATIVE.intersection(states))
    return {"stochastic_rounding": True} if losing else {}


def is_scheduled(name: str, value: Any) -> bool:
    """Say whether a hyperparameter's value is a function of the step, and may be one."""
    return callable(value) and name in SCHEDULABLE and (name not in PAIRS or isinstance(value, Pair))


def check(name: str, value: Any) -> Any:
    """Return a hyperparameter's value as plain Python, or raise an error that names it."""
    return HYPERPARAMETERS[name].check(name, value)
