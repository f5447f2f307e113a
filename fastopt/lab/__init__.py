"""Experiments with pictures: ``fastopt lab NAME``, or ``fastopt.lab.NAME()``, which returns a figure and its numbers.

An experiment is one file here and one line below. Its function takes keywords with defaults, numbers or strings, which
become options of the command, and returns a matplotlib figure and plain numbers; its report puts those into words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .digits import digits
from .digits import report as digits_report
from .schedules import report as schedules_report
from .schedules import schedules


@dataclass(frozen=True)
class Experiment:
    """What the command needs to know: one line about it, how to run it, and how to put its numbers into words."""

    description: str
    run: Callable[..., tuple[Any, Any]]
    report: Callable[[Any], str]


EXPERIMENTS = {
    "digits": Experiment("four update rules train a small network on handwritten digits", digits, digits_report),
    "schedules": Experiment("every learning-rate schedule in a panel of its own", schedules, schedules_report),
}

__all__ = ["EXPERIMENTS", "Experiment", "digits", "schedules"]
