"""A field of the page: a number that has a slider and can be typed, or a choice; what it may be is said here once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...checks import Choice, Number


@dataclass(frozen=True)
class Field:
    """A number of the page.

    Attributes
    ----------
    label : str
    default : float
    least, most : float
        What it may be.
    scale : {"linear", "logarithmic", "near one"}
        Of the slider: the last one's steps are equal ratios of ``1 - value``.
    reach : pair of float
        The ends of the slider; typed values may lie beyond.
    whole : bool
        Whether it is a whole number.
    help : str
        A sentence that a tooltip shows.
    zero : bool
        Whether a logarithmic slider's left end means 0.
    """

    label: str
    default: float
    least: float
    most: float
    scale: str = "linear"
    reach: tuple[float, float] = (0.0, 1.0)
    whole: bool = False
    help: str = ""
    zero: bool = False

    def check(self, name: str, value: Any) -> float:
        """Return the value, or raise an error that names the field."""
        number = Number(self.label, self.least, self.most).check(name, value)
        if not self.whole:
            return number
        if not number.is_integer():
            raise ValueError(f"Invalid {self.label}: {value!r:.40}; {name} must be a whole number")
        return int(number)


@dataclass(frozen=True)
class Options:
    """A choice of the page, from a few words, each with what the page calls it."""

    label: str
    default: str
    titles: dict[str, str]
    help: str = ""

    def check(self, name: str, value: Any) -> str:
        """Return the word, or raise an error that names the field and lists the words."""
        return Choice(tuple(self.titles)).check(name, value)
