"""The lessons: settings to look at, with two sentences of what to look for, and the sliders of the exported page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .walk import WITHOUT_ROOT


@dataclass(frozen=True)
class Lesson:
    """A lesson.

    Attributes
    ----------
    title, text : str
        What the button says, and what to look for.
    settings : dict
        As `settings.checked` takes them.
    grid : dict
        The sliders of the exported page, and the values that each can have. A name is that of a field of the page, or
        of a marble: "2.lr" is the second one's rate.
    """

    title: str
    text: str
    settings: Mapping[str, Any]
    grid: Mapping[str, tuple[float, ...]]


START = {"landscape": "potholes", "x": -2.5, "y": 3.7, "steps": 300}
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
MOMENTA = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
NOISES = (0.0, 0.3, 1.0, 2.0, 4.0)

LESSONS = {
    "stuck": Lesson(
        "stuck",
        "Plain descent rolls to the bottom of the first hollow, and rests there: a pothole. "
        "Raise the rate: up to about 0.25 it stays stuck; above that it cannot rest in a pothole, and may hop out.",
        {**START, "marbles": [{"rule": "sgd", "lr": 0.05}]},
        {"1.lr": RATES, "x": (-3.0, -2.75, -2.5, -2.25, -2.0)},
    ),
    "carried": Lesson(
        "carried through",
        "With momentum the marble rolls through the same pothole, past the minimum, and swings around it. "
        "Step on slowly: in the pothole the pull points back, and the velocity wins.",
        {**START, "marbles": [{"rule": "sgd", "lr": 0.05}, {"rule": "momentum", "lr": 0.05, "momentum": 0.9}]},
        {"2.momentum": MOMENTA, "2.lr": (0.01, 0.02, 0.05, 0.1, 0.2)},
    ),
    "bouncing": Lesson(
        "bouncing",
        "The gradients are noisy, so at a constant rate the marble rattles around the minimum and never rests. "
        "Halve the rate: it comes closer, by about the root of two, and takes twice as long to arrive.",
        {"landscape": "bowl", "x": 4, "y": 3, "steps": 300, "noise": 1, "marbles": [{"rule": "sgd", "lr": 0.2}]},
        {"1.lr": (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.7), "noise": NOISES},
    ),
    "homing": Lesson(
        "homing in",
        "The same noise, and a rate that falls to a hundredth: the marble comes closer and closer. "
        "Let the rate fall too soon, and the marble stops on its way.",
        {
            "landscape": "bowl", "x": 4, "y": 3, "steps": 300, "noise": 1,
            "marbles": [
                {"rule": "sgd", "lr": 0.2},
                {"rule": "sgd", "lr": 0.2, "lr_shape": "exponential", "lr_fall": 0.01},
            ],
        },
        {"2.lr_fall": (1e-9, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 1.0), "noise": NOISES},
    ),
    "reheated": Lesson(
        "reheated",
        "A marble that is stuck gets a high rate again, twice, which falls by a cosine: it leaves the pothole. "
        "As the rate comes down, the wide basin is the first hollow in which it can rest.",
        {
            **START,
            "marbles": [
                {"rule": "sgd", "lr": 0.05},
                {"rule": "sgd", "lr": 0.05, "lr_shape": "reheating", "lr_peak": 20.0, "lr_waves": 2},
            ],
        },
        {"2.lr_peak": (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0), "2.lr_waves": (1, 2, 3, 4)},
    ),
    "angle": Lesson(
        "right angle",
        "Plain descent goes down along b, which all pairs affect, then turns a right angle into w. "
        "AdaGrad divides each gradient by its own history, and goes both ways at once.",
        {
            "landscape": "neuron", "x": -0.5, "y": 3, "steps": 300,
            "marbles": [
                {"rule": "sgd", "lr": 0.02},
                {"rule": "momentum", "lr": 0.02, "momentum": 0.9},
                {"rule": "adagrad", "lr": 0.1},
            ],
        },
        {"1.lr": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1), "3.lr": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)},
    ),
    "dies": Lesson(
        "the rate that dies",
        "AdaGrad's history only grows, so its effective rates only fall; without the root b's is dead at once. "
        "RMSProp's history fades: its rates rise again where the gradients become small.",
        {
            "landscape": "neuron", "x": -0.5, "y": 3, "steps": 300,
            "marbles": [
                {"rule": "adagrad", "lr": 0.1},
                {"rule": WITHOUT_ROOT, "lr": 0.1},
                {"rule": "rmsprop", "lr": 0.01},
            ],
        },
        {"1.lr": (0.05, 0.1, 0.2, 0.5, 1.0), "2.lr": (0.1, 0.5, 2.0, 10.0), "3.lr": (0.005, 0.01, 0.02)},
    ),
    "exploding": Lesson(
        "the exploding step",
        "At the cliff one gradient is so large that a single step throws plain descent off the map. "
        "Clipped to a norm of 0.3 the step keeps its direction and loses its length, and the valley is found.",
        {
            "landscape": "cliff", "x": 5.6, "y": -2.5, "steps": 200,
            "marbles": [{"rule": "sgd", "lr": 0.2}, {"rule": "sgd", "lr": 0.2, "max_grad_norm": 0.3}],
        },
        {"2.max_grad_norm": (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0), "1.lr": (0.01, 0.05, 0.1, 0.2, 0.3)},
    ),
}  # fmt: skip
