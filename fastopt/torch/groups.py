"""Parameter groups of torch: plain dicts, which anyone may write into between two steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..groups import GroupOptions, StepFunction

NOT_OFFERED = {
    "differentiable": "autograd cannot see through a fused update",
    "capturable": "there is nothing to capture on the CPU",
}


def number(name: str, value: Any) -> Any:
    """Return what a tensor of one element holds; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element")
    return value.item()


class Group(GroupOptions):
    """The options of one group of torch.

    Parameters
    ----------
    index : int
    given : dict
        The group itself, as torch and the user have it. Its ``lr`` is always a number or a tensor; where a schedule
        drives an option, ``schedules`` describes it there as plain Python, and ``step`` counts the group's steps.
    names : iterable of str
        Of the optimizer's options.
    own : dict of str to callable, optional
        Schedules that go on where the description cannot bring them back: functions, and a `Plateau` that is held.

    Attributes
    ----------
    seen : dict
        The options as they were last found in the group.
    """

    def __init__(
        self, index: int, given: dict[str, Any], names: Iterable[str], own: Mapping[str, StepFunction] | None = None
    ) -> None:
        for flag, reason in NOT_OFFERED.items():
            if given.get(flag):
                raise ValueError(f"{flag}=True is not offered, in group {index}: {reason}; use torch.optim for that")
        super().__init__(index, {"step": 0, **dict.fromkeys(names)})
        self.given = given
        self.seen: dict[str, Any] = dict.fromkeys(names, self)  # which is no option's value
        self.schedules = dict(own or {})
        restored = self.restored_schedules(given.get("schedules", {}))
        self.look()
        assigned, self.schedules = self.schedules, dict(own or {})
        self.restore({}, restored)
        self.schedules = {**self.schedules, **assigned}
        self._tell()

    def look(self) -> None:
        """Take over what was assigned in the group since the last look."""
        given = self.given
        found = {
            name: given[name]
            for name, last in self.seen.items()
            if given[name] is not last or isinstance(last, Tensor)  # whose number may be another now
        }
        if "step" in given and given["step"] != self.entries["step"]:
            found["step"] = given["step"]
        if found:
            self._take(found)

    def _take(self, found: dict[str, Any]) -> None:
        numbers = {name: number(name, value) for name, value in found.items()}
        new = {name: value for name, value in numbers.items() if callable(value) or value != self.entries[name]}
        ended = any(name in self.schedules for name in found)
        if new or ended:
            self.assign(numbers)
        self.seen.update({name: value for name, value in found.items() if name != "step"})
        if ended or any(callable(value) for value in found.values()):
            self._tell()

    def _tell(self) -> None:
        for name in self.schedules:
            self.given[name] = self.seen[name] = self.entries[name]
        if self.schedules:
            self.given["schedules"] = self.described()
            self.given["step"] = self.entries["step"]
        else:
            self.given.pop("schedules", None)

    def take_upcoming(self) -> None:
        """Make what schedules have said the current numbers, in torch's group as well."""
        super().take_upcoming()
        for name in self.schedules:
            self.given[name] = self.seen[name] = self.entries[name]

    def count(self) -> None:
        """Count a completed step."""
        super().count()
        if "step" in self.given:
            self.given["step"] = self.entries["step"]

    def describe_anew(self) -> None:
        """Bring the description of the schedules up to date, with the memory of those that have one."""
        if self.schedules:
            self.given["schedules"] = self.described()
