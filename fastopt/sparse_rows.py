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

    Raises
    ------
    TypeError
        If they are not arrays of NumPy of such dtypes.
    ValueError
        If their shapes do not go together.

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
        if not isinstance(indices, np.ndarray) or indices.dtype not in INDICES:
            raise TypeError(f"indices must be an array of NumPy of int32 or int64, not {described(indices)}")
        if not isinstance(values, np.ndarray):
            raise TypeError(
                f"values must be an array of NumPy, not {described(values)}: a table on a GPU takes a dense gradient"
            )
        if values.ndim <= indices.ndim or values.shape[: indices.ndim] != indices.shape:
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
            raise TypeError(f"the gradient must be an array of NumPy, not {described(gradient)}")
        if gradient.ndim < 2:
            raise ValueError(f"the gradient has shape {gradient.shape}: a table has two axes or more")
        rows = np.flatnonzero((gradient != 0).any(axis=tuple(range(1, gradient.ndim))))
        return cls(rows, gradient[rows])

    def coalesce(self) -> SparseRows:
        """Return the same gradient with each row once, in the order of rows; values of 16 bits become float32.

        Raises
        ------
        TypeError
            If the values are of a dtype that no gradient has.
        ValueError
            If an index is negative.
        """
        from .step.sparse import Given  # numba is imported when it is first needed

        once = Given.of("the gradient", self.indices, self.values).coalesced()
        return SparseRows(once.rows, once.values.reshape(len(once.keys), *self.values.shape[self.indices.ndim :]))

    def __repr__(self) -> str:
        """Say how many rows there are, and of what."""
        row = self.values.shape[self.indices.ndim :]
        return f"SparseRows({self.indices.size} rows of shape {row}, {self.values.dtype})"


def described(value: Any) -> str:
    """Name the type of something, with its dtype if it has one."""
    kind = f"{type(value).__module__.split('.')[0]}.{type(value).__name__}".removeprefix("builtins.")
    return f"{kind} of {value.dtype}" if hasattr(value, "dtype") else kind
