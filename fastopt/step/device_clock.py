"""The clock of parameters on GPUs, which count the steps that the host cannot see.

The host uploads the inputs of hyper rows. Where rows move, a small kernel ahead of the update computes them; the update
counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from ..kernels.repetition import Repetition
from ..kernels.tables import CARRIED, ROW_INPUTS
from ..options import STAGE_OPTIONS
from .clock import Clock, State, describe
from .gpu import Gpu, GpuLauncher
from .gpu_launch import GpuLaunch
from .gpu_rows import WARM_UP
from .group import GroupOptions, record_of
from .interrupts import HeldBack
from .launch import AmpState
from .parameter import Parameter
from .plan import Located
from .stages import stage_options


class DeviceClock(Clock):
    """A clock that can leave the counting to GPUs; `Clock` shows its states.

    From the first step that the host cannot see, the GPUs own the counter: a step in a captured graph, or one that
    GradScaler may skip. The host counts again when a step needs something that only the host has.

    Attributes
    ----------
    recording : bool
        Whether this step is being recorded in a graph.
    by_device : bool
        Whether GPUs count this step.
    uploaded : bool
        Whether the GPUs have the row inputs. Only a graph that was never replayed may hold them otherwise.
    stale : bool
        Whether options have changed since, so that the inputs must be uploaded again.
    known, pending : int
        The steps that the GPUs had counted when the host last read the counter; the steps since, of which some may
        have been skipped.
    begun : list
        States that begin with the first of these steps, unless all are skipped.
    prepared : int or None
        The count of steps at which the GPUs got row inputs, and rows where these stay, while the host still counts: so
        that a captured step need not upload any. None if they have none that hold.
    decides : bool
        Whether the GPU takes the norm of this step's gradients, and decides by it.
    resting : bool
        Whether a captured step relies on rows that stay, so that it computes none.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gpus = [launcher.rows for launcher in self.plan.launchers.values() if isinstance(launcher, GpuLauncher)]
        self.recording = self.by_device = self.uploaded = self.stale = False
        self.known = self.pending = 0
        self.begun: list[tuple[Parameter, list[str]]] = []
        self.amp: AmpState | None = None  # of the step that is being recorded
        self.prepared: int | None = None
        self.has_prepared = self.resting = self.decides = False
        self.captured: Mapping[str, Any] = {}  # the options of the stages in the captured step

    # Options

    def poll(self, scale: float, amp: AmpState | None) -> None:
        """Poll the options of the next step, and decide who counts it."""
        self._refuse_wrong_indices()
        self.stop_repeating()
        self._take_scale(scale)
        if self.on_devices and amp is None and scale != 1:  # the host's scale is in the host's rows
            self.settle()
            self.end()
        for rows in self.gpus:
            rows.begin(amp)
        self.recording = any(rows.capturing for rows in self.gpus)
        self.amp = amp if self.recording else None
        if self.recording:
            self._check_capture()
        if self.on_devices:
            self._ask_again()
        else:
            self.assigned = self._ask()
            if self.assigned:
                self.prepared = None
        stages = self.stages
        self.decides = stages.measures and self.plan.on_one_gpu and not stages.beside
        may_skip = amp is not None or bool(self.decides and stages.clip["skips"])
        self.by_device = self.recording or self.on_devices or may_skip
        if self.recording and stages.measures and not self.decides:
            raise RuntimeError("a captured step takes the norm of gradients on one GPU only: use an optimizer for each")

    def _check_capture(self) -> None:
        plan = self.plan
        if not plan.only_gpus:
            raise RuntimeError("a step cannot be captured while some parameters are on the CPU: use two optimizers")
        if not all(rows.capturing for rows in self.gpus):
            raise RuntimeError("a step on several GPUs is captured on the streams of all, or on none")
        assigned = self.versions != self.versions_now()
        if assigned or plan.taking_part is None or any(launch.not_warm for launch in self._launches()):
            raise RuntimeError(WARM_UP)
        for group in self.groups:
            for name, function in group.functions():
                if name in STAGE_OPTIONS:
                    raise RuntimeError(
                        f"{name} is a schedule, and a captured step would keep its number of now: assign a number"
                    )
                if record_of(function) is None:
                    raise RuntimeError(
                        f"{name} of group {group.index} is a function that only Python can call, so that a captured "
                        f"step would never change it: use one of fastopt.schedules, or assign a number"
                    )
            if "momentum" in group.schedules and group.schedules["momentum"](group.entries["step"]) == 0:
                raise RuntimeError(
                    f"the momentum of group {group.index} is 0 now, and a captured step would never keep a buffer: "
                    f"capture it when its schedule has left 0"
                )
        if self.scale != 1:
            raise RuntimeError(
                "a scale of gradients that the host knows cannot be captured: leave it on the GPU, and found_inf "
                "beside it, as GradScaler does"
            )

    def _launches(self) -> list[GpuLaunch]:
        return [launch for launch in self.plan.launches if isinstance(launch, GpuLaunch)]

    def _ask_again(self) -> None:
        """Poll the groups while GPUs count; the inputs are stale if anything has changed."""
        versions = self.versions_now()
        # If the previous step failed after the poll, the inputs are stale; graphs may have been replayed since.
        changed = versions != self.versions or self.needs_python or self.stale
        captured = self.state is State.CAPTURED
        if not changed and (captured or not any(map(self._host_decides, self.groups))):
            return
        # Numbers need no count, so nobody waits; but inputs that only a graph holds would be lost.
        if not self.uploaded or any(group.schedules for group in self.groups):
            self.settle()
        rules = self.chosen()
        if self.state is State.CAPTURED and stage_options(self.groups[0]) != self.captured:
            raise RuntimeError(
                "a step was captured with other numbers of the stages, which its replays keep: assign "
                f"{', '.join(STAGE_OPTIONS)} before the capture, or make a new optimizer"
            )
        self.look_for_stages()
        if self.staged:
            self.stages.take(self.groups[0].upcoming)
        if self.state is State.CAPTURED and rules != self.rules:
            raise RuntimeError("a step was captured by another rule (momentum 0 has its own): make a new optimizer")
        if self.resting and any(
            group.schedules or rule.moves(group.upcoming) for group, rule in zip(self.groups, rules, strict=True)
        ):
            raise RuntimeError(
                "a step was captured while its numbers stayed the same, so that its replays compute none: assign what "
                "makes them change, a schedule or an lr_decay, before the capture"
            )
        self.rules = rules
        self.look_at_schedules()
        self.versions = versions
        self.stale = True

    def _host_decides(self, group: GroupOptions) -> bool:
        """Say whether a schedule reaches a value on which only the host can act.

        A momentum of 0 is a rule of its own, which a graph cannot change; at a beta of 1 the host raises. The step's
        count is between the known one and this one, and earlier ones have been checked.
        """
        step = group.entries["step"] + self.pending
        momentum, betas = group.schedules.get("momentum"), group.schedules.get("betas")
        if momentum is not None and (momentum(step) == 0) != (group.upcoming["momentum"] == 0):
            return True
        return betas is not None and not all(beta < 1 for beta in betas(step))

    def look_at_schedules(self) -> None:
        """Copy the schedules' records into the GPUs' memory too, where captured steps read them."""
        super().look_at_schedules()
        for group in self.groups:
            for _, function in group.functions():
                if (record := record_of(function)) is not None:
                    for rows in self.gpus:
                        rows.hold(record)

    def ask_now(self) -> None:
        """Ask for counts and options, since the host is to compute the rows of parameters alone."""
        if self.on_devices:
            self.settle()
            self.rules = self.chosen()

    # Steps

    def check(self, gradients: Located) -> None:
        """Raise if a graph holds, or would hold, a step that these gradients do not fit."""
        other = gradients.taking_part != self.plan.taking_part or self.plan.has_other_kinds(gradients)
        if self.state is State.CAPTURED and (other or gradients.strided):
            raise RuntimeError(
                "a step of this optimizer was captured with gradients for other parameters, or with other strides, "
                "dtypes or layouts: give gradients to the same ones, that lie as those did, or use an optimizer for "
                "each set"
            )
        if self.recording and gradients.strided:
            raise RuntimeError(
                "gradients whose strides are not their parameters' cannot be captured: copy each into an array that "
                "lies as its parameter does, as zeros_like(p) makes one, and take two steps with these before"
            )
        if self.recording and (other or any(launch.strided != {} for launch in self.plan.launches)):
            raise RuntimeError(WARM_UP)

    def prepare_launches(self, rows: int) -> None:
        """Reserve memory, and load kernels."""
        for launch in self._launches():
            launch.prepare(rows)

    def form(self, taking_part: bytes) -> None:
        """Form the step groups; the host counts again before."""
        self.settle()
        self.end()
        self.prepared = None
        super().form(taking_part)

    def advance(self) -> None:
        """Compute the hyper rows of the next step, or have the GPUs compute them and count."""
        if not self.by_device:
            super().advance()
            return
        if not self.on_devices or self.stale:
            self._describe()
        if self.recording:
            self._give_to_graph()
        self.pending += not self.recording
        rests = self._rests()
        self.resting = self.resting or (rests and self.recording)
        for rows in self.gpus:
            if not self.uploaded:
                rows.upload()
            if rests:
                rows.rest()
            else:
                rows.advance()
            rows.count_with_launches()

    def _rests(self) -> bool:
        """Say whether the GPUs have the rows of this step."""
        if self.moving or not self.uploaded or any(group.schedules for group in self.groups):
            return False
        launches = self._launches()
        return all(
            not rows.skip and all(rows.has_sent(launch.dtype) for launch in launches if launch.rows is rows)
            for rows in self.gpus
        )

    def measure(self, scale: float) -> bool:
        """Have the GPU take the norm of the gradients, and decide by it; return False if the host has to."""
        if not self.decides:
            return False
        (rows,) = self.gpus
        norm, launches = rows.norm_here(), self._launches()
        norm.prepare(launches)
        norm.decide(launches, rows, self.stages.clip, abs(scale * self.stages.pending))
        self.plan.coefficient = math.nan  # the GPU knows it
        return True

    def grad_norm(self) -> Any:
        """Return the norm of the last step's gradients, where it is; None before the first one was taken."""
        if not self.decides:
            return super().grad_norm()
        rows = self.gpus[0]
        number, address = cast(Gpu, rows.device).new_number()
        rows.stream.begin()
        rows.norm_here().copy_to(address)
        return number

    def _write_rows(self, ahead: int = 0) -> None:
        super()._write_rows(ahead)
        for rows in self.gpus:
            rows.take(self.hypers)

    def number_launches(self) -> None:
        """Tell the launches how many steps came before: those that the GPUs did not count, where they count."""
        if not (self.by_device and self.counted):
            super().number_launches()
            return
        for launch in self._launches():
            launch.write_count(self.steps - self.known, follows=True)

    def count(self) -> None:
        """Count the step that was launched, unless GPUs do."""
        if not self.by_device:
            super().count()
            return
        for rows in self.gpus:
            rows.count()
        if self.recording:
            self.state, self.captured = State.CAPTURED, stage_options(self.groups[0])
        else:
            self.uploaded = True

    def _give_to_graph(self) -> None:
        """Let the graph own what its kernels use, except gradients: it may be replayed when the optimizer is gone."""
        memories = [memory for launch in self.plan.launches for memory in launch.memories()]
        memories += [array for parameter in self.plan.parameters for array in parameter.memories()]
        for rows in self.gpus:
            norm = [] if rows.norm is None else rows.norm.memories()
            rows.own([*memories, *norm, self.amp])
        self.amp = None

    def _describe(self) -> None:
        """Write the row inputs for the GPUs, unless they have them."""
        restart = not (self.on_devices and self.uploaded)
        if restart:
            self.known = self.pending = 0
        prepared = self.prepared if restart else None
        if prepared is None:
            self._write_inputs(restart)
        else:
            for rows in self.gpus:
                rows.count_on(self.step_groups[0].step - prepared, self.carried)
        if not self.on_devices:
            self.state = State.DEVICE
        self.uploaded, self.stale = prepared is not None, False
        for group in self.step_groups:
            if group.begins:
                self.begun += [(p, list(new)) for p, new in zip(group.parameters, group.new_states, strict=True)]
                self.keep_states(group)

    def _write_inputs(self, restart: bool) -> None:
        for rows in self.gpus:
            inputs = np.zeros(len(self.step_groups), ROW_INPUTS)
            for row, group in zip(inputs, self.step_groups, strict=True):
                describe(row, group, rows.hold, 0 if restart else self.known + rows.ahead)
            rows.describe(inputs, self.carried, restart)

    def prepare(self) -> None:
        """Upload what a captured step needs: once, and not after each step before which an option was assigned."""
        if self.state is not State.HOST or self.prepared is not None or (self.assigned and self.has_prepared):
            return
        too_many = any(group.rule.carried is not None for group in self.step_groups[CARRIED:])  # to travel
        if self.needs_python or self.scale != 1 or too_many or not self.plan.only_gpus:
            return
        self._write_inputs(restart=True)
        for rows in self.gpus:
            rows.upload()
        if not self.moving:
            if not self.steady:  # the rows of a first step, which may be others
                self._write_rows()
            for launch in self._launches():
                launch.rows.in_memory(launch.dtype)
        self.has_prepared = True
        self.prepared = self.step_groups[0].step if self.step_groups else None

    def keep_up(self, repetition: Repetition) -> bool:
        """Leave new options to a step in full, which copies schedules into the GPUs' memory."""
        return self.versions == self.versions_now() and super().keep_up(repetition)

    # Counts

    def _refuse_wrong_indices(self) -> None:
        for rows in self.gpus:
            rows.refuse_wrong_indices()

    def settle(self) -> None:
        """Wait for the GPUs, and add the steps that they, or the extension, have counted."""
        self._settle()
        self._refuse_wrong_indices()

    def _settle(self) -> None:
        super().settle()
        for rows in self.gpus:
            if rows.norm is not None and self.on_devices:
                self.stages.clip["skipped"] += rows.norm.new_skipped()
        if not self.on_devices or not (self.pending or self.state is State.CAPTURED):  # nothing new
            return
        taken, carried = self.gpus[0].taken()
        with HeldBack():
            new, self.known, self.pending = taken - self.known, taken, 0
            if taken == 0 and self.begun:
                self.end()
                self.plan.forget()
            elif taken > 0:
                self.begun = []
                for group in self.step_groups:
                    group.first = False
            if new > 0:
                self.carried[:] = carried[: len(self.carried)]  # there is room for more
                self._add(new)

    def end(self) -> None:
        """Let the host count again, after `settle`; drop states that no step has written."""
        self.refuse_captured()
        super().end()
        if self.state is State.DEVICE:
            self.state, self.prepared = State.HOST, None
            for parameter, names in self.begun:
                parameter.drop(names)
            self.begun = []
            self.steady = False

    def refuse_captured(self) -> None:
        """Raise if a graph may hold a step: what it uses must not be replaced."""
        if self.state is State.CAPTURED:
            raise RuntimeError(
                "a step of this optimizer was captured (or a capture was broken off), and the graph uses its tables "
                "and states: load and add parameters before the capture, or make a new optimizer"
            )
