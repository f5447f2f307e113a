"""A parameter of an optimizer: its check, whether it may be a schedule, and its description for docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from .checks import Betas, Count, DTypes, Flag, MasterBits, Number, OrNone

Check: TypeAlias = Number | OrNone | Flag | Betas | DTypes | Count | MasterBits
NOTHING: Mapping[str, str] = MappingProxyType({})


class Argument:
    """A parameter of faces. A plain class: `dataclass` or `NamedTuple` would make the import slower.

    Attributes
    ----------
    kind : str
        Its type, as numpydoc has it after the name.
    text : str
        Its description.
    check : Check or None
        Its check, if it is a hyperparameter.
    scheduled : str or None
        The description of schedules for it; None if it cannot be a schedule.
    of : mapping of str to str
        Other descriptions, for rules in which it means something else.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        check: Check | None = None,
        scheduled: str | None = None,
        of: Mapping[str, str] = NOTHING,
    ) -> None:
        self.kind = kind
        self.text = text
        self.check = check
        self.scheduled = scheduled
        self.of = of
