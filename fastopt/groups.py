"""Parameter groups as users see them: mappings of options, whose entries can be assigned between steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from .containers import ParamTree
from .options import ADDED_OPTIONS
from .step.group import GroupOptions


class ParamGroup(GroupOptions, MutableMapping[str, Any]):
    """One group's parameters, hyperparameters and count of steps, as a mapping.

    Every entry but ``params`` can be assigned between steps and takes effect at the next one. A value that is out of
    range raises at once, and changes nothing; values that contradict each other, such as Nesterov's with a dampening,
    raise at the next step.

    ``group["lr"]`` is always a number. If a schedule drives it, it is the rate of the latest step (before the first
    step, the rate of step 0). Assigning a number ends the schedule; assigning a callable ``step -> lr`` begins one. The
    callable must be a pure function: it may be called several times for the same step. The same holds for ``momentum``
    and ``weight_decay``, and for each of the two ``betas``: a pair of numbers ends both schedules,
    ``(callable, 0.999)`` begins one. ``group["step"]`` counts the completed steps; it is the argument of the schedules.
    ``group["schedules"]`` describes the current schedules as plain Python, ``{"lr": {"name": "Cosine", ...}}``; state
    dicts hold this description. It cannot be assigned.
    """

    tree: ParamTree

    def __init__(self, index: int, options: Mapping[str, Any]) -> None:
        # The entries "params" and "schedules" fix the order only; __getitem__ computes their values.
        super().__init__(index, {"params": None, "step": 0, **options, "schedules": None})
        self.update(options)

    def __getitem__(self, name: str) -> Any:
        """Return an entry."""
        if self.fetch is not None:
            self.fetch(self)
        if name == "schedules":
            return self.described()
        if name == "params":
            return self.tree.given
        return self.entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Assign an option, a schedule or the count of steps, if it is in range."""
        self.update({name: value})

    def update(self, *given: Any, **more: Any) -> None:
        """Assign several entries, all or none."""
        self.assign(dict(*given, **more))

    def _checked(self, name: str, value: Any, step: int) -> Any:
        if name == "params":
            raise ValueError("the parameters of a group cannot be exchanged: use add_param_group or a new optimizer")
        if name == "schedules":
            raise ValueError("'schedules' only describes them: assign a schedule to the option itself, as to 'lr'")
        if name not in self.entries and name not in ADDED_OPTIONS:
            known = ", ".join(option for option in self.entries if option not in ("params", "schedules"))
            raise ValueError(f"unknown option {name!r}; the options of this optimizer's groups are {known}")
        return super()._checked(name, value, step)

    def __delitem__(self, name: str) -> None:
        """Refuse: an optimizer needs all of its options."""
        raise ValueError(f"{name!r} cannot be deleted; assign its default instead")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the entries."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.entries)

    def __repr__(self) -> str:
        """Show the parameters by name, and every option."""
        return f"ParamGroup({dict(self) | {'params': self.tree.keys}})"

    def options(self) -> dict[str, Any]:
        """Return all entries but the parameters, as a plain dict."""
        return {name: self[name] for name in self if name != "params"}
