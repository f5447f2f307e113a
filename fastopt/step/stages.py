"""The stages of an optimizer's steps: what happens to gradients and parameters beside the rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.tables import CLIP
from ..rules import STAGE_OPTIONS, Options
from .group import GroupOptions, describe
from .norm import coefficient, measure


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
    zeroes : bool
        Whether kernels set the gradients to zero.
    has_measured : bool
        Whether launches may have another coefficient than 1.
    """

    def __init__(self) -> None:
        self.clip = np.zeros((), CLIP)
        self.clip["norm"] = -1.0
        self.clip["factor"], self.clip["max_norm"] = 1.0, math.inf
        self.measures = self.averages = self.zeroes = self.has_measured = False
        self.limit, self.gain, self.coefficient = math.inf, 0.0, 1.0

    def take(self, options: Options) -> None:
        """Take the numbers of the next step."""
        max_norm, limit = options.get("max_grad_norm"), options.get("clip_grad_value")
        decay, skips = options.get("ema_decay"), options.get("skip_nonfinite", False)
        self.measures = max_norm is not None or skips
        self.clip["max_norm"] = math.inf if max_norm is None else max_norm
        self.clip["skips"] = skips
        self.limit = math.inf if limit is None else limit
        self.averages = decay is not None
        self.gain = 0.0 if decay is None else 1.0 - decay

    @property
    def kernel(self) -> tuple[str, ...]:
        """The stages that kernels need to have; see `kernels.cpu.STAGES`."""
        asked = {"value": self.clips_by_value, "average": self.averages, "zero": self.zeroes}
        return tuple(name for name, is_asked in asked.items() if is_asked)

    @property
    def clips_by_value(self) -> bool:
        """Whether elements of gradients are clipped."""
        return self.limit != math.inf

    def measure(self, launches: Sequence[Any], scale: float, beside: Sequence[float]) -> bool:
        """Take the norm of a step's gradients, write the coefficient, and say whether the step goes on.

        Parameters
        ----------
        launches : sequence of Launch
        scale : float
            The factor of all gradients.
        beside : sequence of float
            The norms of those that take no part in launches.
        """
        measured = measure(launches, abs(scale))
        norm = math.hypot(measured.norm, *(abs(scale) * other for other in beside))
        is_finite = measured.finite and all(map(math.isfinite, beside))
        self.clip["factor"], self.clip["norm"] = scale, norm
        if self.clip["skips"] and not is_finite:
            self.clip["skipped"] += 1
            return False
        max_norm = float(self.clip["max_norm"])
        self._multiply(launches, 1.0 if max_norm == math.inf else coefficient(max_norm, norm))
        return True

    def leave(self, launches: Sequence[Any]) -> None:
        """Leave the gradients of a step as they are, after steps that may have clipped theirs."""
        if self.has_measured:
            self._multiply(launches, 1.0)
            self.has_measured = False

    def _multiply(self, launches: Sequence[Any], by: float) -> None:
        self.coefficient, self.has_measured = by, True
        for launch in launches:
            launch.write_coefficient(by)

    @property
    def norm(self) -> float | None:
        """The norm of the last step's gradients; None before the first one was measured."""
        norm = float(self.clip["norm"])
        return None if norm < 0 else norm

    @property
    def skipped(self) -> int:
        """How many steps were skipped."""
        return int(self.clip["skipped"])


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
