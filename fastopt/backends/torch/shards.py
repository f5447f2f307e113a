"""Gradients of which each process has a part: their squares are added up over the processes, for the norm of the whole.

Processes must agree on what they add, and in which order, whatever gradients each of them has: so this depends on the
parameters alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .memory import is_distributed

Sums = npt.NDArray[np.float64]

ZERO = "torch.distributed.optim.zero_redundancy_optimizer"


class Shards:
    """Which parameters are sharded, and over which processes.

    A kind is a mesh with those of its dimensions over which a parameter is sharded. In the other dimensions it is
    replicated, and counts once. Kind 0 is what this process has all of.

    Attributes
    ----------
    kinds : array of int
        The kind of each parameter.
    count : int
        How many kinds there are.
    dimensions : list
        Of each mesh, the dimensions to be added over, in order, each with the kinds that it concerns.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        numbers: dict[Any, int] = {None: 0}
        self.kinds = np.array([numbers.setdefault(kind_of(param), len(numbers)) for param in parameters], np.intp)
        self.count = len(numbers)
        found: dict[tuple[Any, int], list[int]] = {}
        meshes = dict.fromkeys(kind[0] for kind in numbers if kind is not None)
        for mesh in meshes:
            for dimension in range(mesh.ndim):
                concerned = [n for kind, n in numbers.items() if kind and kind[0] == mesh and dimension in kind[1]]
                if concerned:
                    found[mesh, dimension] = concerned
        self.dimensions = [(*place, concerned) for place, concerned in found.items()]

    def sum_squares(self, launches: Sequence[Any], indices: Sequence[npt.NDArray[np.int64]], power: float) -> float:
        """Return the sum of squares of all gradients, times a power of two, of all processes.

        Parameters
        ----------
        launches : sequence of CpuLaunch
        indices : sequence of array of int
            Of each launch's parameters.
        power : float
        """
        sums = np.zeros(self.count)
        for launch, places in zip(launches, indices, strict=True):
            squares = launch.sum_squares(power)
            with np.errstate(over="ignore"):
                sums += np.bincount(self.kinds[places][launch.chunks["tensor"]], squares, self.count)  # one by one
        return self.total(sums)

    def total(self, sums: Sums) -> float:
        """Return the sum over all processes of this process's sums, one for each kind; all processes get the same."""
        for mesh, dimension, concerned in self.dimensions:
            sums[concerned] = added(sums[concerned], mesh, dimension)
        with np.errstate(over="ignore"):
            return float(np.cumsum(sums)[-1])

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> Shards | None:
        """Find the shards among parameters; None if this process has all of everything."""
        if not any(map(is_distributed, parameters)):
            return None
        shards = cls(parameters)
        return shards if shards.dimensions else None


def added(sums: Sums, mesh: Any, dimension: int) -> Sums:
    """Return these sums, added up over the processes in a dimension of a mesh.

    Under FSDP2's CPUOffloadPolicy parameters are on the CPU, and their mesh is one of GPUs: where its processes cannot
    add up what is on the CPU, as NCCL alone cannot, the few numbers go by way of the GPUs.
    """
    group = mesh.get_group(dimension)
    reduces_on_cpu = "cpu:" in torch.distributed.get_backend_config(group)
    part = torch.from_numpy(sums).to("cpu" if reduces_on_cpu else mesh.device_type)
    torch.distributed.all_reduce(part, group=group)
    total: Sums = part.cpu().numpy()
    return total


def kind_of(param: Any) -> tuple[Any, tuple[int, ...]] | None:
    """Return a parameter's mesh, and the dimensions of that over which it is sharded; None if this process has all."""
    if not is_distributed(param):
        return None
    spec = param._spec
    places = enumerate(spec.placements)
    sharded = tuple([i for i, placement in places if not placement.is_replicate() and spec.mesh.size(i) > 1])
    return (spec.mesh, sharded) if sharded else None


def part_of(param: Any) -> int:
    """Return the number of the part of a parameter that this process has: 0 if it has all; copies share theirs."""
    kind, part = kind_of(param), 0
    place = None if kind is None else kind[0].get_coordinate()
    if kind is None or place is None:  # all of it, or nothing
        return 0
    mesh, dimensions = kind
    for dimension in dimensions:
        part = part * mesh.size(dimension) + place[dimension]
    return part


# Shards that look like ordinary tensors

INSTEAD = (
    "leave out max_grad_norm and skip_nonfinite, which need it, and call {call} before the step; to skip steps, do not "
    "take one where what that returns is not finite"
)


def why_no_norm(parameters: Sequence[Tensor], is_of_zero: bool) -> str:
    """Say why the norm of the whole cannot be taken, and what to do instead; an empty text if it can.

    Parameters
    ----------
    parameters : sequence of Tensor
    is_of_zero : bool
        Whether these are one rank's share, given by ZeroRedundancyOptimizer.
    """
    if is_of_zero:
        instead = INSTEAD.format(call="torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)")
        return (
            "ZeroRedundancyOptimizer gives this optimizer the parameters of its own rank alone, and nobody would add "
            f"up the norms of all ranks; each rank has all gradients, so {instead}"
        )
    if any(getattr(param, "_fsdp_flattened", False) for param in parameters):  # which torch marks so
        instead = INSTEAD.format(call="model.clip_grad_norm_(max_norm)")
        return (
            "FullyShardedDataParallel (FSDP1) gives this optimizer its own rank's part of the parameters, in tensors "
            f"that do not say of what they are parts, so the norm of the whole is not known here: {instead}. Or "
            "use fully_shard (FSDP2), whose tensors say it"
        )
    return ""


def is_made_by_zero() -> bool:
    """Say whether ZeroRedundancyOptimizer is making an optimizer, for its rank's share of the parameters.

    Nothing about that optimizer, or its parameters, tells it later.
    """
    if ZERO not in sys.modules:
        return False
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == ZERO:
            return True
    return False
