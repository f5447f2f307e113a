"""Sparse gradients: the rows that one touches are updated where they lie, else copied out and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...kernels.dtypes import CODES
from ...kernels.reader import Array
from ...rules import Row, Rule
from ...step.gpu_sparse import GivenThere, refuse_capture
from ...step.masters import MASTER
from ...step.memory import extent
from ...step.sparse import Clip, Given, Rows, keep_new_states
from .memory import array_of
from .parameter import TorchParameter


def checked(what: str, gradient: Tensor, parameter: TorchParameter) -> Tensor:
    """Check a sparse gradient against its parameter."""
    if gradient.dtype != parameter.tensor.dtype or gradient.shape != parameter.tensor.shape:
        raise ValueError(
            f"{what} has dtype {gradient.dtype} and shape {tuple(gradient.shape)}, its parameter "
            f"{parameter.tensor.dtype} and {tuple(parameter.tensor.shape)}"
        )
    if gradient.device != parameter.tensor.device:
        raise ValueError(f"{what} is on {gradient.device}, its parameter on {parameter.tensor.device}")
    axes = gradient.sparse_dim()
    if axes == 0:
        raise ValueError(f"{what} is sparse along no axis: assign .to_dense() of it")
    if parameter.rowwise and axes > 1:
        raise ValueError(
            f"{what} is sparse along {axes} axes, and its accumulators are for rows: assign .to_dense().to_sparse(1) "
            "of it"
        )
    return gradient.detach()


class TensorRows(Rows):
    """The rows of a tensor on the CPU, updated where they lie."""

    parameter: TorchParameter

    def __init__(self, parameter: TorchParameter, rule: Rule, gradient: Tensor, clip: Clip, averages: bool) -> None:
        what = f"the gradient of {parameter}"
        given = all_rows(what, gradient) if gradient.layout is torch.strided else some_rows(what, gradient)
        super().__init__(parameter, rule, given, clip, averages)

    def update(self, row: Row, count: int) -> None:
        """Update the rows by a hyper row, after so many steps, and tell autograd."""
        increment_version(self.parameter.written())
        super().update(row, count)


def some_rows(what: str, gradient: Tensor) -> Given:
    """Take the rows of a sparse gradient."""
    rows, values, count = rows_and_values(gradient)
    given = Given.of(what, rows.numpy(), values.numpy())
    given.check_below(count)
    return given


def rows_there(what: str, gradient: Tensor, parameter: TorchParameter) -> GivenThere:
    """Take the rows of a sparse gradient on a GPU, where they are checked and sorted; nothing waits for it."""
    refuse_capture(parameter.device, what)
    rows, values, count = rows_and_values(gradient)
    rows, values = rows.contiguous(), values.contiguous()
    width = math.prod(gradient.shape[gradient.sparse_dim() :])
    given = GivenThere(what, parameter.number, array_of(rows), array_of(values), count, width, (rows, values))
    given.check_size()
    return given


def all_rows_there(what: str, gradient: Tensor, parameter: TorchParameter) -> GivenThere:
    """Take a dense gradient on a GPU as all rows of its parameter."""
    refuse_capture(parameter.device, what, dense=True)
    values, (count, *row) = real(gradient).contiguous(), gradient.shape
    given = GivenThere(what, parameter.number, None, array_of(values), count, math.prod(row), values)
    given.check_size()
    return given


def rows_and_values(gradient: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the row of each value, the values as float32 or float64, and how many rows the parameter has."""
    axes, values = gradient._indices(), gradient._values().resolve_neg()
    lengths = gradient.shape[: len(axes)]
    rows = axes[0] if len(axes) == 1 else numbered(axes, lengths)
    return rows, real(values), math.prod(lengths)


def all_rows(what: str, gradient: Tensor) -> Given:
    """Take a dense gradient as all rows of its parameter."""
    return Given.all_of(what, real(gradient).numpy())


def real(values: Tensor) -> Tensor:
    """Return values as float32 or float64."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def numbered(axes: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the row of each value that has indices along several axes; -1 if one is not below its axis's length."""
    rows, right = torch.zeros_like(axes[0]), torch.ones_like(axes[0], dtype=torch.bool)
    for axis, length in zip(axes, lengths, strict=True):
        rows = rows * length + axis
        right &= (axis >= 0) & (axis < length)
    return torch.where(right, rows, -1)


class CopiedRows:
    """The rows of one parameter in a step, copied out: that takes memory, so it comes before anything is written.

    Attributes
    ----------
    new_states : dict of str to ndarray
        States that begin with this step.
    first : bool
        Whether the rule's states do.

    Raises
    ------
    ValueError
        If the states are in 8 bits.
    RuntimeError
        In a capture.
    """

    def __init__(self, parameter: TorchParameter, rule: Rule, gradient: Tensor, clip: Clip, averages: bool) -> None:
        if {*parameter.state_dtypes(rule)} & {*CODES}:
            raise ValueError(
                f"the gradient of {parameter} is sparse, and its states are in 8 bits, in blocks that rows cut across: "
                'put it into a group with state_dtype="float32"'
            )
        if parameter.device.on_gpu:
            refuse_capture(parameter.device, f"the gradient of {parameter}")
        gradient = gradient.coalesce()
        self.parameter = parameter
        self.rule = rule
        self.indices = tuple(gradient.indices())
        self.given = gradient.values().resolve_conj().resolve_neg()
        self.gradient = self.given.contiguous()
        if clip is not None:
            factor, limit = clip
            self.gradient = (self.gradient * factor).clamp(-limit, limit)
        self.new_states = parameter.new_states(rule, averages)
        self.first = not self.new_states.keys().isdisjoint(rule.states)
        states = {**parameter.state, **parameter.allocated}
        names = (*rule.states, MASTER) if parameter.master else rule.states
        self.whole = [parameter.tensor.detach(), *(states[name] for name in names)]
        self.taken = [rows_of(tensor, self.indices) for tensor in self.whole]

    @property
    def read(self) -> Array:
        """The values of the gradient."""
        return array_of(self.gradient)

    @property
    def norm(self) -> float:
        """The norm of the gradient as it was given."""
        values = (torch.view_as_real(self.given) if self.given.is_complex() else self.given).double()
        largest = float(values.abs().amax()) if values.numel() else 0.0
        if largest == 0 or not math.isfinite(largest):
            return largest
        return largest * float(torch.linalg.vector_norm(values / largest))  # the squares may be infinite

    def keep_new_states(self) -> None:
        """Give the parameter the states that begin with this step; the launch brings the average up to date."""
        keep_new_states(self.parameter, self.rule, self.new_states)

    def update(self, row: Row, count: int) -> None:
        """Update the rows by a hyper row, after so many steps, and copy them back."""
        parameter, rule, (param, *others) = self.parameter, self.rule, self.taken
        variant = parameter.variant(rule, (), parameter.dtype)
        arrays = [array_of(tensor) for tensor in (param, self.gradient, *others)]
        addresses = [extent(array)[0] for array in arrays]
        storage = parameter.storage_row(rule, {})._replace(remainder=addresses.pop() if variant.master else 0)
        parameter.device.update(variant, arrays[0].size, addresses, {}, row, storage, count)
        with torch.no_grad():
            for tensor, rows in zip(self.whole, self.taken, strict=True):
                tensor[self.indices] = rows


def rows_of(tensor: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """Copy rows out of a tensor."""
    return tensor[indices].contiguous()
