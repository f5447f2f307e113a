"""Experiments with pictures: ``fastopt lab NAME``, or ``fastopt.lab.NAME()``, which returns a figure and its numbers.

An experiment is one file here and one line below. Its function takes keywords with defaults (numbers, tuples of
numbers, words), which become options of the command, and returns a matplotlib figure and plain numbers, fit for JSON.
Its report describes the numbers: tables, an empty line, and three lines with the results.

`play` is no experiment: it serves a page in which one experiments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .animation import animate
from .bounce import bounce
from .bounce import report as bounce_report
from .digits import digits
from .digits import report as digits_report
from .gradients import gradients
from .gradients import report as gradients_report
from .housing import housing
from .housing import report as housing_report
from .landscape import landscape
from .landscape import report as landscape_report
from .play import play
from .precision import precision
from .precision import report as precision_report
from .schedules import report as schedules_report
from .schedules import schedules
from .sparse import report as sparse_report
from .sparse import sparse
from .words import report as words_report
from .words import words


@dataclass(frozen=True)
class Experiment:
    """An experiment for the command: a one-line description, the function, and the report of its numbers."""

    description: str
    run: Callable[..., tuple[Any, Any]]
    report: Callable[[Any], str]


EXPERIMENTS = {
    "landscape": Experiment("which ways of descending get past potholes", landscape, landscape_report),
    "bounce": Experiment("noisy gradients: a constant rate rattles, its average homes in", bounce, bounce_report),
    "schedules": Experiment("every learning-rate schedule in a panel of its own", schedules, schedules_report),
    "sparse": Experiment("why AdaGrad, RMSProp and Adam: a weight that few pairs affect", sparse, sparse_report),
    "words": Experiment("what AdaGrad was invented for: do rare words learn", words, words_report),
    "digits": Experiment("rules and schedules train a network on handwritten digits", digits, digits_report),
    "housing": Experiment("schedules train a regression on house prices", housing, housing_report),
    "gradients": Experiment("gradients that explode or vanish, and what helps", gradients, gradients_report),
    "precision": Experiment("states and parameters in few bits: loss and memory", precision, precision_report),
}

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "animate",
    "bounce",
    "digits",
    "gradients",
    "housing",
    "landscape",
    "play",
    "precision",
    "schedules",
    "sparse",
    "words",
]
