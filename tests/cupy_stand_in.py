"""A stand-in for CuPy, on the devices of `cuda_stand_in`: as much as fastopt uses, and stricter; no tests here.

Kernels are the ones that CuPy would compile, built by g++ (`host_cuda`). A launch records the bytes of its arguments,
and runs when its stream is synchronised, not before.
"""

import functools
import re
import types

import host_cuda
import numpy as np
from cuda_stand_in import WORLD, Device, follow, get_current_stream, runtime, synchronize_all
from cuda_stand_in import cuda as cuda


class Kernel:
    """A compiled kernel."""

    def __init__(self, name):
        self.name = name

    def __call__(self, grid, block, args):
        (argument,) = args
        (blocks,), (threads,) = grid, block
        copied = argument.copy()  # as cuLaunchKernel copies it
        device, stream = runtime.getDevice(), get_current_stream()
        WORLD.launches.append((self.name, copied, device, stream.ptr))

        def work():
            follow(self.name, host_cuda.addresses(self.name, copied[0]))
            if self.name in host_cuda.UPDATES:
                follow(self.name, host_cuda.tables(copied[0], blocks))
            host_cuda.launch(self.name, copied, blocks, threads)

        stream.put(work, self.name)


class UserKernel:
    """A kernel of a source that is not fastopt's."""

    def __init__(self, library, name):
        self.library, self.name = library, name

    def __call__(self, grid, block, args):
        copied = [self.argument(given) for given in args]
        (blocks,), (threads,) = grid, block
        work = functools.partial(host_cuda.launched, self.library, self.name, copied, blocks, threads, seed=1)
        get_current_stream().put(work, self.name)

    @staticmethod
    def argument(given):
        """An argument as the kernel gets it: addresses of arrays, and scalars that have a type, as CuPy's are to."""
        if isinstance(given, ndarray):
            return np.array(given.data.ptr, np.uintp)
        if not isinstance(given, np.generic):
            raise TypeError(f"an argument without a type: {given!r}")
        return np.array(given)


class RawModule:
    """A source, of which kernels are taken by name: what `host_cuda` has compiled, or someone's own."""

    def __init__(self, *, code, options):
        self.code = code
        self.own = options == host_cuda.cuda.OPTIONS
        if not self.own:
            (standard,) = (option for option in options if option.startswith("-std"))
            flags = [option for option in options if option.startswith(("-I", "-D"))]
            self.library = host_cuda.compiled(code, standard, *flags)

    def get_function(self, name):
        assert re.search(rf"\b{name}\b", self.code)
        return Kernel(name) if self.own else UserKernel(self.library, name)


class ndarray:  # noqa: N801 (CuPy's name)
    """An array on a device. NumPy's functions cannot read it: `get` waits, and copies."""

    def __init__(self, host, device=None):
        self.host = host  # its memory
        self.device = device or Device(runtime.getDevice())
        self.dtype, self.shape, self.strides, self.size = host.dtype, host.shape, host.strides, host.size

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.host.__array_interface__["data"][0] if self.size else 0)

    @property
    def __cuda_array_interface__(self):
        return {**self.host.__array_interface__, "stream": None}

    def __getitem__(self, key):
        return ndarray(self.host[key], self.device)

    def __setitem__(self, key, value):
        view, source = self.host[key], value.host if isinstance(value, ndarray) else value
        get_current_stream().put(lambda: np.copyto(view, source), "copy")

    def transpose(self, axes):
        return ndarray(self.host.transpose(axes), self.device)

    def copy(self, order="C"):
        """Return a copy, written when the stream gets there."""
        new = np.empty_like(self.host, order=order)
        get_current_stream().put(lambda: np.copyto(new, self.host), "copy")
        return ndarray(new, self.device)

    def __del__(self):
        synchronize_all()  # a pool of CuPy's has other uses for the memory once all streams are done with it

    def get(self):
        """Return a copy on the host."""
        synchronize_all()
        return self.host.copy()


def asarray(value):
    """Return an array on the device: a view of one that is there already, a copy of one that is not."""
    if isinstance(value, ndarray):
        return value
    if isinstance(value, Foreign):
        return ndarray(value.array)
    return ndarray(np.array(value))


def zeros(shape, dtype=np.float64):
    """Return zeros; written when the stream gets there."""
    return full(shape, 0, dtype)


def full(shape, value, dtype=np.float64):
    """Return an array of one value; written when the stream gets there."""
    array = np.full(shape, 77, dtype)
    get_current_stream().put(lambda: array.fill(value), "fill")
    return ndarray(array)


def from_dlpack(value):
    """Return a view of what another library has on the device."""
    return ndarray(value.array)


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
