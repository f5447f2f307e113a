"""What a tensor of torch must be before its address is taken, and how its memory is seen as an array."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.dtypes import DTYPES, PAIRS, goes_with
from ...kernels.reader import Array
from ...kernels.tensors import DEVICES, untrack
from ...step.memory import described, owner_of

# What a kernel is compiled for: complex numbers are pairs of reals.
UPDATED = {getattr(torch, name): dtype for name, dtype in {**DTYPES, **PAIRS}.items()}


def fits(gradient: torch.dtype, parameter: torch.dtype) -> bool:
    """Say whether kernels for parameters of one dtype read gradients of another."""
    if gradient.is_complex or parameter.is_complex:
        return gradient is parameter
    return gradient in UPDATED and goes_with(UPDATED[gradient].name, UPDATED[parameter].name)


def is_distributed(tensor: Any) -> bool:
    """Say whether a tensor is a DTensor; where nobody has imported these, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def slots_of_distributed() -> tuple[Any, Any]:
    """Return the descriptors that return a DTensor's local part, and its spec."""
    slots = vars(sys.modules["torch.distributed.tensor"].DTensor)
    return slots["_local_tensor"], slots["_spec"]


def local(tensor: Any) -> Any:
    """Return the local part of a distributed tensor, without autograd; anything else unchanged.

    What a collective is still writing is waited for.
    """
    here = tensor._local_tensor if is_distributed(tensor) else tensor  # `to_local` returns a view of a parameter's
    collectives = sys.modules.get("torch.distributed._functional_collectives")
    if collectives is None or not isinstance(here, collectives.AsyncCollectiveTensor):
        return here
    return here.wait()


storage_address = getattr(torch._C, "_storage_address", lambda tensor: 0)


def behind(tensor: Tensor) -> tuple[int, int]:
    """Return where the objects of a tensor and of its storage lie in C++; 0 for a storage that is not its own."""
    return tensor._cdata, 0 if is_distributed(tensor) else storage_address(tensor)


def check_memory(what: str, tensor: Any) -> Tensor:
    """Check that this is a tensor with ordinary memory on the CPU or a GPU, and return its local part."""
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
        plain = torch.view_as_real(plain).detach()  # detached: a view would keep its base
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
    """Return the tensor behind an array of `array_of`, which shares memory and version counter with the given one."""
    alias: Tensor = owner_of(array)
    return alias


def held_array(tensor: Tensor) -> Array:
    """View a parameter or a state as an array that keeps the memory alive, even if the tensor is given other memory.

    Our own alias keeps it. Nobody else has that, so it is in no cycle, and the garbage collector need not visit it.
    """
    array = array_of(tensor)
    alias = alias_of(array)
    if type(alias) is Tensor:
        untrack(alias)
        untrack(array.base)
    return array
