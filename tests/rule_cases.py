"""Options for every rule, and the optimizer that uses it; no tests here.

Arithmetic is tested for every rule. What happens around it, to chunks, layouts, threads and launches, depends on how
many states it has and not on what it computes, and is tested for `BY_STATES`, which takes a third of the time.
"""

import pytest
from fastopt.bench.cases import case

import fastopt
from fastopt.rules import RULES


def optimizer_of(rule, **options):
    """The optimizer for NumPy that uses a rule, and its options."""
    name, options = case(rule, **options)
    return getattr(fastopt, name), options


DECAY = {name: {"weight_decay": 0.1} for name, rule in RULES.items() if "keep" in rule.hypers}

# With learning rates that keep a trajectory at its initial scale.
OPTIMIZERS = {
    rule: optimizer_of(rule, lr=0.01 if rule.startswith("rmsprop") else 0.1, **DECAY.get(rule, {})) for rule in RULES
}

# All options that a row may be computed from; a rule ignores those that it does not have.
OPTIONS = {
    "lr": 0.1,
    "momentum": 0.9,
    "dampening": 0.0,
    "lr_decay": 0.1,
    "alpha": 0.99,
    "betas": (0.9, 0.999),
    "eps": 1e-10,
    "weight_decay": 0.0,
    "momentum_decay": 4e-3,
    "maximize": False,
    # As a step leaves it that is not the first.
    **{rule.carried: 0.5 for rule in RULES.values() if rule.carried is not None},
}

CALLED = [name for name in RULES if hasattr(fastopt.fused, name.partition("_")[0])]  # with a single call
OF_SQUARES = [name for name, rule in RULES.items() if {"square_avg", "exp_avg_sq"} & {*rule.states}]

BY_STATES = ("sgd", "adagrad", "rmsprop_momentum", "adamw_amsgrad")  # with none, one, two and three

HALVES = ("float16", "bfloat16")


def half(rule, *values, id=None):
    """Values of a test of a rule in a half dtype: by default of those in `BY_STATES`.

    All rules compute in float32 and meet the same conversions, but each is a kernel, which takes long to compile.
    """
    return pytest.param(*values, id=id, marks=[] if rule in BY_STATES else pytest.mark.exhaustive)


def numbers(options, t):
    """Options as numbers at a step: functions of it are asked, those in pairs too."""

    def asked(value):
        if callable(value):
            return value(t)
        return tuple(map(asked, value)) if isinstance(value, tuple) else value

    return {name: asked(value) for name, value in options.items()}
