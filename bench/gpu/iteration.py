"""Times whole training iterations on a GPU, in bfloat16 and with clipping, with fastopt's and with torch's AdamW.

For a small model the host launches more slowly than the GPU works, and the host's time is the iteration's. The garbage
collector is off, as in all rounds, so its cost in a training is not included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

import fastopt.torch

from ..contenders import FASTOPT_TORCH, Step
from ..measure import WARM_UP, Pace, measure
from ..rounds import Rounds, reasons
from .contenders import Say, left_out
from .device import Device
from .figures import Iteration

ITERATIONS = 5  # per timed run, so that the wait for the GPU at its end is a small part
LARGEST_NORM = 1.0
LR = 1e-3

BATCH, INPUTS, HIDDEN, CLASSES = 64, 64, 256, 10
SEQUENCES, LENGTH, VOCABULARY = 8, 64, 1024
WIDTH, HEADS, BLOCKS = 128, 4, 12

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    FASTOPT_TORCH: fastopt.torch.AdamW,
    "torch-fused": partial(torch.optim.AdamW, fused=True),
}


class Block(nn.Module):
    """One transformer block with GPT-2's twelve tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries_keys_values, self.mixed = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return activations, shape (sequences, length, width)."""
        heads = self.queries_keys_values(self.before_attention(x)).unflatten(-1, (3, HEADS, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.mixed(attended.transpose(1, 2).flatten(2))
        out: torch.Tensor = x + self.mlp(self.before_mlp(x))
        return out


class Gpt(nn.Module):
    """GPT-2's 148 tensors, but smaller; the output layer shares the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return scores of the next token, shape (sequences * length, vocabulary)."""
        x = self.blocks(self.tokens(tokens) + self.positions.weight)
        return functional.linear(self.norm(x), self.tokens.weight).flatten(0, 1)


def mlp() -> nn.Module:
    """Make a network of two hidden layers."""
    sizes = (INPUTS, HIDDEN, HIDDEN)
    hidden = [layer for ends in pairwise(sizes) for layer in (nn.Linear(*ends), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, CLASSES))


class Task(NamedTuple):
    """A model, and a function that draws a batch of inputs and targets."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]


TASKS = {
    "mlp": Task(mlp, lambda: (torch.randn(BATCH, INPUTS), torch.randint(CLASSES, (BATCH,)))),
    "gpt": Task(
        Gpt,
        lambda: (
            torch.randint(VOCABULARY, (SEQUENCES, LENGTH)),
            torch.randint(VOCABULARY, (SEQUENCES * LENGTH,)),
        ),
    ),
}


class Spent(NamedTuple):
    """The seconds of an iteration, and those that the host takes to enqueue it."""

    seconds: float
    host: float


def drawn(make: Callable[[], Any]) -> Any:
    """Draw on the CPU, always the same; the global random states, the GPU's included, are not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make()


def training(task: Task, optimizer: Callable[..., Any], device: str) -> tuple[nn.Module, Step]:
    """Make a model and a plain training iteration."""
    model = drawn(task.model).to(device)
    inputs, targets = (tensor.to(device) for tensor in drawn(task.batch))
    opt = optimizer(model.parameters(), lr=LR)

    def iteration() -> None:
        opt.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        opt.step()

    return model, iteration


def in_a_row(device: Device) -> Callable[[Mapping[str, Step]], dict[str, Callable[[Step], Spent]]]:
    """Make a mode of `measure`: some iterations, then a wait for the GPU."""

    def clock(step: Step) -> Spent:
        device.synchronize()
        begin = time.perf_counter()
        for _ in repeat(None, ITERATIONS):
            step()
        host = time.perf_counter() - begin
        device.synchronize()
        return Spent((time.perf_counter() - begin) / ITERATIONS, host / ITERATIONS)

    return lambda contestants: dict.fromkeys(contestants, clock)


def iterations(device: Device, name: str, begin: Callable[[], Pace], say: Say) -> list[Iteration]:
    """Measure the iterations of one model; each optimizer has its own copy, with the same initial weights."""
    contestants, sizes = {}, []
    for implementation, optimizer in OPTIMIZERS.items():
        with left_out(implementation, "whole iterations", say):
            model, step = training(TASKS[name], optimizer, device.in_torch)
            for _ in range(WARM_UP):
                step()
            contestants[implementation] = step
            sizes = [param.numel() for param in model.parameters()]
    spent = measure(contestants, in_a_row(device), begin())
    whole, host = (
        Rounds([{of: getattr(each, part) for of, each in round_.items()} for round_ in spent]) for part in Spent._fields
    )
    found: list[Iteration] = []
    for implementation in contestants:
        seconds, host_seconds = whole.seconds(implementation), host.seconds(implementation)
        ratio = whole.ratio(implementation, FASTOPT_TORCH)
        found.append(
            {
                "workload": name,
                "implementation": implementation,
                "parameters": sum(sizes),
                "tensors": len(sizes),
                "seconds": seconds.value,
                "host_seconds": host_seconds.value,
                "ratio": ratio.value,
                "rounds": len(spent),
                "unstable": reasons(seconds=seconds, host_seconds=host_seconds, ratio=ratio),
            }
        )
    return found
