"""A gradient of which only some rows are not zero, as users give it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernels.reader import Array

INDICES = (np.dtype(np.int32), np.dtype(np.int64))


class SparseRows:
    """The gradient of a table of which only some rows are not zero: ``values[k]`` belongs to row ``indices[k]``.

    A step touches these rows and no others, so that its time grows with them and not with the table. Values whose
    indices are the same add up, in the order in which they come.

    Parameters
    ----------
    indices : ndarray of int32 or int64, any shape
        Rows of the table, the first axis of an array with two axes or more; in any order, none of them negative.
    values : ndarray, shape ``(*indices.shape, *table.shape[1:])``
        Of the table's dtype, or of another that its gradients may have. Both are only read, and neither is copied.
        Both are on the GPU of a table that is on one.

    Raises
    ------
    TypeError
        If they are not arrays of such dtypes, both of NumPy or both of CuPy.
    ValueError
        If their shapes do not go together.

    Notes
    -----
    On the CPU, a step with an index that is no row of the table raises ValueError, and changes nothing. On a GPU, where
    looking would wait, such a step changes nothing and is not counted, and ValueError comes with a later step, or with
    whatever waits for the GPU: states, counts, a state dict.

    See Also
    --------
    fastopt.Adagrad : The rule that was made for them.

    Examples
    --------
    >>> table = np.zeros((1_000_000, 64), np.float32)
    >>> opt = fastopt.Adagrad(table, lr=0.1)
    >>> opt.step(fastopt.SparseRows(np.array([3, 5, 3]), np.ones((3, 64), np.float32)))
    """

    __slots__ = ("indices", "values")

    def __init__(self, indices: Array, values: Array) -> None:
        for name, array in (("indices", indices), ("values", values)):
            if isinstance(array, np.ma.MaskedArray):
                raise TypeError(f"{name} are a masked array, whose mask a step would ignore: pass its .filled()")
            if not (isinstance(array, np.ndarray) or is_of_cupy(array)):
                raise TypeError(f"{name} must be an array of NumPy or CuPy, not {described(array)}")
        if indices.dtype not in INDICES:
            raise TypeError(f"indices must be an array of int32 or int64, not {described(indices)}")
        if isinstance(indices, np.ndarray) != isinstance(values, np.ndarray):
            raise TypeError("one of indices and values is on a GPU and the other is not: pass both where the table is")
        axes = len(indices.shape)
        if len(values.shape) <= axes or values.shape[:axes] != indices.shape:
            raise ValueError(
                f"values have shape {values.shape}, indices {indices.shape}: values must have the axes of indices, and "
                "then those of a row, one at least"
            )
        self.indices = indices
        self.values = values

    @classmethod
    def from_dense(cls, gradient: Array) -> SparseRows:
        """Take the rows of a gradient that are not zero.

        Parameters
        ----------
        gradient : ndarray, 2 axes or more

        Returns
        -------
        SparseRows
            Copies of these rows, in order; NaN is not zero.

        Raises
        ------
        TypeError, ValueError
            If it is not such an array.
        """
        if not isinstance(gradient, np.ndarray):
            raise TypeError(
                f"the gradient must be an array of NumPy, not {described(gradient)}: finding its rows on a GPU "
                "waits; if it may, pass SparseRows(rows, g[rows]), rows = cupy.flatnonzero((g != 0).any(axis=1))"
            )
        if gradient.ndim < 2:
            raise ValueError(f"the gradient has shape {gradient.shape}: a table has two axes or more")
        rows = np.flatnonzero((gradient != 0).any(axis=tuple(range(1, gradient.ndim))))
        return cls(rows, gradient[rows])

    def coalesce(self) -> SparseRows:
        """Return the same gradient with each row once, in the order of rows; values of 16 bits become float32.

        Raises
        ------
        TypeError
            If the values are of a dtype that no gradient has, or on a GPU.
        ValueError
            If an index is negative.
        """
        from .step.sparse import Given  # numba is imported when it is first needed

        if not isinstance(self.values, np.ndarray):
            raise TypeError("these rows are on a GPU, where counting them would wait: a step adds them up itself")
        once = Given.of("the gradient", self.indices, self.values).coalesced()
        return SparseRows(once.rows, once.values.reshape(len(once.keys), *self.values.shape[self.indices.ndim :]))

    def __repr__(self) -> str:
        """Say how many rows there are, and of what."""
        row = self.values.shape[len(self.indices.shape) :]
        return f"SparseRows({self.indices.size} rows of shape {row}, {self.values.dtype})"


def is_of_cupy(value: Any) -> bool:
    """Say whether something is an array on a GPU with dtypes of NumPy, as CuPy's are."""
    return isinstance(getattr(value, "dtype", None), np.dtype) and hasattr(value, "__cuda_array_interface__")


def described(value: Any) -> str:
    """Name the type of something, with its dtype if it has one."""
    kind = f"{type(value).__module__.split('.')[0]}.{type(value).__name__}".removeprefix("builtins.")
    return f"{kind} of {value.dtype}" if hasattr(value, "dtype") else kind
