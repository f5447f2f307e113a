"""The gradients of one step, as torch holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.dtypes import DTYPES
from ...kernels.reader import Array
from ...kernels.tensors import Shape, Watch, shape_of
from ...step.chunks import Strides
from ...step.gpu_sparse import GivenThere
from ...step.plan import Plan
from ..gradients import StepGradients
from .memory import UPDATED, array_of, check_memory, fits, is_distributed
from .parameter import TorchParameter
from .sparse import all_rows_there, rows_there
from .sparse import checked as checked_sparse

GRAD = torch._C.TensorBase.__dict__["grad"]  # the descriptor itself; access by name takes a third longer


class Gradients(StepGradients):
    """Gradients of torch."""

    advice = "assign a .clone() of it"

    def __init__(
        self, watch: Watch, parameters: Sequence[TorchParameter], plan: Plan, unread: int, finds_there: bool = False
    ) -> None:
        self.finds_there = finds_there  # whether one GPU can find the rows of all sparse gradients
        self.held = list(watch.gradients)
        self.strided: dict[int, Strides] = {}
        self.others: dict[int, str] = {}
        self.sparse: dict[int, Tensor] = {}
        self.there: dict[int, GivenThere] = {}
        self.copies: dict[int, Tensor] = {}
        self.addresses = watch.found[:-1].copy()
        if unread:
            self.check_unread(parameters, plan.extents)
        if self.sparse:  # the host cannot wait to see whether rows that it updates are to be skipped
            self._find_here(parameters)
        all_dense = watch.found[-1] == 0 and not self.sparse
        self.taking_part = plan.everyone if all_dense else (self.addresses != 0).tobytes()

    def checked(self, i: int, what: str, parameter: TorchParameter) -> Array | None:
        """Check a gradient, and return an array that describes its layout; None if it is sparse."""
        given = self.held[i]
        check_distribution(what, given, parameter.given)
        if isinstance(given, Tensor) and given.layout is torch.sparse_coo:
            return self._checked_rows(i, what, parameter, checked_sparse(what, given, parameter))
        if isinstance(given, Tensor) and given._is_zerotensor():
            given = given.clone()  # the clone has memory
        gradient = check_memory(what, given).detach().resolve_conj().resolve_neg()
        if gradient.device != parameter.tensor.device:
            raise ValueError(f"{what} is on {gradient.device}, its parameter on {parameter.tensor.device}")
        if gradient.dtype != parameter.tensor.dtype and not fits(gradient.dtype, parameter.tensor.dtype):
            raise TypeError(f"{what} has dtype {gradient.dtype}, its parameter {parameter.tensor.dtype}")
        if gradient.shape != parameter.tensor.shape:
            shapes = f"shape {tuple(gradient.shape)}, its parameter {tuple(parameter.tensor.shape)}"
            raise ValueError(f"{what} has {shapes}: they are paired by index and must agree")
        self.held[i] = gradient
        if parameter.rowwise and parameter.device.on_gpu:
            self.there[i] = all_rows_there(what, gradient, parameter)
            return self.there[i].values
        if parameter.rowwise:
            self.sparse[i] = gradient
            return array_of(gradient)
        self.note_dtype(i, parameter, UPDATED[gradient.dtype].name)
        return array_of(gradient)

    def _checked_rows(self, i: int, what: str, parameter: TorchParameter, gradient: Tensor) -> Array | None:
        """Keep a sparse gradient; where a GPU finds its rows, return an array that describes its values."""
        self.held[i] = gradient
        if not (self.finds_there and parameter.has_rows_there):
            self._copy_rows(i, parameter)
            return None
        self.there[i] = rows_there(what, gradient, parameter)
        return self.there[i].values

    def _find_here(self, parameters: Sequence[TorchParameter]) -> None:
        """Let the host find the rows of all sparse gradients."""
        for i in [i for i, given in self.there.items() if not given.dense]:
            self._copy_rows(i, parameters[i])
            self.addresses[i] = 0
            del self.there[i]

    def _copy_rows(self, i: int, parameter: TorchParameter) -> None:
        """Leave a sparse gradient to the host, which copies rows that are on a GPU, or lie otherwise than it needs."""
        if parameter.rowwise and parameter.device.on_gpu:
            raise ValueError(
                f"the gradient of {parameter} is sparse, and with rowwise=True on a GPU that takes all parameters on "
                "one GPU, rows that lie one after the other where others are sparse too, and a step that is not "
                "during backward(): else make it dense, as an embedding does with sparse=False"
            )
        self.sparse[i] = self.held[i]

    def in_order(self, i: int, parameter: TorchParameter) -> Array:
        """Copy a gradient into its parameter's storage order, and return an array that describes the copy."""
        self.copies[i] = parameter.in_order(self.held[i])
        return array_of(self.copies[i])

    def release(self) -> None:
        """Let go of the tensors, so that the next ones can reuse their memory. No step uses these again."""
        self.held, self.sparse, self.there, self.copies = [], {}, {}, {}


def check_distribution(what: str, gradient: Any, parameter: Any) -> None:
    """Raise if the two are not distributed alike."""
    if not is_distributed(parameter):
        if is_distributed(gradient):
            raise ValueError(f"{what} is distributed, and its parameter is not: assign its .full_tensor()")
        return
    there = "parameter.device_mesh, parameter.placements"
    if not is_distributed(gradient):
        raise ValueError(
            f"{what} is not distributed, and its parameter is: assign distribute_tensor(gradient, {there})"
        )
    if gradient.device_mesh != parameter.device_mesh:
        raise ValueError(
            f"{what} is distributed over another mesh than its parameter: assign "
            f"distribute_tensor(gradient.full_tensor(), {there})"
        )
    if gradient.placements != parameter.placements:
        raise ValueError(
            f"{what} is not distributed as its parameter is: assign its .redistribute(placements=parameter.placements)"
        )


def has_plain_gradient(param: Tensor) -> bool:
    """Say whether a parameter's gradient is torch's own attribute, and not a property of its class."""
    return getattr(type(param), "grad", None) is GRAD


def readable_gradient(parameter: TorchParameter) -> Shape | None:
    """Describe a gradient in its parameter's layout; None if only Python can tell what it stands for.

    Complex ones may be conjugates, and where no stride is odd it may be the negated imaginary part of a conjugate.
    """
    tensor = parameter.tensor
    plain = any(stride % 2 for stride in tensor.stride()) and not tensor.is_complex() and not parameter.has_gaps
    if parameter.rowwise or not plain:
        return None
    _, _, lengths, strides, device = shape_of(tensor)
    return parameter.gradient, DTYPES[parameter.gradient].itemsize, lengths, strides, device
