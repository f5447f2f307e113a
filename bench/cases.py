"""Every rule with the optimizer that asks for it: one table, for the benchmark, its checks on GPUs, and the tests."""

from __future__ import annotations

from typing import Any

MOMENTUM = 0.9

# The class, named alike in `fastopt`, `fastopt.torch` and `torch.optim`, and the options by which it chooses the rule.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": MOMENTUM}),
    "nesterov": ("SGD", {"momentum": MOMENTUM, "nesterov": True}),
    "adagrad": ("Adagrad", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_momentum": ("RMSprop", {"momentum": MOMENTUM}),
    "rmsprop_centered": ("RMSprop", {"centered": True}),
    "rmsprop_centered_momentum": ("RMSprop", {"centered": True, "momentum": MOMENTUM}),
    "adam": ("Adam", {}),
    "adam_amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "adamw_amsgrad": ("AdamW", {"amsgrad": True}),
}


def case(rule: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of the optimizer that asks for a rule, and its options, with more that leave it that rule."""
    name, own = CASES[rule]
    return name, {**options, **own}
