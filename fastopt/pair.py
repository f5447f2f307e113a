"""Options of two numbers, such as Adam's betas; each of the two may be a function of the step."""

from __future__ import annotations

from typing import Any

from .plateau import Plateau


class Pair(tuple[Any, ...]):
    """The value of an option of two numbers, one or both of which are functions of the step.

    The pair itself is a function of the step as well; its value is a tuple of numbers.
    """

    __slots__ = ()

    def __call__(self, step: int) -> tuple[Any, ...]:
        """Return the numbers at a step."""
        return tuple(part(step) if callable(part) else part for part in self)


def goes_by_step(value: Any) -> bool:
    """Say whether a value is a function of the step, or a list or tuple that contains one."""
    return callable(value) or (isinstance(value, (list, tuple)) and any(map(callable, value)))


def paired(name: str, value: Any) -> Any:
    """Return a list or tuple that contains a function of the step as a `Pair`, anything else as it is."""
    if callable(value) or not goes_by_step(value):
        return value
    for i, part in enumerate(value):
        if isinstance(part, Plateau):
            raise TypeError(
                f"{name}[{i}] is a Plateau, whose memory is kept for options of one number alone: use a schedule that "
                "goes by the step, or a function that asks the Plateau, as lambda step: plateau.lr"
            )
    return Pair(value)
