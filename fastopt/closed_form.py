"""What a scheduler of torch knows of a schedule: `schedules.py` makes schedulers, so that these cannot import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClosedForm:
    """A function of the step alone, which plain Python can describe. `Schedule` implements it."""

    def __call__(self, t: Any) -> Any:
        """Return the value at a step."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain Python."""
        raise NotImplementedError

    @staticmethod
    def _described(plain: Mapping[str, Any]) -> ClosedForm:
        """Return the schedule, of any class, that `to_dict` has described."""
        raise NotImplementedError
