"""A stand-in for CuPy, on the devices of `cuda_stand_in`: as much as fastopt and its benchmark use; no tests here.

It is at least as strict as CuPy: what it accepts, CuPy accepts. Its arrays are in `arrays_stand_in`, its kernels in
`kernels_stand_in`.
"""

import functools
import types

import numpy as np
from arrays_stand_in import allocated, apply, copied, ndarray
from arrays_stand_in import fuse as fuse
from cuda_stand_in import cuda as cuda
from cuda_stand_in import get_current_stream, runtime
from kernels_stand_in import ElementwiseKernel as ElementwiseKernel
from kernels_stand_in import RawKernel as RawKernel
from kernels_stand_in import RawModule as RawModule

sin, sqrt, multiply, divide = (functools.partial(apply, each) for each in (np.sin, np.sqrt, np.multiply, np.divide))
minimum, less, isinf, isfinite = (
    functools.partial(apply, each) for each in (np.minimum, np.less, np.isinf, np.isfinite)
)


def asarray(value):
    """Return an array on the current device: one that is there already, or a copy, which is made when a stream comes.

    CuPy copies what is on the host into a buffer of its own first, so that it may change afterwards.
    """
    if isinstance(value, Foreign):
        return ndarray(value.array)
    if isinstance(value, ndarray):
        return value if value.device.id == runtime.getDevice() else value.copy()
    host = np.array(value)
    new = allocated(host.shape, host.dtype, "F" if host.flags.fnc else "C")
    copied(new, host)
    return ndarray(new)


def asnumpy(array):
    """Return a copy on the host."""
    return array.get()


def empty(shape, dtype=np.float64):
    """Return an array of whatever was there: no numbers."""
    return ndarray(allocated(shape, dtype))


def zeros(shape, dtype=np.float64):
    """Return zeros; written when the stream gets there."""
    return full(shape, 0, dtype)


def zeros_like(array, dtype=None):
    """Return zeros that lie as another array does, which is dense, in C's order or in Fortran's."""
    flags = array.host.flags
    assert flags.forc
    new = allocated(array.shape, dtype or array.dtype, "F" if flags.fnc else "C")
    copied(new, 0, "fill")
    return ndarray(new)


def full(shape, value, dtype=np.float64):
    """Return an array of one value; written when the stream gets there."""
    new = allocated(shape, dtype)
    copied(new, value, "fill")
    return ndarray(new)


def arange(stop, dtype):
    """Return the numbers below one."""
    new = allocated(stop, dtype)
    copied(new, np.arange(stop, dtype=dtype), "cupy_arange")
    return ndarray(new)


def sum(array):
    """Return the sum of float64 numbers, a 0-d array; written when the stream gets there."""
    assert array.dtype == np.float64
    new = allocated((), np.float64)
    get_current_stream().put(lambda: np.copyto(new, array.host.sum()), "cupy_sum")
    return ndarray(new)


def where(condition, x, y):
    """Return elements of x or y, arrays of one dtype and shape; written when the stream gets there."""
    assert condition.dtype == bool
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    new = allocated(x.shape, x.dtype)
    get_current_stream().put(lambda: np.copyto(new, np.where(condition.host, x.host, y.host)), "cupy_where")
    return ndarray(new)


def from_dlpack(value):
    """Return a view of what another library has on the device."""
    return ndarray(value.array)


def get_default_memory_pool():
    """Return the pool: all of its blocks that nobody uses are given back at once here."""
    return types.SimpleNamespace(free_all_blocks=lambda: None)


class Foreign:
    """An array of another library, with an interface of CUDA."""

    def __init__(self, array, readonly=False):
        self.array, self.readonly = array, readonly

    @property
    def __cuda_array_interface__(self):
        interface = self.array.__array_interface__
        return {**interface, "data": (interface["data"][0], self.readonly), "version": 3}


class DLPackOnly:
    """An array of another library, which has nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **options):
        raise AssertionError("the stand-in reads it otherwise")
