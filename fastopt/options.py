"""What is known of a parameter of the optimizers: how it is checked, whether it may be a schedule, what it means."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .checks import Betas, Flag, Number

NOTHING: Mapping[str, str] = MappingProxyType({})


class Argument:
    """A parameter of faces. A plain class, since one that `dataclass` or `NamedTuple` makes takes longer to import.

    Attributes
    ----------
    kind : str
        What it is, as numpydoc has it after the name.
    text : str
        What it means.
    check : Number, Flag, Betas or None
        What it may be, if it is a hyperparameter.
    scheduled : str or None
        What is to be said of schedules in its place; None if there can be none.
    of : mapping of str to str
        Other texts, for rules that mean something else by it.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        check: Number | Flag | Betas | None = None,
        scheduled: str | None = None,
        of: Mapping[str, str] = NOTHING,
    ) -> None:
        self.kind = kind
        self.text = text
        self.check = check
        self.scheduled = scheduled
        self.of = of
