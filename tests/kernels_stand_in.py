"""The stand-in's kernels, compiled from source by g++ (`host_cuda`); no tests here.

A launch records the bytes of its arguments, and runs when its stream is synchronised, not before.
"""

import functools
import re
import types

import host_cuda
import numpy as np
from arrays_stand_in import ndarray, operand
from cuda_stand_in import WORLD, CUDARuntimeError, follow, function, get_current_stream, runtime


class Kernel:
    """A compiled kernel; the driver knows it as a function, by its address."""

    def __init__(self, name):
        self.name = name
        self.kernel = types.SimpleNamespace(ptr=function(self.put, host_cuda.SIZES[name]))

    def __call__(self, grid, block, args):
        (argument,) = args
        (blocks,), (threads,) = grid, block
        if argument.nbytes > 4096 and get_current_stream().capturing:
            raise CUDARuntimeError("an argument of more than 4 KB in a capture")
        self.put(argument.tobytes(), blocks, threads, runtime.getDevice(), get_current_stream())

    def put(self, argument, blocks, threads, device, stream):
        """Put a launch on a stream; the bytes of its argument are a copy, as the driver makes one."""
        copied = np.frombuffer(argument, np.uint8)
        WORLD.launches.append((self.name, copied, device, stream.ptr))

        def work():
            follow(self.name, host_cuda.addresses(self.name, copied))
            if self.name in host_cuda.UPDATES or self.name in host_cuda.NORMS:
                follow(self.name, host_cuda.tables(self.name, copied, blocks))
            host_cuda.launch(self.name, copied.view(np.dtype((np.void, copied.nbytes))), blocks, threads)

        stream.put(work, self.name)


class UserKernel:
    """A kernel of a source that is not fastopt's."""

    def __init__(self, library, name):
        self.library, self.name = library, name

    @functools.cached_property
    def kernel(self):
        """What the driver knows, which takes one argument here."""
        size = host_cuda.size_of_arguments(self.library, self.name)
        return types.SimpleNamespace(ptr=function(self.launched, size))

    def launched(self, argument, blocks, threads, device, stream):
        """Put a launch by the driver on a stream."""
        self.put([np.frombuffer(argument, np.uint8)], blocks, threads, stream)

    def __call__(self, grid, block, args):
        (blocks,), (threads,) = grid, block
        self.put([self.argument(given) for given in args], blocks, threads, get_current_stream())

    def put(self, copied, blocks, threads, stream):
        """Put a launch on a stream; its arguments are copies."""
        work = functools.partial(host_cuda.launched, self.library, self.name, copied, blocks, threads, seed=1)
        stream.put(work, self.name)

    @staticmethod
    def argument(given):
        """An argument as the kernel gets it: addresses of arrays, structs, and scalars that have a type, for CuPy."""
        if isinstance(given, ndarray):
            return np.array(given.data.ptr, np.uintp)
        if isinstance(given, np.ndarray) and given.size == 1 and given.dtype.kind == "V":
            return given.copy()
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
        size = host_cuda.SIZES[name] if self.own else host_cuda.size_of_arguments(self.library, name)
        if size > 4096 and not (WORLD.nvrtc >= (12, 1) and WORLD.driver >= 12010):
            raise CUDARuntimeError("formal parameter space overflowed")
        return Kernel(name) if self.own else UserKernel(self.library, name)


class RawKernel:
    """A kernel that only a GPU could run: it is put on the stream with its arguments, and does nothing there."""

    def __init__(self, code, name):
        assert re.search(rf"__global__ void {name}\(", code)
        self.name = name

    def __call__(self, grid, block, args):
        (_,), (_,) = grid, block
        arguments = [UserKernel.argument(given) for given in args]
        get_current_stream().put(lambda: arguments, self.name)


ELEMENTWISE = """
using std::sqrt;
extern "C" __global__ void {name}({parameters}, long long _size) {{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= _size) return;
    {references}
    {operation};
}}
"""
C_TYPES = {"float32": "float"}  # that are declared so


class ElementwiseKernel:
    """A formula in C++, for each element: of arrays and numbers that are only read, and arrays that it writes."""

    def __init__(self, in_params, out_params, operation, name):
        self.inputs, self.outputs = ([text.split() for text in of.split(", ")] for of in (in_params, out_params))
        self.operation, self.name = operation, name
        assert not any(name == "i" for _, name in self.inputs + self.outputs)

    def __call__(self, *given):
        declared = self.inputs + self.outputs
        if len(given) != len(declared):
            raise TypeError(f"Wrong number of arguments for {self.name!r}")
        operands = [self.checked(*each, value) for each, value in zip(declared, map(operand, given), strict=True)]
        if not all(isinstance(value, ndarray) for value in operands[len(self.inputs) :]):
            raise TypeError("Output arguments must be cupy.ndarray")
        arrays = [value for value in operands if isinstance(value, ndarray)]
        (size,) = {value.size for value in arrays}
        self.check_lie_alike(arrays)
        if size:
            kernel = UserKernel(self.compiled(tuple(isinstance(value, ndarray) for value in operands)), self.name)
            kernel((-(-size // 128),), (min(size, 128),), (*operands, np.int64(size)))

    @staticmethod
    def checked(declared, name, value):
        """Return an argument: an array of the type that is declared, or a number, which is converted to it."""
        if not isinstance(value, ndarray):
            return np.dtype(declared).type(value)
        if value.dtype != declared:
            raise TypeError(f"Type is mismatched. {name} {value.dtype} {declared}")
        return value

    @staticmethod
    def check_lie_alike(arrays):
        """Raise unless all are of one shape, and dense, so that an element has one number in all of them."""
        if len({value.shape for value in arrays}) != 1:
            raise ValueError("Out shape is mismatched")
        if not all(value.host.flags.c_contiguous for value in arrays):
            raise NotImplementedError("arrays that are not C-contiguous, in the stand-in")

    def compiled(self, are_arrays):
        """Compile the formula, for arguments that are arrays, or numbers."""
        parameters, references = [], []
        for number, (declared, name) in enumerate(self.inputs + self.outputs):
            kind = ("const " if number < len(self.inputs) else "") + C_TYPES[declared]
            parameters.append(f"{kind} *_{name}" if are_arrays[number] else f"{kind} {name}")
            references += [f"{kind} &{name} = _{name}[i];"] if are_arrays[number] else []
        source = ELEMENTWISE.format(
            name=self.name,
            parameters=", ".join(parameters),
            references=" ".join(references),
            operation=self.operation,
        )
        return host_cuda.compiled(source)
