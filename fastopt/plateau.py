"""The schedule with a memory, which depends on a metric instead of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from .checks import RESUMABLE, Choice, Count, Number


class Plateau:
    """The schedule with a memory: it multiplies the rate by factor when a metric has stopped improving.

    Call `update` with the metric, after each epoch for instance; an optimizer whose ``lr`` is this schedule follows.
    The optimizer's state dict keeps the memory.

    Like torch.optim.lr_scheduler.ReduceLROnPlateau, except that small rates fall too (torch skips a drop that is
    smaller than its eps), and that a relative threshold means the same for negative metrics (in torch, an equal
    negative metric counts as better). A metric that is NaN is not an improvement.

    Parameters
    ----------
    lr : float
        First value, 0 or more.
    factor : float, default 0.1
        From 0 to 1.
    patience : int, default 10
        How many metrics in a row may fail to improve; one more failure lowers the rate.
    threshold : float, default 1e-4
        An improvement must be larger than this; 0 or more.
    threshold_mode : {"rel", "abs"}
        Whether the threshold is a share of the best metric or a difference.
    mode : {"min", "max"}
        Whether lower or higher is better.
    cooldown : int, default 0
        How many metrics after a drop cannot count as failures.
    min_lr : float, default 0.0
        The lowest rate, 0 or more.

    Attributes
    ----------
    lr : float
        The current rate.
    best : float or None
        The best metric so far.
    bad : int
        How many metrics in a row have not improved.
    cooling : int
        How many more metrics the cooldown lasts.
    """

    _CHECKS: ClassVar[dict[str, Any]] = {
        "lr": Number("rate"),
        "factor": Number("factor", maximum=1.0),
        "patience": Count(),
        "threshold": Number("threshold"),
        "threshold_mode": Choice(("rel", "abs")),
        "mode": Choice(("min", "max")),
        "cooldown": Count(),
        "min_lr": Number("rate"),
    }

    def __init__(
        self,
        lr: float,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        mode: str = "min",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        given = (lr, factor, patience, threshold, threshold_mode, mode, cooldown, min_lr)
        self._options = {
            name: check.check(name, value) for (name, check), value in zip(self._CHECKS.items(), given, strict=True)
        }
        self.lr: float = self._options["lr"]
        self.best: float | None = None
        self.bad = 0
        self.cooling = 0

    def __call__(self, t: int) -> float:
        """Return the current rate, whatever the step."""
        return self.lr

    def update(self, metric: float) -> float:
        """Process a metric, and return the new rate.

        Parameters
        ----------
        metric : float
            May be an array or tensor of one element.

        Raises
        ------
        TypeError, ValueError
            If it is not a number; nothing has changed then.
        """
        value = _number("the metric", metric)
        if self._improves(value):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad = 0
        if self.bad > self._options["patience"]:
            self.lr = min(self.lr, max(self.lr * self._options["factor"], self._options["min_lr"]))
            self.cooling, self.bad = self._options["cooldown"], 0
        return self.lr

    def _improves(self, metric: float) -> bool:
        sign = 1.0 if self._options["mode"] == "min" else -1.0
        if self.best is None:
            return sign * metric < math.inf
        margin: float = self._options["threshold"]
        if self._options["threshold_mode"] == "rel" and math.isfinite(self.best):
            margin *= abs(self.best)
        return sign * metric < sign * self.best - margin

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as plain Python: ``{"lr": ..., "best": ..., "bad": ..., "cooling": ...}``."""
        return {"lr": self.lr, "best": self.best, "bad": self.bad, "cooling": self.cooling}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the memory of another Plateau; the options stay.

        Raises
        ------
        TypeError, ValueError
            If it does not fit; nothing has changed then.
        """
        if not isinstance(state_dict, Mapping) or state_dict.keys() != self.state_dict().keys():
            raise ValueError(f"the state of a Plateau has {', '.join(self.state_dict())}, not {state_dict!r:.200}")
        lr = self._CHECKS["lr"].check("lr", state_dict["lr"])
        best = None if state_dict["best"] is None else _number("the best metric", state_dict["best"])
        if best is not None and math.isnan(best):
            raise ValueError("the best metric must be a number or None, not NaN")
        bad, cooling = (Count(limit=RESUMABLE).check(name, state_dict[name]) for name in ("bad", "cooling"))
        self.lr, self.best, self.bad, self.cooling = lr, best, bad, cooling

    def become(self, other: Plateau) -> None:
        """Copy the options and the memory of another Plateau."""
        self._options = dict(other._options)
        self.load_state_dict(other.state_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return options and memory as plain Python, fit for JSON where metrics are finite.

        Raises
        ------
        TypeError
            If its class is a subclass, which `schedules.from_dict` could not make.
        """
        if type(self) is not Plateau:
            raise TypeError(f"{type(self).__name__} is not one of fastopt's schedules, so it cannot be described")
        return {"name": "Plateau", **self._options, "state": self.state_dict()}

    def record(self) -> NoReturn:
        """Raise TypeError: a Plateau has no record."""
        raise TypeError("a Plateau has a memory and no closed form, so it has no record")

    def __repr__(self) -> str:
        """Show the options as they were given, without the memory."""
        return f"Plateau({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"


def _number(what: str, value: Any) -> float:
    """Return a value, an array or a tensor of one element as a float; NaN and infinities are allowed."""
    try:
        item = value.item() if hasattr(value, "item") else value
        if not isinstance(item, (str, bytes)):
            return float(item)
    except OverflowError as error:
        raise ValueError(f"{what} is an int beyond all floats, {value!r:.40}...") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} must be one number, not {value!r:.80}") from error
    raise TypeError(f"{what} must be one number, not {value!r:.80}")
