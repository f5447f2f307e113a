"""Steps that devices count: those of a captured graph, and those that only a device knows to be taken or skipped.

The host describes what hyper rows are computed from, and a small kernel ahead of each update computes them and counts.
Whoever wants to know a count has it fetched, which waits for the device.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

from .groups import GroupOptions
from .kernels.reader import Array
from .rules import check
from .schedules import Schedule

if TYPE_CHECKING:
    from .plan import Located, Plan, Tensor, Verdict


def record_of(schedule: Any) -> Array | None:
    """Return what a device evaluates a schedule from; None for one that only Python knows, and for a number."""
    try:
        return schedule.record() if isinstance(schedule, Schedule) else None
    except TypeError:  # a class of your own, perhaps deep in a schedule made of others
        return None


COLD = (
    "warm up before the capture: the step that is captured must not be the first one, nor the first one after an "
    "option was assigned, or with gradients for other parameters. Take two steps like it before"
)


class Away:
    """A plan's steps that devices count.

    Attributes
    ----------
    active : bool
        Whether they do now, and the host does not.
    capturing : bool
        Whether the step that has begun is recorded in a graph.
    captured : bool
        Whether a graph holds a step; then tables and states stay what and where they are.
    told : bool
        Whether the devices have been told what they compute hyper rows from, other than by a graph that may not have
        been replayed yet.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = weakref.proxy(plan)  # which owns this: no cycle that only the garbage collector could end
        self.active = self.capturing = self.captured = self.told = False
        self.is_asked_for = False  # the next step, as one that devices count
        self.only_python_knows = False  # one of the schedules
        self.outdated = False  # what the devices were told
        self.fetched = 0  # of the steps that the devices have counted
        self.pending = 0  # steps since, some of which may be skipped
        self.begun: list[tuple[Tensor, list[str]]] = []  # states that begin with the first of these, if one is taken
        self.verdict: Verdict | None = None  # of the step that is recorded

    def look(self, verdict: Verdict | None) -> None:
        """Find out how the next step is taken, and by which options; from the first one away, all are."""
        plan = self.plan
        if self.active and verdict is None and plan.scale != 1:  # a scale that the host knows is in its rows
            plan.settle()
            self.end()
        for course in plan.courses:
            course.begin(verdict)
        self.capturing = any(course.capturing for course in plan.courses)
        self.verdict = verdict if self.capturing else None
        if self.capturing:
            self._check_capture()
        self.is_asked_for = self.capturing or self.active or verdict is not None
        if self.active:
            self._ask_again()
        else:
            plan.ask()

    def _check_capture(self) -> None:
        plan = self.plan
        if not plan.on_devices:
            raise RuntimeError("a step cannot be captured while some parameters are on the CPU: use two optimizers")
        if not all(course.capturing for course in plan.courses):
            raise RuntimeError("a step on several GPUs is captured on the streams of all, or on none")
        changed = plan.versions != [group.version for group in plan.groups]
        if changed or plan.formed is None or any(launch.cold for launch in plan.launches):
            raise RuntimeError(COLD)
        for group in plan.groups:
            for name, function in group.functions():
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
        if plan.scale != 1:
            raise RuntimeError(
                "a scale of gradients that the host knows cannot be captured: leave it on the GPU, and found_inf "
                "beside it, as GradScaler does"
            )

    def _ask_again(self) -> None:
        """Ask the groups for what has changed, of which the devices have to be told."""
        plan = self.plan
        versions = [group.version for group in plan.groups]
        # Outdated it is where the last step has failed after its look; a graph may have gone on since.
        changed = versions != plan.versions or self.only_python_knows or self.outdated
        if not changed and (self.captured or not any(map(self._host_decides, plan.groups))):
            return
        # Numbers need no count, so that nobody waits for it; but what only a graph was told is forgotten.
        if not self.told or any(group.schedules for group in plan.groups):
            self.settle()
        if self.captured and plan.chosen() != plan.rules:
            raise RuntimeError("a step was captured by another rule (momentum 0 has its own): make a new optimizer")
        plan.choose_rules()
        self.note_schedules()
        plan.versions = versions
        self.outdated = True

    def _host_decides(self, group: GroupOptions) -> bool:
        """Say whether schedules may come to what only the host can act on.

        A momentum that gets to 0, or leaves it, is a rule of its own, which a graph cannot change; for a beta of 1, the
        host raises. The step's count is between the one that was fetched and this one, before which all have been
        looked at.
        """
        step = group.entries["step"] + self.pending
        momentum, betas = group.schedules.get("momentum"), group.schedules.get("betas")
        if momentum is not None and (momentum(step) == 0) != (group.upcoming["momentum"] == 0):
            return True
        return betas is not None and not all(beta < 1 for beta in betas(step))

    def step(self, gradients: Located) -> None:
        """Take a step, after `look`."""
        plan = self.plan
        self._check(gradients)
        if gradients is not plan.loaded:
            plan.load(gradients)
        if not self.active or self.outdated:
            self._describe()
        if self.capturing:
            self._give_to_graph()
        self.pending += not self.capturing
        for course in plan.courses:
            if not self.told:
                course.tell()
            course.advance()
        for launch in plan.launches:
            launch()
        self.captured = self.captured or self.capturing
        self.told = self.told or not self.capturing

    def _check(self, gradients: Located) -> None:
        plan = self.plan
        if self.captured and (gradients.taking_part != plan.formed or gradients.strided):
            raise RuntimeError(
                "a step of this optimizer was captured with gradients for other parameters, or with other strides: "
                "give gradients to the same ones, that lie as those did, or use an optimizer for each set"
            )
        if self.capturing and gradients.strided:
            raise RuntimeError(
                "gradients whose strides are not their parameters' cannot be captured: copy each into an array that "
                "lies as its parameter does, as zeros_like(p) makes one, and take two steps with these before"
            )
        if self.capturing and (gradients.taking_part != plan.formed or any(launch.strided for launch in plan.launches)):
            raise RuntimeError(COLD)

    def _give_to_graph(self) -> None:
        """Let the graph own what its kernels use, but for gradients: it may be replayed when the optimizer is gone."""
        plan = self.plan
        memories = [memory for launch in plan.launches for memory in launch.memories()]
        memories += [array for tensor in plan.tensors for array in tensor.memories()]
        for course in plan.courses:
            course.own([*memories, self.verdict])
        self.verdict = None

    def _describe(self) -> None:
        """Describe to the devices what hyper rows are computed from."""
        plan = self.plan
        restart = not (self.active and self.told)
        if restart:
            self.fetched = self.pending = 0
        for course in plan.courses:
            course.describe(plan.cohorts, self.fetched, restart)
        self.active, self.told, self.outdated = True, False, False
        for cohort in plan.cohorts:
            if cohort.new_states and cohort.first:
                self.begun += [(t, list(new)) for t, new in zip(cohort.tensors, cohort.new_states, strict=True)]
                plan.keep_states(cohort)
        for group in plan.groups:
            group.fetch = self.fetch

    def note_schedules(self) -> None:
        """Put the schedules into the devices' memory, where a captured step will look for them."""
        plan = self.plan
        records = [record_of(function) for group in plan.groups for _, function in group.functions()]
        self.only_python_knows = any(record is None for record in records)
        for record in records:
            for course in plan.courses if record is not None else ():
                course.hold(record)

    def fetch(self) -> None:
        """Bring the groups' counts and numbers up to date, for somebody who reads them."""
        with contextlib.suppress(ReferenceError), self.plan.lock:  # the optimizer is gone, and the group is not
            self.settle()

    def settle(self) -> None:
        """Count the steps that devices have counted, which waits for them."""
        if not self.active or not (self.pending or self.captured):  # nothing has come since
            return
        plan = self.plan
        taken = plan.courses[0].taken()
        new, self.fetched, self.pending = taken - self.fetched, taken, 0
        if taken == 0 and self.begun:
            self.end()
            plan.forget()
        elif taken > 0:
            self.begun = []
            for cohort in plan.cohorts:
                cohort.first = False
        if new > 0:
            for cohort in plan.cohorts:
                cohort.step += new
            for group in plan.counted:
                group.count(new)
            for group in plan.groups:
                catch_up(group)

    def refuse_captured(self) -> None:
        """Raise where a graph may hold a step, and what it uses would be exchanged."""
        if self.captured:
            raise RuntimeError(
                "a step of this optimizer was captured (or a capture was broken off), and the graph uses its tables "
                "and states: load and add parameters before the capture, or make a new optimizer"
            )

    def end(self) -> None:
        """Let the host count again, after `settle`; states that no step has begun are given up."""
        self.refuse_captured()
        if self.active:
            self.active = False
            for group in self.plan.groups:
                group.fetch = None
            for tensor, names in self.begun:
                tensor.drop(names)
            self.begun = []
            self.plan.steady = False


def catch_up(group: GroupOptions) -> None:
    """Make the numbers of a group's schedules those of its latest step."""
    numbers = {name: check(name, schedule(group.entries["step"] - 1)) for name, schedule in group.schedules.items()}
    group.upcoming = {**group.entries, **numbers}
    group.take_upcoming()
