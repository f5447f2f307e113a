"""One parameter that is a tensor of torch, and its states as torch holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ...checks import Count
from ...kernels.dtypes import CODES, DTYPES
from ...kernels.reader import Array
from ...options import ADDED_DEFAULTS
from ...rules import CARRIED, Family, Rule
from ...step.codes import SCALES, blocks
from ...step.group import GroupOptions
from ...step.masters import MASTER, converted, is_convertible
from ...step.memory import Layout, overlaps_itself
from ...step.parameter import EMA, NOTHING, Parameter
from ..gradients import not_in_captures
from .codes import CODE_DTYPES, check_scales, decoded, encoded, is_code
from .device import device_of
from .memory import (
    UPDATED,
    alias_of,
    array_of,
    check_memory,
    fits,
    held_array,
    is_distributed,
    local,
)  # fmt: skip
from .shards import part_of


class Shown(Protocol):
    """Keeps the counts that are part of a parameter's state: `Counts`."""

    names: tuple[str, ...]

    def of(self, place: int) -> dict[str, Tensor]:
        """Return the tensors for the state of the parameter in this place, by name."""


class TorchParameter(Parameter):
    """One parameter of an optimizer of torch, with its memory and that of its states.

    Attributes
    ----------
    given : tensor
        The parameter as torch holds it, perhaps distributed.
    tensor : tensor
        Its local part.
    updated : tensor
        The tensor that is updated: the same or, if that has gaps, a dense copy, which is copied back.
    registry, state : dict
        The states of all parameters in torch, and this one's.
    counts, place : Shown or None, int
        Keeps its step count, if that is part of the state, and its place there.
    """

    __slots__ = ("allocated", "counts", "given", "original", "place", "registry", "state", "tensor", "updated")

    def __init__(self, key: Any, given: Any, group: GroupOptions, registry: dict[Any, dict[str, Any]]) -> None:
        self.key = key
        self.given = given
        self.counts: Shown | None = None
        self.place = 0
        self.allocated: dict[str, Any] = NOTHING  # until it is kept
        self.registry = registry
        self.state = registry.get(given, {})
        if is_lazy(given):
            raise ValueError(f"{self} has no shape yet: run the model once before making the optimizer")
        self.tensor = check_memory(str(self), given)
        if is_distributed(given) and any(placement.is_partial() for placement in given.placements):
            raise ValueError(
                f"{self} is distributed as partial sums, which no part can update: make it with "
                f".redistribute(placements=...), sharded or replicated"
            )
        if self.tensor.dtype not in UPDATED:
            supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in UPDATED)
            raise TypeError(f"{self} has dtype {self.tensor.dtype}; {supported} can be updated")
        if self.tensor.is_conj() or self.tensor.is_neg():
            raise ValueError(f"{self} is a view that conjugates or negates: make it with .resolve_conj().resolve_neg()")
        self.original = array = held_array(self.tensor)
        if self.original.size and overlaps_itself(self.original):
            raise ValueError(f"elements of {self} may overlap each other in memory: pass a .clone() of it")
        self.updated = self.tensor
        if not Layout(self.original).is_dense(self.original):
            self.updated = torch.empty_like(self.tensor, requires_grad=False)
            array = held_array(self.updated)
        super().__init__(key, array, Layout(array), UPDATED[self.tensor.dtype].name, group, device_of(self.tensor))
        dtype = dtype_of_gradient(given)
        if fits(dtype, self.tensor.dtype):
            self.gradient = UPDATED[dtype].name

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Iterate over all that an update writes, with names for messages."""
        yield str(self), self.original
        for name, array in self.states.items():
            yield f"the {name} of {self}", array

    def written(self) -> list[Any]:
        """Return the tensors that an update writes, as torch holds them."""
        return [self.given, *(self.state[name] for name in self.states)]

    def counted(self) -> list[Any]:
        """Return tensors that share version counters with these, and with their local parts."""
        return [*map(alias_of, (self.original, *self.states.values())), *filter(is_distributed, self.written())]

    @property
    def is_complex(self) -> bool:
        """Whether it consists of pairs of reals."""
        return self.tensor.is_complex()

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape, that of the whole one if it is distributed."""
        return tuple(self.given.shape)

    @property
    def has_plain_rows(self) -> bool:
        """Whether its rows lie one after the other in memory that is the tensor's own."""
        own = not (self.has_gaps or self.is_complex or is_distributed(self.given))
        return own and self.tensor.is_contiguous()

    @property
    def has_rows_there(self) -> bool:
        """Whether its rows lie so on a GPU, and no average has to follow those that a step leaves out."""
        average = self.group.entries.get("ema_decay") is not None
        return self.device.on_gpu and self.has_plain_rows and (self.rowwise or not average)

    @property
    def has_gaps(self) -> bool:
        """Whether a dense copy is updated in the tensor's place."""
        return self.updated is not self.tensor

    def load(self) -> None:
        """Bring the copy up to date."""
        self.updated.copy_(self.tensor.detach())

    def store(self) -> None:
        """Copy the copy back into the parameter."""
        with torch.no_grad():
            self.tensor.copy_(self.updated)

    def adopt(self, family: Family) -> None:
        """Take torch's states, converted to the dtype and storage order in which they are updated."""
        found = [name for name in (*family.states, EMA) if self.state.get(name) is not None]
        if family.counts:
            self._check_count(found, family)
        for name in found:
            self.state.update(self._stored(name, self.state[name], self.state.pop(name + SCALES, None)))
        if self.master and (found or MASTER in self.state):
            self.state[MASTER] = self.fitted_master(self.state.get(MASTER))
            found.append(MASTER)
        for name in found:
            self.states[name] = held_array(local(self.state[name]))
            if (scales := self.state.get(name + SCALES)) is not None:
                self.states[name + SCALES] = held_array(scales)

    def _stored(self, name: str, value: Any, scales: Any) -> dict[str, Any]:
        """Return a state, with its scales, as the parameter stores it."""
        dtype = self.state_dtype(name)
        if is_code(value):
            value = value.to(self.tensor.device)  # from a state dict on another
            codes = local(value)
            scales = check_scales(f"the {name} of {self}", codes, scales)
            if CODE_DTYPES[codes.dtype] == dtype and self._is_like_it(value):
                return {name: value, name + SCALES: scales}
            value = self._filled("float32", decoded(codes, scales))
        value = self.fitted(name, value)
        if dtype not in CODES:
            return {name: value}
        codes, scales = encoded(local(value), dtype)
        return {name: self._filled(dtype, codes), name + SCALES: scales}

    def _is_like_it(self, value: Any) -> bool:
        """Say whether a state has the parameter's shape and layout."""
        array = array_of(local(value))
        return value.shape == self.given.shape and (array.size == 0 or self.layout.is_dense(array))

    def _filled(self, dtype: str, elements: Tensor) -> Any:
        """Allocate a state of a dtype, with these local elements."""
        state = self.new_state(0.0, dtype)
        with torch.no_grad():
            local(state).copy_(elements)
        return state

    def saved(self) -> dict[str, Any]:
        """Return the states in 8 bits for a state dict, where it cannot or shall not have their codes: decoded."""
        compress = self.group.entries.get("compress_state_dict", ADDED_DEFAULTS["compress_state_dict"])
        if compress and self.layout.plain and not is_distributed(self.given):
            return {}
        coded = [name for name in self.states if name + SCALES in self.states]
        return {
            name: self._filled("float32", decoded(local(self.state[name]), self.state[name + SCALES])) for name in coded
        }

    def _check_count(self, found: list[str], family: Family) -> None:
        """Raise if the count is there without the states, or the reverse: counted from 0, averages would be too large.

        A state that only some of the rules have may begin later.
        """
        step = self.state.get("step")
        if found and step is None:
            raise ValueError(
                f"the state of {self} has {' and '.join(found)}, but no 'step': put the count of steps there that have "
                f"gone into it, as state['step'] = torch.tensor(100.0), or take the others out as well"
            )
        self.step = 0 if step is None else whole_number(f"the step of {self}", step)
        missing = [name for name in family.kept if name not in found]
        if family.carried is not None:
            self._take_carried(family.carried, missing)
        if self.step and missing:
            raise ValueError(
                f"the state of {self} has {self.step} steps, but no {' and no '.join(missing)}, without which it "
                f"cannot go on: put that there, or take 'step' out as well"
            )

    def _take_carried(self, name: str, missing: list[str]) -> None:
        """Take the carried number, which is 1 before the first step."""
        given = self.state.get(name)
        if given is not None:
            self.carried = CARRIED.check(f"the {name} of {self}", plain(given))
        elif self.step:
            missing.append(name)

    def fitted(self, name: str, value: Any, copy: bool = False) -> Any:
        """Return a state in the parameter's layout: the given one, or a copy if it has another, or if asked for.

        Raises
        ------
        TypeError, ValueError
            If it cannot be this parameter's.
        """
        what = f"the {name} of {self}"
        fits, here = self._fits(what, value, self.is_of_rows(name)), local(value)
        if here.is_complex() != self.tensor.is_complex() or not (here.is_complex() or here.is_floating_point()):
            raise TypeError(f"{what} has dtype {here.dtype}, which {self.tensor.dtype} has no use for")
        if here.dtype is self.torch_dtype(name) and fits and not copy and not (here.is_conj() or here.is_neg()):
            return value
        fitted = self.new_numbers(0.0) if self.is_of_rows(name) else self.new_state(0.0, self.float_dtype(name))
        with torch.no_grad():
            fitted.copy_(value)
        return fitted

    def _fits(self, what: str, value: Any, of_rows: bool = False) -> bool:
        """Say whether a state lies as its parameter does; raise if it has another shape, or no memory."""
        here = check_memory(what, value)
        if of_rows:
            self.check_rows_shape(what, tuple(value.shape))
            return here.is_contiguous()
        if value.shape != self.given.shape or here.shape != self.tensor.shape:
            raise ValueError(f"{what} has shape {tuple(value.shape)}, its parameter {tuple(self.given.shape)}")
        array = array_of(here)
        return array.size == 0 or self.layout.is_dense(array)

    def fitted_master(self, value: Any, copy: bool = False) -> Any:
        """Return a remainder in the parameter's layout, the given one if it fits; a new one if it cannot be converted.

        torch.optim casts remainders to the parameter's dtype when it loads them: these are of no more use.
        """
        found = str(getattr(value, "dtype", "")).removeprefix("torch.")
        if not is_convertible(found, self.master):
            return self.new_state(0.0, self.master)
        if self._fits(f"the {MASTER} of {self}", value) and found == self.master and not copy:
            return value
        fitted = self.new_state(0.0, self.master)
        given = fitted if found == self.master else self.new_state(0.0, "int16")
        with torch.no_grad():
            given.copy_(value)
            if given is not fitted:
                local(fitted).copy_(converted(local(given), found, self.master))
        return fitted

    @property
    def elements(self) -> int:
        """How many elements the whole parameter has, also those that other processes hold."""
        return int(self.given.numel())

    @property
    def part(self) -> int:
        """Which part of the whole parameter this process has; copies are the same part."""
        return part_of(self.given)

    def torch_dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a state's tensor."""
        found: torch.dtype = self.tensor.dtype if self.is_complex else getattr(torch, self.float_dtype(name))
        return found

    def float_dtype(self, name: str) -> str:
        """Return the dtype of a state's numbers, before they are encoded in 8 bits, if they are."""
        dtype = self.state_dtype(name)
        return "float32" if dtype in CODES else dtype

    def new_numbers(self, value: float) -> Any:
        """Allocate a state that has one number for each row."""
        real = getattr(torch, DTYPES[self.dtype].real_name)
        with torch.inference_mode(False):
            return torch.full(self.rows_shape, value, dtype=real, device=self.tensor.device)

    def new_scales(self, value: float) -> Any:
        """Allocate the scales of a state's blocks, those of the local part."""
        with torch.inference_mode(False):
            return torch.full((blocks(self.array.size),), value, dtype=torch.float32, device=self.tensor.device)

    def in_order(self, gradient: Tensor) -> Tensor:
        """Copy a gradient into the parameter's storage order."""
        if self.device.on_gpu and torch.cuda.is_current_stream_capturing():
            raise not_in_captures(self, "torch")
        with torch.no_grad():
            return torch.empty_like(self.updated, requires_grad=False).copy_(gradient)

    def new_state(self, value: float, dtype: str) -> Any:
        """Allocate a state in the parameter's layout, distributed if the parameter is."""
        with torch.inference_mode(False), torch.no_grad():
            fill = complex(value, value) if self.tensor.is_complex() else value
            like = self.given if is_distributed(self.given) else self.updated
            kind = self.tensor.dtype if self.is_complex else getattr(torch, dtype)
            return torch.full_like(like, fill, dtype=kind, requires_grad=False)

    def new_average(self) -> Any:
        """Allocate the parameter's average, which starts at the parameter."""
        average = self.new_state(0.0, self.state_dtype(EMA))
        with torch.no_grad():
            average.copy_(value_of(self.given, self.state[MASTER]) if MASTER in self.states else self.given)
        return average

    def new_states(self, rule: Rule, averages: bool = False) -> dict[str, Array]:
        """Allocate what the parameter lacks of the states that a rule needs, and of the average if that is kept."""
        self.allocated = super().new_states(rule, averages)
        return {name: held_array(local(tensor)) for name, tensor in self.allocated.items()} or NOTHING

    def keep(self, states: Any) -> None:
        """Keep the states that were allocated last."""
        super().keep(states)
        self.state.update(self.allocated)
        self.allocated = NOTHING
        self.registry[self.given] = self.state
        self.show_count()

    def show_count(self) -> None:
        """Make the count part of the state, at the front as in torch."""
        if self.counts is not None:
            counts = self.counts.of(self.place)
            others = {name: value for name, value in self.state.items() if name not in counts}
            self.state.clear()
            self.state.update({**counts, **others})

    def drop(self, names: Iterable[str]) -> None:
        """Drop states that no step has written."""
        super().drop(names)
        counts = () if self.states or self.counts is None else self.counts.names
        for name in (*names, *counts):
            self.state.pop(name, None)
        if not self.state:
            self.registry.pop(self.given, None)


def dtype_of_gradient(given: Any) -> torch.dtype:
    """Return the dtype of a parameter's gradient or, where there is none, of what backward will make."""
    asked = getattr(given, "grad_dtype", None) if given.is_leaf else None  # None is any dtype
    found: torch.dtype = given.grad.dtype if given.grad is not None else asked or given.dtype
    return found


def value_of(given: Any, remainder: Any = None) -> Any:
    """Return a copy of a parameter as kernels compute with it: in float32 if it has 16 bits, with its remainder."""
    with torch.inference_mode(False), torch.no_grad():
        if given.dtype not in (torch.float16, torch.bfloat16):
            return given.detach().clone()
        found = torch.empty_like(given, dtype=torch.float32, requires_grad=False)
        if remainder is None:
            found.copy_(given)
        else:
            local(found).copy_(joined(local(given).detach(), local(remainder)))
        return found


def joined(param: Tensor, remainder: Tensor) -> Tensor:
    """Return masters, from parameters of 16 bits and their remainders."""
    widened = param.float()
    if remainder.dtype is torch.float32:
        return torch.where(remainder.half().view(torch.int16) == param.view(torch.int16), remainder, widened)
    shift = 16 - 8 * remainder.itemsize
    masters = ((param.view(torch.int16).int() << 16) + (remainder.int() << shift)).view(torch.float32)
    return torch.where(masters.isnan(), widened, masters)


def plain(value: Any) -> Any:
    """Return the number in a tensor of one element; anything else unchanged."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def whole_number(what: str, value: Any) -> int:
    """Return a step count as an int; torch keeps it as a tensor of floats."""
    number = plain(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return Count(limit=2**53).check(what, number)  # where float64 stops counting
