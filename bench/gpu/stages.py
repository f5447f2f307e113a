"""Times clipping and averages on a GPU: within fastopt's step, and by torch's functions beside its fused step.

Each implementation's plain step runs in the same rounds, so that what a stage adds can be compared with the bytes that
it reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastopt.rules import RULES as REGISTRY

from ..contenders import FASTOPT_TORCH, TORCH_MODES, Step, bound_step, torch_params, torch_step
from ..measure import Pace, measure
from ..rounds import reasons
from ..stages import AVERAGING, CALLED, CLIPPING, DECAY, MAX_NORM, TORCH
from ..workloads import WORKLOADS as OF_CPU
from ..workloads import Arrays, Workload
from .contenders import FASTOPT, MOST_STEPS, Contender, Say, draw
from .device import Device
from .figures import Stage
from .measure import COPY, ITEMSIZE, Both, fits, queued, started, timed

PLAIN = "plain"  # a step without stages
OPTIONS: dict[str, dict[str, Any]] = {  # that ask for a stage
    PLAIN: {},
    CLIPPING: {"max_grad_norm": MAX_NORM},
    CALLED: {"max_grad_norm": MAX_NORM},
    AVERAGING: {"ema_decay": DECAY},
}
RULES = ("momentum", "adamw")
# The last two, whose tensors are small, for the host's time.
WORKLOADS = {name: OF_CPU[name] for name in ("resnet50", "gpt2", "mlp", "tensors_2000")}


@dataclass(frozen=True, kw_only=True)
class Contestant(Contender):
    """One implementation of one stage, or its plain step.

    Attributes
    ----------
    implementation, stage : str
    numbers : int
        How many the stage reads and writes for each element, beside the rule's.
    waits : bool
        Whether the host waits for the GPU in each step. The GPU cannot be held then while steps are enqueued.
    """

    implementation: str
    stage: str
    numbers: int
    waits: bool = False

    @property
    def name(self) -> str:
        """Its name in the rounds."""
        return named(self.implementation, self.stage)

    def steps(self, workload: Workload) -> int:
        """Choose how many steps to take in a row; 0 for one without holding the GPU."""
        return 0 if self.waits else super().steps(workload)

    def bytes_moved(self, rule: str) -> int:
        """Count what one step reads and writes for each element."""
        return REGISTRY[rule].bytes_moved(ITEMSIZE) + ITEMSIZE * self.numbers


def named(implementation: str, stage: str) -> str:
    """Return the name of a contestant in the rounds; a plain step has that of the implementation."""
    return implementation if stage == PLAIN else f"{implementation}, {stage}"


def contestants(device: Device) -> dict[str, Contestant]:
    """Return all contestants: torch's, if it can use the GPU, and CuPy's; the subject of each is among them."""
    found = [] if device.torch is None else in_torch()
    found += [
        contestant(FASTOPT, PLAIN, 0, bound_step),
        contestant(FASTOPT, CLIPPING, 1, partial(bound_step, **OPTIONS[CLIPPING])),
    ]
    return {one.name: one for one in found}


def in_torch() -> list[Contestant]:
    """Return torch's contestants.

    Clipping within the step reads gradients once more. torch's reads them, and multiplies them in place. An average is
    read and written; torch reads the parameter again.
    """
    import fastopt.torch

    from .. import torch_stages

    own = partial(torch_step, library=fastopt.torch)
    # AveragedModel copies its count of averages, which is on the host, to the GPU in each step, and that copy waits.
    return [
        contestant(FASTOPT_TORCH, PLAIN, 0, partial(own, mode=OPTIONS[PLAIN])),
        contestant(FASTOPT_TORCH, CLIPPING, 1, partial(own, mode=OPTIONS[CLIPPING])),
        contestant(FASTOPT_TORCH, CALLED, 1, partial(on_tensors, torch_stages.call_and_step)),
        contestant(FASTOPT_TORCH, AVERAGING, 2, partial(own, mode=OPTIONS[AVERAGING])),
        contestant(TORCH, PLAIN, 0, partial(torch_step, mode=TORCH_MODES[TORCH])),
        contestant(TORCH, CLIPPING, 3, partial(on_tensors, torch_stages.clip_and_step)),
        contestant(TORCH, AVERAGING, 3, partial(on_tensors, torch_stages.step_and_average), waits=True),
    ]


def contestant(
    implementation: str, stage: str, numbers: int, make: Callable[[Arrays, str], Step], waits: bool = False
) -> Contestant:
    """Make a contestant; its subject is fastopt's of the same library that does the same within the step."""
    subject = named(FASTOPT if implementation == FASTOPT else FASTOPT_TORCH, CLIPPING if stage == CALLED else stage)
    return Contestant(make, subject, implementation=implementation, stage=stage, numbers=numbers, waits=waits)


def on_tensors(make: Callable[[Any, str], Step], arrays: Arrays, rule: str) -> Step:
    """Make a step over tensors.

    torch clips gradients in place, here those of all contestants; how long a step takes does not depend on their norm.
    """
    return make(torch_params(arrays), rule)


def stages(device: Device, workload: Workload, rule: str, begin: Callable[[], Pace], say: Say) -> Sequence[Stage]:
    """Measure all contestants on one workload by one rule, and a copy of as many bytes as the plain step moves."""
    everyone = contestants(device)
    if not fits(device, workload, len(everyone), say):  # two averages take no more than what others have beside states
        return ()
    steps = started(device, everyone, rule, draw(device.cupy, workload), say)
    counts = {name: everyone[name].steps(workload) for name in steps} | {COPY: MOST_STEPS}
    bytes_moved = REGISTRY[rule].bytes_moved(ITEMSIZE) * workload.elements
    steps[COPY] = device.copier(bytes_moved)
    both = timed(workload, rule, bytes_moved, measure(steps, queued(device, counts), begin()))
    there = [everyone[name] for name in both.gpu.names]
    return [row(both, one) for one in there if {one.implementation, one.subject} <= set(both.gpu.names)]


def row(both: Both, one: Contestant) -> Stage:
    """Make the row of one contestant."""
    gpu, host = both
    name, plain, moved = one.name, one.implementation, one.bytes_moved(gpu.rule)
    share = moved / REGISTRY[gpu.rule].bytes_moved(ITEMSIZE)
    figures = {
        "gpu_seconds": gpu.rounds.seconds(name),
        "host_seconds": host.rounds.seconds(name),
        "of_copy": gpu.of_limit(name).map(lambda of_plain: share * of_plain),
        "over_plain_gpu": gpu.rounds.ratio(name, plain),
        "over_plain_host": host.rounds.ratio(name, plain),
        "gpu": gpu.rounds.ratio(name, one.subject),
        "host": host.rounds.ratio(name, one.subject),
    }
    return {
        "workload": gpu.workload,
        "rule": gpu.rule,
        "stage": one.stage,
        "implementation": one.implementation,
        "subject": one.subject,
        "bytes_per_element": moved,
        "gpu_seconds": figures["gpu_seconds"].value,
        "host_seconds": figures["host_seconds"].value,
        "of_copy": figures["of_copy"].value,
        "over_plain_gpu": figures["over_plain_gpu"].value,
        "over_plain_host": figures["over_plain_host"].value,
        "gpu": figures["gpu"].value,
        "host": figures["host"].value,
        "rounds": len(gpu.rounds.of(name)),
        "unstable": reasons(**figures),
    }
