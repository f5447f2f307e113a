"""Schedules as torch learning-rate schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...checks import Count
from ...closed_form import ClosedForm
from ...kernels.tables import STEP_LIMIT


class Scheduler(LRScheduler):
    """A torch scheduler that sets a schedule's value in every parameter group.

    `Schedule.torch_scheduler` makes it. Unlike torch's own schedulers it ignores the groups' initial rates and computes
    each value from the step alone: it does not drift, and can resume from any step.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    schedule : Schedule
    last_epoch : int, default -1
        The last step that was taken; the scheduler sets the rate of the next one. -1 begins at step 0.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the optimizer has not been changed then.
    """

    def __init__(self, optimizer: Optimizer, schedule: ClosedForm, last_epoch: int = -1) -> None:
        if not isinstance(schedule, ClosedForm):
            raise TypeError(f"{schedule!r:.80} is not one of fastopt.schedules with a closed form")
        last_epoch = Count(-1, STEP_LIMIT).check("last_epoch", last_epoch)
        self.schedule = schedule
        if last_epoch >= 0 and isinstance(optimizer, Optimizer):
            for group in optimizer.param_groups:  # torch requires it; the schedule does not use it
                group.setdefault("initial_lr", group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"])
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the schedule's value at ``last_epoch``, once for each group."""
        return [self.schedule(self.last_epoch)] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the schedule as plain Python, so that the default ``torch.load`` accepts it."""
        return {**super().state_dict(), "schedule": self.schedule.to_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a `state_dict`, with its schedule; as in torch, the rates come from the optimizer's own state dict."""
        if not isinstance(state_dict, Mapping) or not {"schedule", "last_epoch"} <= state_dict.keys():
            raise ValueError("the state dict is not one of fastopt.torch.Scheduler: it has no schedule or last_epoch")
        Count(-1, STEP_LIMIT).check("last_epoch", state_dict["last_epoch"])
        super().load_state_dict({**state_dict, "schedule": self.schedule._described(state_dict["schedule"])})
