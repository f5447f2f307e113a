"""The stages of an optimizer's steps: what happens to gradients and parameters beside the rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.tables import CLIP
from ..options import STAGE_OPTIONS
from ..rules import Options
from .group import GroupOptions, describe
from .norm import coefficient, measured


class Stages:
    """The stages of one optimizer: their numbers in the next step, for all groups together, and what came of them.

    Attributes
    ----------
    measures, averages : bool
        Whether the norm of the gradients is needed, and averages of the parameters.
    limit, gain : float
        The largest size of a gradient's element, and the weight of the new parameter in its average.
    clip : record of CLIP
        What becomes of a step by its norm, with the last norm; the extension writes it too.
    coefficient : float
        What the gradients of the step under way are multiplied by.
    pending : float
        A factor that was found for the next step's gradients, to clip them.
    zeroes : bool
        Whether kernels set the gradients to zero.
    beside : bool
        Whether some gradients of the step under way take no part in launches.
    others : tuple of str
        The stages that kernels need to have besides.
    no_norm : str
        Why the norm of the gradients cannot be taken; empty if it can.
    """

    def __init__(self) -> None:
        self.clip = np.zeros((), CLIP)
        self.clip["norm"] = -1.0
        self.clip["factor"], self.clip["max_norm"] = 1.0, math.inf
        self.measures = self.averages = self.zeroes = self.beside = False
        self.limit, self.gain = math.inf, 0.0
        self.coefficient = self.pending = 1.0
        self.no_norm = ""
        self.others: tuple[str, ...] = ()

    def take(self, options: Options) -> None:
        """Take the numbers of the next step."""
        self.check(options)
        max_norm, limit, decay = (options.get(name) for name in ("max_grad_norm", "clip_grad_value", "ema_decay"))
        self.measures, self.averages = needs_norm(options), decay is not None
        self.clip["max_norm"] = math.inf if max_norm is None else max_norm
        self.clip["skips"] = options.get("skip_nonfinite", False)
        self.limit = math.inf if limit is None else limit
        self.gain = 0.0 if decay is None else 1.0 - decay
        asked = {"value": self.clips_by_value, "average": self.averages}
        self.others = tuple(name for name, is_asked in asked.items() if is_asked)

    def goes_on(self, options: Options) -> bool:
        """Say whether the next step, with these options, has the same stages as the last one."""
        value, average = (options.get(name) is not None for name in ("clip_grad_value", "ema_decay"))
        return (needs_norm(options), value, average) == (self.measures, self.clips_by_value, self.averages)

    def check(self, options: Options) -> None:
        """Raise ValueError if options need the norm, and it cannot be taken."""
        if self.no_norm and needs_norm(options):
            raise ValueError(self.no_norm)

    @property
    def kernel(self) -> tuple[str, ...]:
        """The stages that kernels need to have; see `kernels.cpu.STAGES`."""
        return (*self.others, "zero") if self.zeroes else self.others

    @property
    def clips_by_value(self) -> bool:
        """Whether elements of gradients are clipped."""
        return self.limit != math.inf

    def measure(self, add: Callable[[float], float], scale: float, beside: Sequence[float]) -> bool:
        """Take the norm of a step's gradients and find the coefficient; say whether the step goes on.

        Parameters
        ----------
        add : callable
            ``add(power)``, the sum of squares of all gradients in launches, times a power of two.
        scale : float
            The factor of all gradients.
        beside : sequence of float
            The norms of those that take no part in launches.
        """
        factor = abs(scale * self.pending)
        found = measured(add, factor)
        norm = math.hypot(found.norm, *(factor * other for other in beside))
        is_finite = found.finite and all(map(math.isfinite, beside))
        self.clip["factor"], self.clip["norm"] = factor, norm
        if self.clip["skips"] and not is_finite:
            self.clip["skipped"] += 1
            return False
        max_norm = float(self.clip["max_norm"])
        clipped = 1.0 if max_norm == math.inf else coefficient(max_norm, norm)
        self.coefficient = clipped * self.pending
        return True

    @property
    def norm(self) -> float | None:
        """The norm of the last step's gradients; None before the first one was measured."""
        norm = float(self.clip["norm"])
        return None if norm < 0 else norm

    @property
    def skipped(self) -> int:
        """How many steps were skipped."""
        return int(self.clip["skipped"])


def needs_norm(options: Options) -> bool:
    """Say whether a step needs the norm of its gradients."""
    return options.get("max_grad_norm") is not None or bool(options.get("skip_nonfinite", False))


def check_alike(groups: Sequence[GroupOptions]) -> None:
    """Raise unless all groups have the same options of the stages."""
    first = stage_options(groups[0]) if groups else {}
    for group in groups[1:]:
        if (own := stage_options(group)) != first:
            name = next(name for name in STAGE_OPTIONS if own.get(name) != first.get(name))
            raise ValueError(
                f"{name} belongs to the optimizer as a whole: group {group.index} has {own.get(name)!r:.80}, and group "
                f"{groups[0].index} {first.get(name)!r:.80}; assign it to the optimizer, as in opt.{name} = ..."
            )


def stage_options(group: GroupOptions) -> Mapping[str, Any]:
    """Return the options of the stages that a group has, with schedules described."""
    return {
        name: describe(group.schedules[name]) if name in group.schedules else group.entries[name]
        for name in STAGE_OPTIONS
        if name in group.entries
    }
