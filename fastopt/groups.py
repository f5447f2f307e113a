"""Parameter groups: how parameters are given, named and mirrored by gradients, and the options of each group."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from .rules import check

COUNT_LIMIT = 2**63


class ParamGroup(MutableMapping[str, Any]):
    """One group's parameters, hyperparameters and count of steps, as a mapping.

    Every entry but ``params`` can be assigned between steps and takes effect at the next one. A value that is out of
    range raises at once, and changes nothing; values that contradict each other, such as Nesterov's with a dampening,
    raise at the next step.

    ``group["lr"]`` is always a number: where a schedule drives it, that of the latest step (before the first one, that
    of step 0). Assigning a number ends the schedule, assigning a callable ``step -> lr`` begins one: a pure function,
    which may be asked for the same step more than once.
    ``group["step"]`` counts the completed steps; it is the argument of the schedule.
    """

    def __init__(self, index: int, params: Any, options: Mapping[str, Any]) -> None:
        self.index = index
        self.members = Members(params)
        self.schedule: Callable[[int], Any] | None = None
        self.changed = True  # since the plan looked last
        self._entries: dict[str, Any] = {"params": self.members.given, "step": 0, **options}
        self.update(options)

    def __getitem__(self, name: str) -> Any:
        """Return an entry."""
        return self._entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Assign an option, a schedule or the count of steps, if it is in range."""
        self.update({name: value})

    def update(self, *given: Any, **more: Any) -> None:
        """Assign several entries, all or none."""
        entries = dict(*given, **more)
        checked = {name: self._checked(name, value) for name, value in entries.items()}
        self._entries.update(checked)
        if "lr" in entries:
            self.schedule = entries["lr"] if callable(entries["lr"]) else None
        self.changed = True

    def _checked(self, name: str, value: Any) -> Any:
        if name == "params":
            raise ValueError("the parameters of a group cannot be exchanged: use add_param_group or a new optimizer")
        if name not in self._entries:
            known = ", ".join(option for option in self._entries if option != "params")
            raise ValueError(f"unknown option {name!r}; the options of this optimizer's groups are {known}")
        if name == "step":
            return check_count("the step of a group", value)
        if name == "lr" and callable(value):
            value = value(self["step"])
        return check(name, value)

    def __delitem__(self, name: str) -> None:
        """Refuse: an optimizer needs all of its options."""
        raise ValueError(f"{name!r} cannot be deleted; assign its default instead")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the entries."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._entries)

    def __repr__(self) -> str:
        """Show the members by name, and every option."""
        entries = {**self._entries, "params": self.members.names}
        return f"ParamGroup({entries})"

    def options(self) -> dict[str, Any]:
        """Return all entries but the parameters, as a plain dict."""
        return {name: value for name, value in self._entries.items() if name != "params"}

    def next_lr(self) -> float | bool:
        """Return the learning rate of the next step, checked; changes nothing."""
        return check("lr", self.schedule(self["step"])) if self.schedule else self._entries["lr"]

    def take_lr(self, lr: float | bool) -> None:
        """Make a rate that `next_lr` returned the current number, unless the schedule has been ended meanwhile."""
        if self.schedule is not None:
            self._entries["lr"] = lr

    def restore(self, options: Mapping[str, Any]) -> None:
        """Take over checked options; a schedule goes on from the restored count of steps."""
        self._entries.update(options)
        self.changed = True

    def count(self) -> None:
        """Count a completed step."""
        self._entries["step"] += 1


class Members:
    """The arrays of a group, given as one array, a sequence, or a mapping of names; gradients mirror them."""

    def __init__(self, params: Any) -> None:
        self.names: list[Hashable] | None = None
        self.alone = isinstance(params, np.ndarray)
        self.given: Any = params
        if self.alone:
            self.arrays = [params]
        elif isinstance(params, Mapping):
            self.names = list(params)
            self.arrays = list(params.values())
            self.given = MappingProxyType(dict(params))
            for name in self.names:
                if not isinstance(name, str):
                    raise TypeError(f"parameters are named by strings, not by {name!r}")
        elif isinstance(params, Iterable):
            self.arrays = list(params)
            self.given = tuple(self.arrays)
        else:
            raise TypeError(f"params must be an array, a list or a dict of arrays, not {type(params).__name__}")
        if not self.arrays:
            raise ValueError("params is empty: give at least one array")

    def __len__(self) -> int:
        """Count the arrays."""
        return len(self.arrays)

    def mirrored(self, grads: Any) -> Sequence[Any]:
        """Return gradients in the order of the arrays, or say how they fail to mirror the parameters."""
        if self.alone:
            return [grads]
        if self.names is not None:
            if not isinstance(grads, Mapping):
                raise TypeError(f"params is a dict, so grads must be a dict with the same keys, not {_kind(grads)}")
            if grads.keys() != set(self.names):
                missing = [name for name in self.names if name not in grads]
                unknown = [name for name in grads if name not in self.names]
                raise ValueError(
                    f"grads must have the keys of params: {missing} missing, {unknown} unknown; "
                    "give None where a parameter has no gradient"
                )
            return [grads[name] for name in self.names]
        if not isinstance(grads, (list, tuple)):
            raise TypeError(f"params is a list, so grads must be a list of as many arrays, not {_kind(grads)}")
        if len(grads) != len(self.arrays):
            raise ValueError(
                f"there are {len(self.arrays)} parameters and {len(grads)} gradients; "
                "give None where a parameter has no gradient"
            )
        return grads


def check_count(what: str, value: Any) -> int:
    """Return a count of steps as a plain int."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{what} must be an int, not {_kind(value)}")
    if not 0 <= count < COUNT_LIMIT:
        raise ValueError(f"{what} must be 0 or more, and below 2**63, not {value!r:.40}")
    return count


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
