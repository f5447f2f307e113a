"""What the gradients of a step have in common, whatever library they are of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..kernels.dtypes import dtype_name, goes_with
from ..kernels.reader import UNREAD, Array, address
from ..sparse_rows import SparseRows
from ..step.chunks import Strides, located
from ..step.memory import Extents
from .foreign import spelled

NOWHERE = 1  # the address of a sparse gradient without rows, which takes part all the same


def not_in_captures(parameter: Any, library: str) -> RuntimeError:
    """Return the error for a gradient that would have to be copied while a graph is captured."""
    return RuntimeError(
        f"the gradient of {parameter} does not lie in memory as its parameter does, and is copied, since states in 8 "
        f"bits have blocks: such a step cannot be captured; use a gradient made by {library}.empty_like(parameter)"
    )


def check_rows_of(what: str, given: SparseRows, other: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Check a sparse gradient against its table, in dtype and shape of a row."""
    found, rows = given.values.dtype, given.values.shape[len(given.indices.shape) :]
    name = dtype_name(found)
    if len(shape) < 2:
        raise ValueError(f"{what} is sparse, and {other} has shape {shape}: a table has two axes or more")
    if not (found.isnative and (name == dtype or goes_with(name, dtype))):
        name = name if found.isnative else f"{name} in foreign byte order"
        raise TypeError(f"{what} has dtype {name}, {other} {dtype}: pass .astype({spelled(dtype)}) of its values")
    if rows != shape[1:]:
        raise ValueError(f"{what} has rows of shape {rows}, {other} of {shape[1:]}: they must agree")


class StepGradients(ABC):
    """The gradients of one step: checks them against their parameters and keeps them alive; a plan's `Located`.

    Attributes
    ----------
    held : list
        The gradients, or what stands for them.
    copies : dict
        Index of a parameter whose states have blocks -> the gradient in its storage order, which the kernels read.
    sparse : dict
        Index of a parameter -> its sparse gradient, which takes no part in launches.
    there : mapping
        Index of a parameter on a GPU -> its sparse gradient, or that of a table whose states are of rows, which has a
        launch of its own.
    scale : float
        What sparse gradients are first multiplied by.
    advice : str
        What to do with one that overlaps what an update writes.
    """

    advice: ClassVar[str]
    held: list[Any]
    copies: dict[int, Any]
    addresses: npt.NDArray[np.int64]
    taking_part: bytes
    strided: dict[int, Strides]
    others: dict[int, str]
    sparse: dict[int, Any]
    there: Mapping[int, Any] = MappingProxyType({})
    scale = 1.0

    @property
    def are_checked_there(self) -> bool:
        """Whether a GPU checks indices of some, and may skip the step."""
        return not all(given.dense for given in self.there.values())

    def note_dtype(self, i: int, parameter: Any, dtype: str) -> None:
        """Note the dtype of a gradient, if it is another one than that of the last."""
        if dtype != parameter.gradient:
            self.others[i] = dtype

    def check_unread(self, parameters: Sequence[Any], extents: Extents) -> None:
        """Check the gradients whose addresses are UNREAD, and find out where they lie."""
        for i in (self.addresses == UNREAD).nonzero()[0].tolist():
            parameter = parameters[i]
            what = f"the gradient of {parameter}"
            array = self.checked(i, what, parameter)
            if array is not None and (other := extents.overlapping(array)) is not None:
                raise ValueError(f"{what} overlaps {other} in memory: {self.advice}")
            if array is not None and i in self.there:
                self.addresses[i] = address(array) or NOWHERE
                continue
            if array is None or parameter.rowwise:
                self.addresses[i] = 0
                continue
            self.addresses[i], strides = located(parameter.layout.in_storage_order(array))
            if strides is not None and parameter.has_codes:
                self.addresses[i] = address(parameter.layout.in_storage_order(self.in_order(i, parameter)))
            elif strides is not None:
                self.strided[i] = strides

    @abstractmethod
    def in_order(self, i: int, parameter: Any) -> Array:
        """Copy a gradient into its parameter's storage order, and return an array that describes the copy."""

    @abstractmethod
    def checked(self, i: int, what: str, parameter: Any) -> Array | None:
        """Check a gradient, and return an array that describes its layout; None if it takes no part in launches."""
