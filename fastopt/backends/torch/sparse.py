"""Sparse gradients: the rows that one touches are copied out, updated as a dense tensor, and copied back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...kernels.dtypes import CODES
from ...rules import Family, Row, Rule
from ...step.launch import Variant
from ...step.masters import MASTER
from ...step.memory import extent
from ...step.parameter import EMA
from .memory import array_of
from .parameter import TorchParameter


def coalesced(what: str, gradient: Tensor, parameter: TorchParameter) -> Tensor:
    """Check a sparse gradient, and return it with each row once."""
    if gradient.dtype != parameter.tensor.dtype or gradient.shape != parameter.tensor.shape:
        raise ValueError(
            f"{what} has dtype {gradient.dtype} and shape {tuple(gradient.shape)}, its parameter "
            f"{parameter.tensor.dtype} and {tuple(parameter.tensor.shape)}"
        )
    if gradient.device != parameter.tensor.device:
        raise ValueError(f"{what} is on {gradient.device}, its parameter on {parameter.tensor.device}")
    return gradient.detach().coalesce()


class Rows:
    """The rows of one parameter in a step, copied out: that takes memory, so it comes before anything is written.

    Attributes
    ----------
    new_states : dict of str to ndarray
        States that begin with this step: the average can, and the master.

    Raises
    ------
    ValueError
        If options have the rule also change rows whose gradient is zero.
    RuntimeError
        If it does so by itself.
    """

    def __init__(self, parameter: TorchParameter, family: Family, rule: Rule, gradient: Tensor, averages: bool) -> None:
        if not any(able.sparse for able in family.rules):
            raise RuntimeError(
                f"the gradient of {parameter} is sparse, and {rule.name} does not support that: its averages change in "
                "the rows that it leaves out, too; pass .to_dense() of it, or use Adagrad, or torch.optim.SparseAdam"
            )
        if not rule.sparse or parameter.group.upcoming["weight_decay"] != 0:
            raise ValueError(
                f"the gradient of {parameter} is sparse, which does not work with a momentum or weight decay: these "
                "move the rows that it leaves out; pass .to_dense() of it, or put the parameter into a group without"
            )
        if {*parameter.state_dtypes(rule)} & {*CODES}:
            raise ValueError(
                f"the gradient of {parameter} is sparse, and its states are in 8 bits, in blocks that rows cut across: "
                'put it into a group with state_dtype="float32"'
            )
        if parameter.device.on_gpu and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"the gradient of {parameter} is sparse: a step with it cannot be captured")
        self.parameter = parameter
        self.rule = rule
        self.indices = tuple(gradient.indices())
        self.given = gradient.values().resolve_conj().resolve_neg()
        self.gradient = self.given.contiguous()
        self.new_states = parameter.new_states(rule, averages)
        states = {**parameter.state, **parameter.allocated}
        names = (*rule.states, MASTER) if parameter.master else rule.states
        self.whole = [parameter.tensor.detach(), *(states[name] for name in names)]
        self.taken = [rows_of(tensor, self.indices) for tensor in self.whole]

    @property
    def norm(self) -> float:
        """The norm of the gradient as it was given."""
        values = (torch.view_as_real(self.given) if self.given.is_complex() else self.given).double()
        largest = float(values.abs().amax()) if values.numel() else 0.0
        if largest == 0 or not math.isfinite(largest):
            return largest
        return largest * float(torch.linalg.vector_norm(values / largest))  # the squares may be infinite

    def clip(self, scale: float, limit: float) -> None:
        """Multiply the gradient, and clip its elements; the one that was given stays as it is."""
        self.gradient = (self.gradient * scale).clamp(-limit, limit)

    def keep_new_states(self) -> None:
        """Give the parameter the states that begin with this step; the launch brings the average up to date."""
        parameter = self.parameter
        if self.new_states:
            parameter.keep(self.new_states)
        if EMA in self.new_states:
            parameter.launch.write_average(parameter.row, extent(self.new_states[EMA])[0])
            parameter.launch.write_storage(parameter.row, parameter.storage_row(self.rule, parameter.states))

    def update(self, row: Row, count: int) -> None:
        """Update the rows by a hyper row, after so many steps, and copy them back."""
        parameter, rule, (param, *others) = self.parameter, self.rule, self.taken
        master, rounding = parameter.master, parameter.rounding(rule)
        variant = Variant(rule.name, parameter.dtype, (), parameter.state_dtypes(rule), "", master, rounding)
        arrays = [array_of(tensor) for tensor in (param, self.gradient, *others)]
        addresses = [extent(array)[0] for array in arrays]
        storage = parameter.storage_row(rule, {})._replace(remainder=addresses.pop() if master else 0)
        parameter.device.update(variant, arrays[0].size, addresses, {}, row, storage, count)
        with torch.no_grad():
            for tensor, rows in zip(self.whole, self.taken, strict=True):
                tensor[self.indices] = rows


def rows_of(tensor: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    """Copy rows out of a tensor."""
    return tensor[indices].contiguous()
