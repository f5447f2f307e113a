"""Imitations of other libraries' arrays, with only the protocols that these offer; no tests here."""

import numpy as np


class Exported:
    """An array that offers DLPack alone, read-only where NumPy's own export can say so."""

    def __init__(self, array):
        self.array = np.array(array)

    def __dlpack__(self, **options):
        view = self.array.view()
        if options.get("max_version", (0,)) >= (1, 0):  # before, there was no read-only
            view.flags.writeable = False
        return view.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Immutable(Exported):
    """An array like those of jax: copied by NumPy's functions, never written."""

    def __array__(self, dtype=None, copy=None):
        array = np.array(self.array, dtype)
        array.flags.writeable = bool(copy)
        return array

    def __len__(self):
        return len(self.array)

    def __iter__(self):
        return (Immutable(row) for row in self.array)


class Column:
    """A column of a table, as in pandas: NumPy's functions take it."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


class Lazy:
    """A tensor that is computed when somebody asks for its numbers, as in tinygrad."""

    def __init__(self, values):
        self.values = values

    def numpy(self):
        return np.array(self.values)
