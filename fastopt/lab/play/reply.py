"""What the page is told: paths and numbers of marbles, and the grids of landscapes, as JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ..landscape import AT_REST
from ..network import Array
from ..neuron import reached
from . import marbles
from .landscapes import LANDSCAPES, Landscape
from .marbles import Marble
from .settings import Settings
from .walk import Walked

GRID = 121  # points of a map along each axis
STARTS = 200  # random ones
ENDS = ("basin", "stuck", "moving", "lost")


def packed(array: Array) -> Any:
    """Return an array as text, float32 in base 64; one number stands for equal ones."""
    values = np.asarray(array, "<f4").ravel()
    if len(values) and (values == values[0]).all():
        return {"value": float(values[0]), "count": len(values)}
    return base64.b64encode(values.tobytes()).decode("ascii")


def told_of(marble: Marble, settings: Settings) -> dict[str, Any]:
    """Return the path of one marble, and what is to say of it."""
    walked = marbles.roll_from(marble, settings.landscape, settings.start, settings.noises())
    scheduled = marbles.rows(marble, settings.steps)[1]
    rates = marbles.effective_rates(marble, walked, settings.steps)
    momentum = marble.kind.momentum
    return {
        "points": packed(walked.points),
        "above": packed(walked.losses - settings.landscape.least),
        "pulls": packed(walked.pulls),
        "lr": packed(scheduled["lr"]),
        "momentum": None if momentum is None else packed(scheduled[momentum]),
        "rates": None if rates is None else packed(rates),
        "end": end_of(walked, settings.landscape),
        "home": None if walked.lost else reached(walked.losses, settings.landscape.target),
        "final": number(walked.losses[-1]),
    }


def number(value: float) -> float | None:
    """Return a number as JSON has it: None if it is not finite."""
    return float(value) if np.isfinite(value) else None


def end_of(walked: Walked, landscape: Landscape) -> str:
    """Return how a marble ends, one of `ENDS`."""
    if walked.lost:
        return "lost"
    if walked.losses[-1] <= landscape.target:
        return "basin"
    return "stuck" if walked.slope < AT_REST else "moving"


def told(settings: Settings) -> dict[str, Any]:
    """Return the paths of all marbles."""
    return {"marbles": [told_of(marble, settings) for marble in settings.marbles]}


def ends_of_starts(settings: Settings, first: int, count: int) -> list[dict[str, int]]:
    """Let each marble roll from some of the random starts, and count how they end, for each marble."""
    low, high = np.array(settings.landscape.extent).T
    starts = np.random.default_rng(settings.seed).uniform(low, high, (STARTS, 2))
    found = [dict.fromkeys(ENDS, 0) for _ in settings.marbles]
    for place, (x, y) in enumerate(starts[first : first + count].tolist(), start=first):
        noise = settings.noises(stream=1 + place)
        for marble, counts in zip(settings.marbles, found, strict=True):
            walked = marbles.roll_from(marble, settings.landscape, (x, y), noise)
            counts[end_of(walked, settings.landscape)] += 1
    return found


def landscape(name: str) -> dict[str, Any]:
    """Return all that is needed to draw a landscape."""
    each = LANDSCAPES[name]
    x, y, losses = each.heights(GRID)
    return {
        "x": [float(x[0]), float(x[-1])],
        "y": [float(y[0]), float(y[-1])],
        "points": GRID,
        "losses": packed(losses),
        "top": number(each.top),
        "logarithmic": each.logarithmic,
        "power": each.power,
        "relief": each.relief,
        "axes": each.axes,
        "note": each.note,
        "least": each.least,
        "view": each.view,
    }
