"""Objects that users pass as arrays, of any library: what they are, where they are, and what to pass instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from numbers import Number
from typing import Any

import numpy as np

from ..kernels.reader import Array

# What has one of these is an array, whatever else it is.
ONE_ARRAY = ("__array__", "__array_interface__", "__cuda_array_interface__", "__dlpack__", "toarray")


def is_one_array(value: Any) -> bool:
    """Say whether something is one array, of any library, and not a container of arrays."""
    return any(hasattr(type(value), name) for name in ONE_ARRAY)


def kind(value: Any) -> str:
    """Name the type of something, with its library."""
    module = type(value).__module__.split(".")[0]
    name = type(value).__name__ if module == "builtins" else f"{module}.{type(value).__name__}"
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def is_tensor(value: Any) -> bool:
    """Say whether something is a tensor of torch, or made of some, which may not be installed."""
    return any(cls.__module__.split(".")[0] == "torch" for cls in type(value).__mro__)


def dlpack_device(value: Any) -> int | None:
    """Return DLPack's code of something's device type; None if it has none."""
    if hasattr(value, "__dlpack_device__"):
        with contextlib.suppress(ValueError, RuntimeError):  # torch's meta device, which DLPack does not know
            code: int = value.__dlpack_device__()[0]
            return code
    return None


CUDA = (2, 13)  # DLPack's codes of a GPU's memory, the second one's managed by the driver


def is_on_device(value: Any) -> bool:
    """Say whether something is an array in a GPU's memory, of any library."""
    if isinstance(value, np.ndarray):
        return False
    # DLPack first: a tensor of torch that requires a gradient raises when asked for the CUDA interface.
    return dlpack_device(value) in CUDA or hasattr(value, "__cuda_array_interface__")


def is_array(value: Any) -> bool:
    """Say whether something is one array, and not several."""
    return isinstance(value, np.ndarray) or is_on_device(value)


def borrowed(given: Any) -> Array:
    """Return an array over another object's memory on the CPU, for reading, without a copy.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        If it offers none, or none that NumPy knows.
    """
    try:
        view = memoryview(given)
    except TypeError:
        if not hasattr(given, "__dlpack__"):
            raise
        if is_tensor(given) and (given.is_neg() or given._is_zerotensor()):
            raise BufferError("its memory does not hold its numbers") from None  # which torch's DLPack does not say
        array: Array = np.from_dlpack(given)
        return array
    return np.asarray(view)


def to_update(value: Any) -> str:
    """Say what to pass instead of something that cannot be updated."""
    if value is None:
        return "leave it out"
    if is_tensor(value):
        if hasattr(value, "detach"):
            return "fastopt.torch trains tensors; here, pass .detach().numpy() of it, which shares its memory"
        return "fastopt.torch trains tensors: pass .parameters() of it to an optimizer there"
    if isinstance(value, Iterator):
        return "pass a list of what it makes"
    if (make := _as_array(value, "np.array")) is not None:
        return f"pass {make}, and train that"
    return "pass the arrays themselves, in lists or dicts if there are several"


def to_read(value: Any, dtype: np.dtype[Any]) -> str:
    """Say what to pass instead of something that cannot be read as this dtype."""
    if is_tensor(value) and hasattr(value, "detach"):
        bits = f".view(torch.int16).numpy(force=True).view({spelled(dtype.name)})"
        return f"pass .to(torch.{dtype.name}){bits if dtype.name == 'bfloat16' else '.numpy(force=True)'} of it"
    return f"pass {_as_array(value, 'np.asarray', spelled(dtype.name)) or 'an array of NumPy'}"


def spelled(dtype: str) -> str:
    """Return a dtype, by its name, as one writes it in Python."""
    return f"{'ml_dtypes' if dtype == 'bfloat16' else 'np'}.{dtype}"


def to_clip(value: Any) -> str:
    """Say what to pass instead of something whose elements cannot be multiplied in place."""
    if is_tensor(value):
        return "fastopt.torch.clip_grad_norm_ clips the gradients of parameters of torch"
    return f"pass {_as_array(value, 'np.array') or 'an array of NumPy'}, and use that"


def _as_array(value: Any, make: str, dtype: str = "np.float32") -> str | None:
    """Say in Python how to make an array of something; None if that is not possible."""
    if hasattr(value, "toarray"):
        return ".toarray() of it"
    if hasattr(value, "get") and hasattr(value, "__cuda_array_interface__"):
        return ".get() of it"
    if hasattr(value, "numpy") and not hasattr(value, "__array__"):
        return f"{make}(..., {dtype}) of its .numpy()"
    numbers = isinstance(value, Number) or (isinstance(value, Sequence) and not isinstance(value, (str, bytes)))
    return f"{make}(..., {dtype}) of it" if numbers or is_one_array(value) else None


def as_floats(array: Array) -> str:
    """Say how to make an array of another dtype one that can be updated."""
    if array.dtype.kind == "c":
        return "pass .view(np.float32) of it, or of its .astype(np.complex64), and train that, pairs of real numbers"
    if array.dtype.names is not None:
        return "pass its fields, {name: array[name].astype(np.float32) for name in array.dtype.names}, and train those"
    if array.dtype == object and any(isinstance(entry, np.ndarray) for entry in array.flat):
        return "pass .tolist() of it, and train the arrays in that list"
    return "make it once with .astype(np.float32) and train that"
