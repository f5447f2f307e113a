"""Options for every rule, and the optimizer that asks for it; no tests here.

Arithmetic is tested of every rule. What happens around a rule, to chunks, layouts, threads and launches, depends on how
many states it has and not on what it computes, and is tested of `BY_STATES`, which takes a third of the time.
"""

import fastopt

# Of rules, named as in the registry; rates with which a trajectory stays at the scale at which it begins.
OPTIMIZERS = {
    "sgd": (fastopt.SGD, {"lr": 0.1}),
    "momentum": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": (fastopt.Adagrad, {"lr": 0.1}),
    "rmsprop": (fastopt.RMSprop, {"lr": 0.01}),
    "rmsprop_momentum": (fastopt.RMSprop, {"lr": 0.01, "momentum": 0.9}),
    "rmsprop_centered": (fastopt.RMSprop, {"lr": 0.01, "centered": True}),
    "rmsprop_centered_momentum": (fastopt.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.9}),
    "adam": (fastopt.Adam, {"lr": 0.1}),
    "adam_amsgrad": (fastopt.Adam, {"lr": 0.1, "amsgrad": True}),
    "adamw": (fastopt.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    "adamw_amsgrad": (fastopt.AdamW, {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}),
}

# All that a row may be computed from: what a rule has no use for it does not look at.
OPTIONS = {
    "lr": 0.1,
    "momentum": 0.9,
    "dampening": 0.0,
    "lr_decay": 0.1,
    "alpha": 0.99,
    "betas": (0.9, 0.999),
    "eps": 1e-10,
    "weight_decay": 0.0,
    "maximize": False,
}

BY_STATES = ("sgd", "adagrad", "rmsprop_momentum", "adamw_amsgrad")  # with none, one, two and three


def numbers(options, t):
    """Options as numbers at a step: functions of it are asked, those in pairs too."""

    def asked(value):
        if callable(value):
            return value(t)
        return tuple(map(asked, value)) if isinstance(value, tuple) else value

    return {name: asked(value) for name, value in options.items()}
