"""Arguments for a rule in a user's own loop, which applies the gradient's options itself; no tests here."""

import rule_cases

from fastopt.rules import RULES

OPTIONS = {**rule_cases.OPTIONS, "eps": 1e-4}


def options_of(name):
    """Options for the numbers of a rule: weight decay where it is not the gradient's."""
    return OPTIONS if "weight_decay" in RULES[name].of_gradient else {**OPTIONS, "weight_decay": 0.1}


def numbers_of(name, step):
    """The numbers of a rule in a step that is not the first, in its order."""
    return RULES[name].row(options_of(name), step, False)[2:]


def states_of(name, rng, shape, dtype):
    """States that a rule may have met: averages of squares are above the squares of averages."""
    return [rng.uniform(0.4, 0.5, shape).astype(dtype) for _ in RULES[name].states]
