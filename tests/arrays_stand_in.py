"""The stand-in's arrays and their element-wise arithmetic, as CuPy has it, or stricter; no tests here.

NumPy's functions refuse them, and so does whatever else would read them on the host: only `get` does, which waits.
Elements are computed when their stream gets there, in memory that holds no numbers before.
"""

import functools
import math

import numpy as np
from cuda_stand_in import CUDARuntimeError, Device, PoolBlock, get_current_stream, runtime

TYPES = "?bhilqBHILQefdFD"  # characters of the dtypes that CuPy has kernels for
NUMBERS = (bool, int, float, complex)


def allocated(shape, dtype, order="C"):
    """Return memory of the device, as an array of NumPy that must not be read before its stream gets there."""
    if get_current_stream().capturing:
        raise CUDARuntimeError("memory for an array while a stream is capturing: each replay would find it given back")
    dtype = np.dtype(dtype)
    if dtype.char not in TYPES and dtype.name != "bfloat16":  # of ml_dtypes, which CuPy knows from 14 on
        raise ValueError(f"Unsupported dtype {dtype}")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return np.ndarray(shape, dtype, np.asarray(PoolBlock(math.prod(shape) * dtype.itemsize)), order=order)


def copied(target, source, name="copy"):
    """Copy on the current stream, between arrays of NumPy; the source may be a number."""
    get_current_stream().put(lambda: np.copyto(target, source, casting="unsafe"), name)


def operand(value):
    """Return what a kernel takes: an array of the current device, or a number."""
    if isinstance(value, ndarray):
        here = runtime.getDevice()
        if value.device.id != here:
            raise ValueError(
                f"The device where the array resides ({value.device.id}) is different from the current device "
                f"({here}). Peer access is unavailable between these devices."
            )
        return value
    if type(value) in NUMBERS or (isinstance(value, np.generic) and value.dtype.char in TYPES):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def result_type(ufunc, operands):
    """Return the dtype of what a function returns: numbers of Python's have none of their own."""
    kinds = [type(value) if type(value) in NUMBERS else value.dtype for value in operands]
    return ufunc.resolve_dtypes((*kinds, None))[-1]


def apply(ufunc, *inputs, out=None):
    """Compute element by element on the current stream, into an array that is there, or into a new one."""
    if any(isinstance(value, Traced) for value in inputs):
        return Traced.apply(ufunc, *inputs, out=out)
    operands = [operand(value) for value in inputs]
    dtype = result_type(ufunc, operands)
    shape = np.broadcast_shapes(*(value.shape for value in operands if isinstance(value, ndarray)))
    if out is None:
        out = ndarray(allocated(shape, dtype))
    check_out(out, shape, dtype)
    target, values = out.host, [value.host if isinstance(value, ndarray) else value for value in operands]

    def work():
        with np.errstate(all="ignore"):
            ufunc(*values, out=target, casting="same_kind")

    get_current_stream().put(work, f"cupy_{ufunc.__name__}")
    return out


def check_out(out, shape, dtype):
    """Raise where an output is no array, or not one for such results."""
    if not isinstance(out, ndarray):
        raise TypeError("Output arguments type must be cupy.ndarray")
    if operand(out).shape != shape:
        raise ValueError("Out shape is mismatched")
    if not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(f"Cannot cast output operand from {dtype!r} to {out.dtype!r} with casting rule 'same_kind'")


def basic(key):
    """Return an index of integers, slices, None and an Ellipsis, with which NumPy returns a view."""
    key = key if isinstance(key, tuple) else (key,)
    if not all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in key):
        raise TypeError(f"an index that would copy: {key!r}")
    return key if Ellipsis in key else (*key, ...)


class Operators:
    """What is written between arrays."""

    def __add__(self, other):
        return apply(np.add, self, other)

    def __iadd__(self, other):
        return apply(np.add, self, other, out=self)

    def __isub__(self, other):
        return apply(np.subtract, self, other, out=self)

    def __imul__(self, other):
        return apply(np.multiply, self, other, out=self)


class Pointer:
    """Where an array begins; its attributes are descriptors in C, as CuPy's are."""

    __slots__ = ("device_id", "ptr")

    def __init__(self, ptr, device_id):
        self.ptr, self.device_id = ptr, device_id


class ndarray(Operators):  # noqa: N801 (CuPy's name)
    """An array on a device; what it is stays, and is told by descriptors in C, as CuPy's are."""

    __slots__ = ("data", "device", "dtype", "host", "shape", "size", "strides")

    def __init__(self, host, device=None):
        self.host = host  # its memory
        self.device = device or Device(runtime.getDevice())
        self.dtype, self.shape, self.strides, self.size = host.dtype, host.shape, host.strides, host.size
        self.data = Pointer(host.__array_interface__["data"][0] if self.size else 0, self.device.id)

    @property
    def __cuda_array_interface__(self):
        interface = self.host.__array_interface__
        return {**interface, "data": (self.data.ptr, False), "stream": get_current_stream().ptr or 1}

    def __dlpack_device__(self):
        return 2, self.device.id

    def __dlpack__(self, *, stream=None, **options):
        """Return what the pretended torch takes; no capsule, which NumPy would read."""
        if stream not in (None, get_current_stream().ptr or 1):
            raise NotImplementedError("a library on another stream, which would have to wait")
        return self.host

    # What would read it on the host

    def __array__(self, *arguments, **options):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        """CuPy computes NumPy's functions if all arrays are its own; tests must not rely on that."""
        others = [type(value) for value in inputs if not isinstance(value, ndarray)]
        raise TypeError(f"Unsupported type {others[0]}" if others else f"NumPy's {ufunc.__name__} of arrays of CuPy")

    def __array_function__(self, function, types, arguments, options):
        raise TypeError(f"no implementation found for 'numpy.{function.__name__}' on types that implement it")

    def _compare(self, other):
        raise TypeError("CuPy compares element by element, on the device")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compare
    __hash__ = None

    def __bool__(self):
        if self.size != 1:
            raise ValueError("The truth value of an array with other than one element is ambiguous")
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self):
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    def get(self):
        """Wait for the current stream, and no other; return a copy on the host."""
        get_current_stream().synchronize()
        return self.host.copy()

    # Views, and copies

    def __getitem__(self, key):
        return ndarray(self.host[basic(key)], self.device)

    def reshape(self, *shape):
        view = self.host.reshape(*shape)
        if not np.may_share_memory(view, self.host) and self.size:
            raise NotImplementedError("a shape that takes a copy")
        return ndarray(view, self.device)

    def sort(self):
        """Sort the only axis in place, when the stream gets there."""
        if len(self.shape) != 1 or not self.host.flags.c_contiguous:
            raise NotImplementedError("Sort on a view, or along one of several axes")
        get_current_stream().put(lambda: self.host.sort(kind="stable"), "cupy_sort")

    def transpose(self, axes):
        return ndarray(self.host.transpose(axes), self.device)

    def __setitem__(self, key, value):
        target = operand(self).host[basic(key)]
        if isinstance(value, ndarray):
            source = np.broadcast_to(operand(value).host, target.shape)
        else:
            source = np.asarray(value, self.dtype)
            if source.shape:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        copied(target, source)

    def copy(self, order="C"):
        """Return a copy on the current device, written when the stream gets there."""
        new = allocated(self.shape, self.dtype, "F" if order == "F" else "C")
        copied(new, self.host)
        return ndarray(new)

    def __deepcopy__(self, memo):
        with self.device:
            return self.copy()

    def __reduce__(self):
        raise TypeError("the stand-in does not pickle: CuPy would fetch it, which waits")


class Traced(Operators):
    """What a fused function gets instead of an array or a number: it records the operations on it.

    Attributes
    ----------
    steps : list
        The operations of a trace: a function, the indices of its inputs, and that of its result.
    values : list
        At each index, the value before the kernel runs: an array, a number, or None.
    """

    __array_ufunc__ = None  # a NumPy scalar to the left is refused: it would take this for a number of its own

    def __init__(self, steps, values, value, dtype):
        self.steps, self.values, self.dtype = steps, values, dtype
        self.place = len(values)
        values.append(value)

    @classmethod
    def apply(cls, ufunc, *inputs, out=None):
        """Write down a step."""
        trace = next(value for value in inputs if isinstance(value, cls))
        inputs = [trace.beside(value) for value in inputs]
        dtype = result_type(ufunc, inputs)
        if out is None:
            out = cls(trace.steps, trace.values, None, dtype)
        elif not (isinstance(out, cls) and np.can_cast(dtype, out.dtype, "same_kind")):
            raise TypeError("return arrays must be of ArrayType, and of a type that takes the result")
        trace.steps.append((ufunc, [value.place for value in inputs], out.place))
        return out

    def beside(self, value):
        """Return a number as a part of this trace."""
        if isinstance(value, Traced):
            return value
        if isinstance(value, ndarray) or type(operand(value)) in NUMBERS:
            raise TypeError(f"Unsupported type {type(value)} inside of a function that is fused")
        return Traced(self.steps, self.values, value, value.dtype)

    def __bool__(self):
        raise TypeError("Cannot convert to Python scalar in cupy.fuse")

    def __mul__(self, other):
        return apply(np.multiply, self, other)

    def __truediv__(self, other):
        return apply(np.divide, self, other)


def fuse():
    """Return a function as one kernel; it takes arrays of one shape and NumPy's scalars.

    CuPy takes scalars of all dtypes that it has kernels for, and Python's numbers, of which the stand-in wants none.
    """
    return lambda function: functools.partial(fused, function)


def fused(function, *given):
    """Trace a function, and compute what it does on the current stream."""
    operands = [operand(value) for value in given]
    if any(type(value) in NUMBERS for value in operands):
        raise TypeError(f"Invalid argument type for {function.__name__!r}")
    if len({value.shape for value in operands if isinstance(value, ndarray)}) != 1:
        raise ValueError("fused arrays of several shapes, or none")
    steps, values = [], []
    held = [value.host if isinstance(value, ndarray) else value for value in operands]
    result = function(*(Traced(steps, values, value, value.dtype) for value in held))
    if result is not None:
        raise NotImplementedError("a function that is fused and returns something")

    def work():
        with np.errstate(all="ignore"):
            there = values.copy()
            for ufunc, places, target in steps:
                computed = ufunc(*(there[place] for place in places))
                if there[target] is None:
                    there[target] = computed
                else:
                    np.copyto(there[target], computed, casting="same_kind")

    get_current_stream().put(work, function.__name__)
