"""Times steps of `fastopt.torch` and of torch's modes on gradients that backward has just made, as in training.

Gradients that stay in place would flatter everyone: autograd allocates new ones for each step, and no Python object of
theirs exists yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fastopt.torch

from . import installed
from .contenders import DEEPSPEED, FASTOPT_TORCH, OPTIMIZERS, RULES, TORCH_MODES, Step, optimizer
from .measure import WARM_UP, Pace, each_after, settled
from .rounds import Comparison, Rounds, comparisons
from .workloads import Arrays, Workload

SHARE = 0.5  # of an optimizer workload's time: there is one mode, not two
CURVE_SHARE = 0.25

COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000)  # of tensors
ELEMENTS = 64  # of each: like a small layer's biases, so that a step is mostly overhead

DISTRIBUTED_RULE = "adam"

CONTENDERS: dict[str, tuple[Any, dict[str, bool]]] = {  # a library, and options that only it has
    FASTOPT_TORCH: (fastopt.torch, {}),
    **{name: (torch.optim, mode) for name, mode in TORCH_MODES.items()},
}


class Row(Comparison):
    """A contender on a workload, by a rule; the subject is fastopt.torch."""

    workload: str
    rule: str


class Point(Comparison):
    """A contender with momentum on a number of tensors of 64 elements."""

    tensors: int


@dataclasses.dataclass
class Tensors:
    """Parameters that all contenders share, and the values of their gradients."""

    params: list[nn.Parameter]
    sources: list[Tensor]

    @classmethod
    def of(cls, arrays: Arrays) -> Tensors:
        """Copy arrays into torch's memory."""
        params = [nn.Parameter(torch.tensor(param)) for param in arrays.params]
        return cls(params, [torch.tensor(grad) for grad in arrays.grads])

    def backward(self) -> None:
        """Let autograd make gradients: new tensors without Python objects, as after a loss's backward."""
        for param in self.params:
            param.grad = None  # what zero_grad does
        torch.autograd.backward(self.params, self.sources)


class DistributedTensors(Tensors):
    """The same as DTensors over a mesh of one process."""

    @classmethod
    def of(cls, arrays: Arrays) -> DistributedTensors:
        """Copy arrays into torch's memory."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (1,))
        params = [nn.Parameter(distribute_tensor(torch.tensor(param), mesh, [Shard(0)])) for param in arrays.params]
        return cls(params, [torch.tensor(grad) for grad in arrays.grads])

    def backward(self) -> None:
        """Make gradients as FSDP2 does: new tensors, distributed by the parameter's own spec."""
        from torch.distributed.tensor import DTensor

        for param, source in zip(self.params, self.sources, strict=True):
            spec = param._spec  # type: ignore[attr-defined]
            param.grad = DTensor(source.clone(), spec, requires_grad=False)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Make this process a group of its own."""
    store = dist.HashStore()  # type: ignore[attr-defined]  # which is public all the same
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def make(name: str, rule: str, params: Sequence[Tensor]) -> Step:
    """Make a contender, which owns its states."""
    if name == DEEPSPEED:
        made = installed.deepspeed_adam()(params, **OPTIMIZERS[rule][1], adamw_mode=False)
    else:
        library, mode = CONTENDERS[name]
        made = optimizer(library, params, rule, **mode)
    step: Step = made.step
    return step


def compared(tensors: Tensors, rule: str, pace: Pace, names: Iterable[str] = tuple(CONTENDERS)) -> Iterator[Comparison]:
    """Compare contenders on the same parameters by one rule; their states are gone afterwards."""
    rounds = side_by_side(tensors, {name: make(name, rule, tensors.params) for name in names}, pace)
    return comparisons(rounds, FASTOPT_TORCH)


def side_by_side(tensors: Tensors, contestants: Mapping[str, Step], pace: Pace, subject: str = FASTOPT_TORCH) -> Rounds:
    """Time steps, one of which is the subject's, each after a backward that makes new gradients."""
    for _ in range(WARM_UP - 1):  # the mode takes one more, to see how long a step is
        for step in contestants.values():
            tensors.backward()
            step()
    return settled(contestants, each_after(tensors.backward), pace, (subject,))


def rows(workloads: Sequence[Workload], pace: Pace) -> Iterator[list[Row]]:
    """Compare all contenders on every workload by every rule; yield a list for each pair."""
    pace = pace.share(SHARE)
    for workload in workloads:
        tensors = Tensors.of(Arrays.draw(workload))
        for rule in RULES:
            peers = (DEEPSPEED,) if rule == "adam" and installed.deepspeed_adam() else ()
            found = compared(tensors, rule, pace, (*CONTENDERS, *peers))
            yield [{"workload": workload.name, "rule": rule, **one} for one in found]


def distributed_rows(workload: Workload, pace: Pace) -> list[Row]:
    """Compare all contenders on distributed tensors, if this torch has these."""
    if not dist.is_available():
        return []
    pace = pace.share(SHARE)
    with process_group():
        of_all = compared(DistributedTensors.of(Arrays.draw(workload)), DISTRIBUTED_RULE, pace)
        return [{"workload": workload.name, "rule": DISTRIBUTED_RULE, **one} for one in of_all]


def curve(pace: Pace) -> Iterator[list[Point]]:
    """Compare all contenders on more and more tensors; yield a list for each number of tensors."""
    pace = pace.share(CURVE_SHARE)
    for count in COUNTS:
        tensors = Tensors.of(Arrays.draw(Workload("curve", "curve", ((ELEMENTS,),) * count)))
        yield [{"tensors": count, **one} for one in compared(tensors, "momentum", pace)]
