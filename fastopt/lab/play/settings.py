"""What the page is set to: checked when it comes from an address or a field, whoever typed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..network import Array
from .fields import Field, Options
from .landscapes import LANDSCAPES, Landscape
from .marbles import MARBLE, Marble

MOST_MARBLES = 4
MOST_STEPS = 5000
FAR = 1e6  # how far out a start may be

PAGE: dict[str, Field | Options] = {
    "landscape": Options("landscape", "potholes", {name: each.title for name, each in LANDSCAPES.items()}),
    "x": Field("start, x", 0.0, -FAR, FAR),
    "y": Field("start, y", 0.0, -FAR, FAR),
    "steps": Field("steps", 300, 1, MOST_STEPS, "logarithmic", (10, 3000), whole=True),
    "noise": Field(
        "gradient noise", 0.0, 0.0, 1e6, "logarithmic", (1e-2, 10.0), help="Its standard deviation.", zero=True
    ),
    "seed": Field("seed of the noise", 0, 0, 2**31, reach=(0, 20), whole=True),
}


@dataclass(frozen=True)
class Settings:
    """All settings of a page, checked."""

    landscape: Landscape
    name: str  # of the landscape
    start: tuple[float, float]
    steps: int
    noise: float
    seed: int
    marbles: tuple[Marble, ...]

    def noises(self, stream: int = 0) -> Array:
        """Return the noise of all steps, shape (steps, 2); all marbles have the same."""
        if self.noise == 0:
            return np.zeros((self.steps, 2))
        seed = self.seed if stream == 0 else (self.seed, stream)
        return self.noise * np.random.default_rng(seed).standard_normal((self.steps, 2))


def checked(given: Any) -> Settings:
    """Return settings from plain ones: ``{"landscape": ..., "x": ..., ..., "marbles": [{"rule": ...}, ...]}``.

    What is missing has its default; the start's is the landscape's.

    Raises
    ------
    TypeError, ValueError
        If something is unknown, of another type, or out of range; the message names it.
    """
    values = mapping("the settings", given)
    several = values.pop("marbles", [{}])
    if not isinstance(several, list) or not 1 <= len(several) <= MOST_MARBLES:
        raise ValueError(f"there must be 1 to {MOST_MARBLES} marbles")
    of_page = fields(PAGE, values, "")
    landscape = LANDSCAPES[of_page["landscape"]]
    start = tuple(of_page[name] if name in values else at for name, at in zip("xy", landscape.start, strict=True))
    marbles = []
    for number, each in enumerate(several, start=1):
        whose = f" of marble {number}"
        marbles.append(Marble(tuple(fields(MARBLE, mapping(f"the settings{whose}", each), whose).values())))
    return Settings(
        landscape, of_page["landscape"], (start[0], start[1]), of_page["steps"], of_page["noise"], of_page["seed"],
        tuple(marbles),
    )  # fmt: skip


def mapping(what: str, given: Any) -> dict[str, Any]:
    """Return a copy of what was given if it is a dict."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} must be names and values, not {given!r:.40}")
    return dict(given)


def fields(known: Mapping[str, Field | Options], given: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """Return the checked values of all known fields, in their order."""
    if unknown := given.keys() - known.keys():
        raise ValueError(f"there is no setting {min(unknown, key=str)!r:.40}{whose}")
    return {
        name: field.check(f"{name}{whose}", given[name]) if name in given else field.default
        for name, field in known.items()
    }
