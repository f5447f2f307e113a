"""What a tensor must be before its address is taken, and how its memory is seen as an array."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .. import plan
from ..arrays import Layout, described, owner_of
from ..checks import Count
from ..kernels.reader import Array
from ..kernels.tensors import DEVICES, untrack
from ..plan import NOTHING
from ..rules import Family, Rule
from .devices import place_of
from .groups import Group

# What a kernel is compiled for: complex numbers are pairs of reals.
FORMATS = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.complex64: "float32",
    torch.complex128: "float64",
}
HALF = (torch.float16, torch.bfloat16)


def state_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's states: its own, but float32 for half precision, where sums would be lost."""
    return torch.float32 if tensor.dtype in HALF else tensor.dtype


def is_distributed(tensor: Any) -> bool:
    """Say whether a tensor is a DTensor; where nobody has imported these, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Any:
    """Return the part of a distributed tensor that is here; anything else as it is."""
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def check_memory(what: str, tensor: Any) -> Tensor:
    """Return the tensor, here, of what must be a tensor with ordinary memory on the CPU."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} is a {type(tensor).__name__}, not a tensor")
    here: Tensor = local(tensor)
    if type(here).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(f"{what} is a {type(here).__name__}, whose memory is its own affair: use torch.optim for it")
    if here.layout is not torch.strided:
        raise ValueError(f"{what} has the layout {here.layout}: pass .to_dense() of it")
    if here.device.type not in DEVICES:
        raise ValueError(
            f"{what} is on {here.device}: tensors on the CPU and on CUDA devices can be updated; use torch.optim there"
        )
    if here._is_zerotensor():
        raise ValueError(f"{what} is a ZeroTensor, which has no memory: pass a .clone() of it")
    if here.numel() and not has_memory(here):
        raise ValueError(f"{what} has a storage that is too small for it, or was given back: nothing can be there")
    return here


def has_memory(tensor: Tensor) -> bool:
    """Say whether a tensor's storage is large enough for it, which torch checks whenever it makes a view.

    ``untyped_storage`` would know, but is an object more for the garbage collector, as long as the storage lives.
    """
    try:
        tensor.as_strided(tensor.shape, tensor.stride())
    except RuntimeError:
        return False
    return True


def array_of(tensor: Tensor) -> Array:
    """Describe a tensor's memory as an array: pairs of reals for complex numbers, bits for bfloat16.

    Of memory on a GPU, the array only says how it lies. `Tensor.numpy` would do on the CPU, but after that torch
    refuses to resize the storage, for good.
    """
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain).detach()  # else it is a view, which holds what it is a view of
    elif plain.dtype is torch.bfloat16:
        plain = plain.view(torch.int16).detach()
    size = plain.itemsize
    strides = [stride * size for stride in plain.stride()]
    return described(plain, plain.data_ptr(), numpy_dtype(plain.dtype), plain.shape, strides)


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return NumPy's dtype of that name."""
    return np.dtype(str(dtype).removeprefix("torch."))


def alias_of(array: Array) -> Tensor:
    """Return the tensor behind an array of `array_of`, which shares memory and count of writes with the given one."""
    alias: Tensor = owner_of(array)
    return alias


def held_array(tensor: Tensor) -> Array:
    """View a parameter or a state as an array that keeps its memory, also where the tensor is given other memory.

    An alias of our own keeps it. Nobody else has that, so it is in no cycle, and the garbage collector need not see it.
    """
    array = array_of(tensor)
    alias = alias_of(array)
    if type(alias) is Tensor:
        untrack(alias)
        untrack(array.base)
    return array


def is_dense(array: Array, layout: Layout) -> bool:
    """Say whether an array fills its memory in the storage order of a layout."""
    return bool(array.flags.aligned and layout.in_storage_order(array).flags.c_contiguous)


def overlaps_itself(array: Array) -> bool:
    """Say whether two elements of an array may be one in memory."""
    reach = array.itemsize
    for length, stride in sorted(zip(array.shape, array.strides, strict=True), key=lambda axis: abs(axis[1])):
        if length > 1:
            if abs(stride) < reach:
                return True
            reach += (length - 1) * abs(stride)
    return False


class Parameter(plan.Tensor):
    """One parameter of an optimizer of torch, with its memory and that of its states.

    Attributes
    ----------
    given : tensor
        The parameter as torch holds it, perhaps distributed.
    tensor : tensor
        The part of it that is here.
    updated : tensor
        What is updated: the same, or, where that has gaps, a dense copy, which is copied back.
    registry, state : dict
        The states of all parameters in torch, and this one's.
    count : tensor or None
        The count of its steps, where that is part of the state.
    """

    __slots__ = ("allocated", "count", "given", "original", "registry", "state", "tensor", "updated")

    def __init__(self, key: Any, given: Any, group: Group, registry: dict[Any, dict[str, Any]]) -> None:
        self.key = key
        self.given = given
        self.count: Tensor | None = None
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
        if self.tensor.dtype not in FORMATS:
            supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in FORMATS)
            raise TypeError(f"{self} has dtype {self.tensor.dtype}; {supported} can be updated")
        if self.tensor.is_conj() or self.tensor.is_neg():
            raise ValueError(f"{self} is a view that conjugates or negates: make it with .resolve_conj().resolve_neg()")
        self.original = array = held_array(self.tensor)
        if self.original.size and overlaps_itself(self.original):
            raise ValueError(f"elements of {self} may overlap each other in memory: pass a .clone() of it")
        self.updated = self.tensor
        if not is_dense(self.original, Layout(self.original)):
            self.updated = torch.empty_like(self.tensor, requires_grad=False)
            array = held_array(self.updated)
        super().__init__(key, array, Layout(array), FORMATS[self.tensor.dtype], group, place_of(self.tensor))

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Iterate over all that an update writes, with names for messages."""
        yield str(self), self.original
        for name, array in self.states.items():
            yield f"the {name} of {self}", array

    def written(self) -> list[Any]:
        """Return the tensors that an update writes, as torch holds them."""
        return [self.given, *(self.state[name] for name in self.states)]

    def counted(self) -> list[Any]:
        """Return tensors that share their counts of writes with these, and with the parts that are here."""
        return [*map(alias_of, (self.original, *self.states.values())), *filter(is_distributed, self.written())]

    @property
    def has_gaps(self) -> bool:
        """Whether a copy is updated in the tensor's place."""
        return self.updated is not self.tensor

    def load(self) -> None:
        """Bring the copy up to date."""
        self.updated.copy_(self.tensor.detach())

    def store(self) -> None:
        """Bring the parameter up to the copy; torch notes that it was written."""
        with torch.no_grad():
            self.tensor.copy_(self.updated)

    def adopt(self, family: Family) -> None:
        """Take the states that torch holds, in the dtype and the order in which they are updated."""
        found = [name for name in family.states if self.state.get(name) is not None]
        if family.counts:
            self._check_count(found, family)
        for name in found:
            self.state[name] = self.fitted(name, self.state[name])
            self.states[name] = held_array(local(self.state[name]))

    def _check_count(self, found: list[str], family: Family) -> None:
        """Raise where one of count and states is there without the other: counted from 0, averages would be too large.

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
        if self.step and missing:
            raise ValueError(
                f"the state of {self} has {self.step} steps, but no {' and no '.join(missing)}, without which it "
                f"cannot go on: put that there, or take 'step' out as well"
            )

    def fitted(self, name: str, value: Any, copy: bool = False) -> Any:
        """Return a state that lies as the parameter does: the given one, or a copy where it does not, or is asked for.

        Raises
        ------
        TypeError, ValueError
            If it cannot be this parameter's.
        """
        what = f"the {name} of {self}"
        here = check_memory(what, value)
        if value.shape != self.given.shape or here.shape != self.tensor.shape:
            raise ValueError(f"{what} has shape {tuple(value.shape)}, its parameter {tuple(self.given.shape)}")
        if here.is_complex() != self.tensor.is_complex() or not (here.is_complex() or here.is_floating_point()):
            raise TypeError(f"{what} has dtype {here.dtype}, which {self.tensor.dtype} has no use for")
        if here.dtype is state_dtype(self.tensor) and not copy and not (here.is_conj() or here.is_neg()):
            array = array_of(here)
            if array.size == 0 or is_dense(array, self.layout):
                return value
        fitted = self.new_state(0.0)
        with torch.no_grad():
            fitted.copy_(value)
        return fitted

    def new_state(self, value: float) -> Any:
        """Allocate a state that lies as the parameter does, distributed where it is."""
        with torch.inference_mode(False), torch.no_grad():
            fill = complex(value, value) if self.tensor.is_complex() else value
            like = self.given if is_distributed(self.given) else self.updated
            return torch.full_like(like, fill, dtype=state_dtype(self.tensor), requires_grad=False)

    def new_states(self, rule: Rule) -> dict[str, Array]:
        """Allocate what a rule needs and the parameter does not have."""
        self.allocated = super().new_states(rule)
        return {name: held_array(local(tensor)) for name, tensor in self.allocated.items()} or NOTHING

    def keep(self, states: Any) -> None:
        """Take the states that were allocated last."""
        super().keep(states)
        self.state.update(self.allocated)
        self.allocated = NOTHING
        self.registry[self.given] = self.state
        self.show_count()

    def show_count(self) -> None:
        """Make the count part of the state; in torch's order, the first one there."""
        if self.count is not None:
            others = {name: value for name, value in self.state.items() if name != "step"}
            self.state.clear()
            self.state.update({"step": self.count, **others})

    def drop(self, names: Iterable[str]) -> None:
        """Give up states that no step has written."""
        super().drop(names)
        for name in names if self.states else (*names, "step"):
            self.state.pop(name, None)
        if not self.state:
            self.registry.pop(self.given, None)


def whole_number(what: str, value: Any) -> int:
    """Return a count of steps, which torch keeps as a tensor of floats."""
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    return Count(limit=2**53).check(what, plain)  # beyond, float64 does not count


def is_shared(state: Any) -> bool:
    """Say whether a state lies in memory that processes share, so that each of them works there.

    Of CUDA tensors torch says so always.
    """
    if not isinstance(state, Tensor) or state.device.type != "cpu" or state.is_inference():
        return False
    if state.layout is not torch.strided or type(state).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    return bool(state.is_shared())  # type: ignore[no-untyped-call]  # torch's own


class Counts:
    """The counts of steps, where they are part of a state of torch: each a tensor of its own, all in one table.

    float64 counts exactly up to 2**53, and torch.optim takes it over; its own float32 stops at 2**24. Counts that
    processes share stay what they are, and are counted there as well.
    """

    def __init__(self, parameters: list[Parameter]) -> None:
        with torch.inference_mode(False):
            self.table = torch.tensor([parameter.step for parameter in parameters], dtype=torch.float64, device="cpu")
        self.tensors = list(self.table.unbind())
        self.shared: dict[int, Tensor] = {}
        for i, (parameter, tensor) in enumerate(zip(parameters, self.tensors, strict=True)):
            given: Any = parameter.state.get("step")
            if is_shared(given):
                self.shared[i] = given
            parameter.count = self.shared.get(i, tensor)
            if parameter.states or "step" in parameter.state:  # else with its first gradient, as in torch
                parameter.show_count()
        self.array: Array = self.table.numpy()
        self.expected = self.array.copy()  # to see whether anybody else has written there

    @property
    def counted_elsewhere(self) -> bool:
        """Whether another process has counted meanwhile."""
        return any(float(count) != self.expected[i] for i, count in self.shared.items())

    def take(self, parameters: list[Parameter]) -> None:
        """Take the counts of the parameters, but where somebody has written another, which the next step will find."""
        written = self.array != self.expected
        self.expected[:] = [parameter.step for parameter in parameters]
        self.array[:] = np.where(written, self.array, self.expected)

    def count(self, which: Any) -> None:
        """Count a step of those that took part."""
        before = self.expected.copy() if self.shared else self.expected
        self.array[which] += 1
        self.expected[which] += 1
        if self.shared:
            self._count_shared(self.expected - before)

    def _count_shared(self, steps: Array) -> None:
        with torch.no_grad():
            for i, count in self.shared.items():
                count += int(steps[i])
