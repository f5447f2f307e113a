"""Times clipping and averages in torch: within the step of `fastopt.torch`, and by torch's functions beside its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastopt.torch
from fastopt.progress import track

from .contenders import FASTOPT_TORCH, Step, optimizer
from .measure import Pace
from .stages import AVERAGING, CALLED, CLIPPING, DECAY, MAX_NORM, SHARE, TORCH, Stage, rows
from .tensors import DistributedTensors, Tensors, process_group, side_by_side
from .workloads import DISTRIBUTED, Arrays, Workload

RULES = ("momentum", "adamw")
DISTRIBUTED_RULES = ("adamw",)

# The workloads of each stage.
CLIPPED = ("mlp", "tensors_2000", "resnet50", "gpt2")
AVERAGED = ("mlp", "resnet50")

Contestants = Callable[[Sequence[nn.Parameter], str], dict[str, Step]]


def clipping(params: Sequence[nn.Parameter], rule: str) -> dict[str, Step]:
    """Make steps that clip: by an option, by a call before the step, and by torch's function and its fused step."""
    within = optimizer(fastopt.torch, params, rule, max_grad_norm=MAX_NORM)
    return {FASTOPT_TORCH: within.step, CALLED: call_and_step(params, rule), TORCH: clip_and_step(params, rule)}


def call_and_step(params: Sequence[nn.Parameter], rule: str) -> Step:
    """Make a step of fastopt.torch before which its optimizer is asked to clip, as trainers do."""
    opt = optimizer(fastopt.torch, params, rule)

    def step() -> None:
        opt.clip_grad_norm_(MAX_NORM)
        opt.step()

    return step


def clip_and_step(params: Sequence[nn.Parameter], rule: str) -> Step:
    """Make torch's clipping, all tensors at once, and its fused step."""
    opt = optimizer(torch.optim, params, rule, fused=True)

    def step() -> None:
        clip_grad_norm_(params, MAX_NORM, foreach=True)
        opt.step()

    return step


def averaging(params: Sequence[nn.Parameter], rule: str) -> dict[str, Step]:
    """Make steps that average: by an option, and by torch's averages of all parameters after its fused step."""
    within = optimizer(fastopt.torch, params, rule, ema_decay=DECAY)
    return {FASTOPT_TORCH: within.step, TORCH: step_and_average(params, rule)}


def step_and_average(params: Sequence[nn.Parameter], rule: str) -> Step:
    """Make torch's fused step and its averages, all tensors at once."""
    opt = optimizer(torch.optim, params, rule, fused=True)
    model = nn.ParameterList(params)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]
    averaged.update_parameters(model)  # the first call copies: averages start there, as fastopt's do

    def step() -> None:
        opt.step()
        averaged.update_parameters(model)

    return step


def in_torch(workloads: Sequence[Workload], pace: Pace) -> list[Stage]:
    """Measure clipping and averages, and clipping of distributed tensors, if this torch has these."""
    pace = pace.share(SHARE)
    found: list[Stage] = []
    for workload in track([one for one in workloads if one.name in CLIPPED + AVERAGED], "Stages in torch"):
        tensors = Tensors.of(Arrays.draw(workload))
        if workload.name in CLIPPED:
            found += compared(CLIPPING, clipping, workload, tensors, RULES, pace)
        if workload.name in AVERAGED:
            found += compared(AVERAGING, averaging, workload, tensors, RULES, pace)
    return found + distributed(DISTRIBUTED, pace)


def distributed(workload: Workload, pace: Pace) -> list[Stage]:
    """Measure clipping of distributed tensors over a mesh of one process."""
    if not dist.is_available():
        return []
    with process_group():
        tensors = DistributedTensors.of(Arrays.draw(workload))
        return list(compared(CLIPPING, clipping, workload, tensors, DISTRIBUTED_RULES, pace))


def compared(
    stage: str, make: Contestants, workload: Workload, tensors: Tensors, rules: Sequence[str], pace: Pace
) -> Iterator[Stage]:
    """Compare one stage's contestants on a workload by each rule; their states are gone afterwards."""
    for rule in rules:
        rounds = side_by_side(tensors, make(tensors.params, rule), pace)
        yield from rows(stage, TORCH, workload.name, rule, rounds)
