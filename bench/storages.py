"""Times steps over states in bfloat16: those of `fastopt.torch`, beside its own in 8 bits and in float32, and others'.

torch's steps over such states are timed where it takes them. It makes none itself, so they are converted after a first
step. Its fused steps refuse them ("expected scalar type Float but found BFloat16"), and so do all its steps of AdamW,
whose `lerp_` wants one dtype. What is left is momentum, operation by operation: by torch's default.

bitsandbytes has states in 8 bits on the CPU. Its step of GPT-2 takes half a minute, so only small models are timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

import fastopt.torch
from fastopt.progress import track
from fastopt.rules import RULES as REGISTRY

from . import installed
from .contenders import (
    BITSANDBYTES,
    FASTOPT_TORCH,
    IN_8_BITS,
    IN_BFLOAT16,
    OPTIMIZERS,
    TORCH_IN_BFLOAT16,
    TORCH_MODES,
    optimizer,
)
from .measure import Pace
from .rounds import comparisons
from .storages_report import Storage
from .tensors import Tensors, side_by_side
from .workloads import Arrays, Workload

SHARE = 0.5  # of an optimizer workload's time: there is one mode, not two
WORKLOADS = ("mlp", "tensor_300k", "gpt2")
RULES = ("momentum", "adamw")
QUICK_RULES = ("adamw",)
CONVERTIBLE = ("momentum",)  # the rules whose states torch takes in bfloat16
BITSANDBYTES_STATES = ("state1", "absmax1", "state2", "absmax2")
SLOW = {BITSANDBYTES: ("gpt2",)}  # and the workloads that nobody would wait for

CONTENDERS: dict[str, tuple[Any, dict[str, Any]]] = {  # a library, and options that only it has
    IN_BFLOAT16: (fastopt.torch, {"state_dtype": "bfloat16"}),
    IN_8_BITS: (fastopt.torch, {"state_dtype": "int8"}),
    FASTOPT_TORCH: (fastopt.torch, {}),
    "torch-fused": (torch.optim, TORCH_MODES["torch-fused"]),
}


def in_torch(workloads: Sequence[Workload], rules: Sequence[str], pace: Pace) -> list[Storage]:
    """Compare the contenders on those of the workloads that are of this part, by every rule."""
    pace = pace.share(SHARE)
    found: list[Storage] = []
    for workload in track([one for one in workloads if one.name in WORKLOADS], "States in fewer bits"):
        tensors = Tensors.of(Arrays.draw(workload))
        for rule in rules:
            found += compared(workload.name, rule, tensors, pace)
    return found


def compared(workload: str, rule: str, tensors: Tensors, pace: Pace) -> Iterator[Storage]:
    """Compare the contenders on the same parameters by one rule; their states are gone afterwards."""
    names = [name for name in contenders(rule) if workload not in SLOW.get(name, ())]
    optimizers = {name: make(name, rule, tensors) for name in names}
    steps = {name: opt.step for name, opt in optimizers.items()}
    for one in comparisons(side_by_side(tensors, steps, pace, IN_BFLOAT16), IN_BFLOAT16):
        moved = bytes_moved(optimizers[one["implementation"]], rule)
        yield {"workload": workload, "rule": rule, **one, "bytes_per_element": moved}


def contenders(rule: str) -> list[str]:
    """Name those that can be timed by a rule."""
    converted = [TORCH_IN_BFLOAT16] if rule in CONVERTIBLE else []
    return [*CONTENDERS, *converted, *([BITSANDBYTES] if installed.bitsandbytes() else [])]


def make(name: str, rule: str, tensors: Tensors) -> Any:
    """Make a contender's optimizer."""
    if name == TORCH_IN_BFLOAT16:
        return converted(tensors, rule, TORCH_MODES["torch-default"])
    if name == BITSANDBYTES:
        made, options = OPTIMIZERS[rule]
        return getattr(installed.bitsandbytes(), f"{made}8bit")(tensors.params, **options)
    library, options = CONTENDERS[name]
    return optimizer(library, tensors.params, rule, **options)


def converted(tensors: Tensors, rule: str, mode: Mapping[str, bool]) -> Any:
    """Make an optimizer of torch, and convert its states after a first step."""
    opt = optimizer(torch.optim, tensors.params, rule, **mode)
    tensors.backward()
    opt.step()
    for states in opt.state.values():
        for name in REGISTRY[rule].states:
            states[name] = states[name].bfloat16()
    return opt


def bytes_moved(opt: Any, rule: str) -> float:
    """Count the bytes that a step must read and write for each element, given the states that an optimizer has."""
    params = [param for group in opt.param_groups for param in group["params"]]
    names = [each for name in REGISTRY[rule].states for each in (name, f"{name}_scale")]
    names += BITSANDBYTES_STATES
    states = [opt.state[param][name] for param in params for name in names if name in opt.state[param]]
    moved: int = 3 * sum(param.nbytes for param in params) + 2 * sum(state.nbytes for state in states)
    elements: int = sum(param.numel() for param in params)
    return moved / elements
