"""Every rule with the optimizer and options that use it: one table for the benchmark, its GPU checks, and the tests."""

from __future__ import annotations

import inspect
from itertools import combinations
from typing import Any

import fastopt
from fastopt.checks import Flag
from fastopt.options import OPTIONS
from fastopt.rules import FAMILIES, RULES, Rule

MOMENTUM = 0.9
FLAGS = [name for name, option in OPTIONS.items() if isinstance(option.check, Flag) and name != "maximize"]
# The options by which a class chooses between its rules.
CHOOSING = {"momentum": MOMENTUM, **dict.fromkeys(FLAGS, True)}


def asking(rule: Rule) -> tuple[str, dict[str, Any]]:
    """Return the class that chooses a rule by the fewest options, and these options."""
    found = [(name, own) for name, family in FAMILIES.items() if rule in family.rules for own in choices(name, rule)]
    return min(found, key=lambda case: len(case[1]))


def choices(name: str, rule: Rule) -> list[dict[str, Any]]:
    """Return the options by which a class chooses a rule, where the others are at their defaults."""
    parameters = inspect.signature(getattr(fastopt, name)).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    own = [option for option in CHOOSING if option in defaults]
    found = []
    for names in (names for count in range(len(own) + 1) for names in combinations(own, count)):
        chosen = {option: CHOOSING[option] for option in names}
        try:
            right = FAMILIES[name].choose({**defaults, **chosen}) is rule
        except ValueError:  # they contradict each other
            continue
        if right:
            found.append(chosen)
    return found


# The class, named alike in `fastopt`, `fastopt.torch` and `torch.optim`, and the options that select the rule.
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: asking(rule) for name, rule in RULES.items()}


def case(rule: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of a rule's optimizer, and its options, with others added that do not change the rule."""
    name, own = CASES[rule]
    return name, {**options, **own}
