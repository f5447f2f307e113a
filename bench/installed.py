"""Peers that are timed only where they are installed, and work on this machine."""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any

import torch
from torch import nn

BLOCK = 4096  # elements from which on bitsandbytes keeps states in 8 bits


@functools.cache
def deepspeed_adam() -> Any:
    """Return DeepSpeed's Adam for the CPU, if it is installed and compiles, which it does at first use."""
    with contextlib.suppress(Exception):  # the import, the compiler or the loader may raise anything
        found = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
        found([nn.Parameter(torch.ones(1))])
        return found
    return None


@functools.cache
def bitsandbytes() -> Any:
    """Return bitsandbytes' module of optimizers, if it is installed and has some for the CPU, as since version 0.50."""
    with contextlib.suppress(Exception):  # the import, or the step where it needs a GPU
        found = importlib.import_module("bitsandbytes").optim
        param = nn.Parameter(torch.ones(BLOCK))
        param.grad = torch.ones(BLOCK)
        found.AdamW8bit([param]).step()
        return found
    return None
