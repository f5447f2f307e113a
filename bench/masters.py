"""Times steps of models in bfloat16 that are trained in float32: with masters, and with copies beside torch's step.

What torch's users write keeps the parameters a second time, in float32, and copies them to the model after each step.
Gradients of a model in bfloat16 are in bfloat16: they are copied as well, unless backward adds them up in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastopt.torch
from fastopt.progress import track

from . import installed
from .contenders import OPTIMIZERS, TORCH_MODES, optimizer
from .masters_report import COPIED, COPIED_BACK, DEEPSPEED_COPIED_BACK, MASTERS, SEVEN_BYTES, Master
from .measure import Pace
from .rounds import comparisons
from .tensors import Tensors, side_by_side
from .workloads import Arrays, Workload

SHARE = 0.5  # of an optimizer workload's time: there is one mode, not two
WORKLOADS = ("mlp", "gpt2")
RULE = "adamw"
WEIGHT_DECAY = 0.01  # the others' default
OPTIONS: dict[str, dict[str, Any]] = {
    MASTERS: {"master_weights": True},
    SEVEN_BYTES: {"master_weights": 24, "state_dtype": "int8"},
}


class Copies:
    """Float32 parameters that an optimizer of float32 updates, and the model's, which they are copied to.

    Parameters
    ----------
    tensors : Tensors
        The model's parameters.
    copies_gradients : bool
        Whether the gradients are those of the model; else they are float32 from the start, and stay in place.
    make : callable
        Makes the optimizer, given the float32 parameters.
    """

    def __init__(self, tensors: Tensors, copies_gradients: bool, make: Callable[[list[Tensor]], Any]) -> None:
        self.params: list[Tensor] = [*tensors.params]
        self.masters: list[Tensor] = [nn.Parameter(param.detach().float()) for param in tensors.params]
        self.copies_gradients = copies_gradients
        for master, source in zip(self.masters, tensors.sources, strict=True):
            master.grad = source.float()
        self.gradients: list[Any] = [master.grad for master in self.masters]
        self.update = make(self.masters).step

    @torch.no_grad()
    def step(self) -> None:
        """Copy gradients, update, and copy the parameters back."""
        if self.copies_gradients:
            given: list[Any] = [param.grad for param in self.params]
            torch._foreach_copy_(self.gradients, given)
        self.update()
        torch._foreach_copy_(self.params, self.masters)


def halved(arrays: Arrays) -> Tensors:
    """Make parameters and gradients in bfloat16."""
    params, sources = ([torch.tensor(array).bfloat16() for array in each] for each in (arrays.params, arrays.grads))
    return Tensors([nn.Parameter(param) for param in params], sources)


def make(name: str, tensors: Tensors) -> Any:
    """Make a contender, which has a method `step`."""
    if name in OPTIONS:
        return optimizer(fastopt.torch, tensors.params, RULE, **OPTIONS[name])
    return Copies(tensors, name == COPIED, deepspeed if name == DEEPSPEED_COPIED_BACK else torch_fused)


def torch_fused(params: list[Tensor]) -> Any:
    """Make torch's fused optimizer."""
    return optimizer(torch.optim, params, RULE, **TORCH_MODES["torch-fused"])


def deepspeed(params: list[Tensor]) -> Any:
    """Make DeepSpeed's optimizer."""
    return installed.deepspeed_adam()(params, **OPTIMIZERS[RULE][1], weight_decay=WEIGHT_DECAY, adamw_mode=True)


def contenders() -> list[str]:
    """Name those that can be timed."""
    peers = [DEEPSPEED_COPIED_BACK] if installed.deepspeed_adam() else []
    return [*OPTIONS, COPIED_BACK, COPIED, *peers]


def in_torch(workloads: Sequence[Workload], pace: Pace) -> list[Master]:
    """Compare the contenders on those of the workloads that are of this part."""
    chosen = [workload for workload in workloads if workload.name in WORKLOADS]
    return [row for workload in track(chosen, "Masters") for row in compared(workload, pace.share(SHARE))]


def compared(workload: Workload, pace: Pace) -> Iterator[Master]:
    """Compare the contenders on the same parameters, which each overwrites; their states are gone afterwards."""
    tensors = halved(Arrays.draw(workload))
    steps = {name: make(name, tensors).step for name in contenders()}
    for one in comparisons(side_by_side(tensors, steps, pace, MASTERS), MASTERS):
        yield {"workload": workload.name, **one}
