"""torch tensors that claim to be on a GPU, on host memory, for the stand-in for CuPy; no tests here.

torch's operations on them run at once, after all work on torch's current stream, which is the order torch expects.
What torch refuses between a GPU and the host, is refused here.
"""

import contextlib
import ctypes
import functools

import cuda_stand_in
import cupy_stand_in
import numpy as np
import torch
from fastopt.kernels.tensors import exchange_table
from torch.nn import Parameter

import fastopt.torch as subject
from fastopt.backends.torch import device as devices
from fastopt.backends.torch import stepper as steppers

KEPT = []  # all such tensors of a test: memory of a real GPU is there until its streams are done with it
IN_FORCE = []  # torch's own streams, the innermost last

MAKERS = ("empty", "zeros", "ones", "full", "tensor")  # with `device`, on the pretended GPU
ACCESS = ("__get__", "__set__", "data_ptr", "stride", "size", "dim", "numel", "is_contiguous")  # does no work there
WAITING = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "equal", "cpu")
# Takes a tensor of the host beside one of the GPU.
BETWEEN = ("copy_", "__getitem__", "__setitem__", "__set__", "_has_compatible_shallow_copy_type")


ALLOCATING = ("clone", "empty_like", "full_like", "zeros_like")


def current():
    """Return torch's current stream, as the stand-in's: where torch has none of its own, that of CuPy."""
    return IN_FORCE[-1].stream if IN_FORCE else cuda_stand_in.get_current_stream()


def tensors_in(values):
    """Yield the tensors among arguments or results."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def is_host(device):
    """Say whether a device, or the name of one, is the host."""
    return torch.device(device).type == "cpu"


class CudaTensor(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Do what is asked for, in the stream's order, and keep what comes out."""
        options = dict(kwargs or {})
        name = function.__name__
        if name in WAITING or (name == "copy_" and not isinstance(args[0], CudaTensor)):
            current().synchronize()
        elif name not in ACCESS:
            current().run()
        if name not in BETWEEN:
            check_devices([*args, *options.values()])
        if is_host(options.pop("device", None) or "cuda"):
            raise NotImplementedError(f"{name} from the pretended GPU to the host: only `cpu` and `to` do that here")
        result = super().__torch_function__(function, types, args, options)
        if name in ALLOCATING:
            result = in_pool(result).as_subclass(cls)
        KEPT.extend(tensor for tensor in tensors_in([result]) if isinstance(tensor, CudaTensor))
        return result

    @property
    def device(self):
        """The device that it pretends to be on."""
        return torch.device("cuda", 0)

    @property
    def is_cuda(self):
        """True, as of all on a GPU."""
        return True

    def cpu(self):
        """Wait for the current stream, and return a copy on the host."""
        current().synchronize()
        return plain(self).clone()

    def to(self, *arguments, copy=False, **options):
        """Convert, here or on the host."""
        if copy:
            return self.clone().to(*arguments, **options)
        device, dtype = asked(*arguments, **options)
        moved = self.cpu() if device is not None and is_host(device) else self
        return moved if dtype is None else TO(moved, dtype)

    @property
    def grad(self):
        """The gradient: on the pretended GPU if backward computed it, else where the assigned tensor is."""
        if (sparse := self.__dict__.get("sparse")) is not None:
            return sparse
        with torch._C.DisableTorchFunctionSubclass():
            gradient = torch.Tensor.grad.__get__(self)
            if gradient is not None and gradient.layout is torch.sparse_coo and not self.__dict__.get("assigned"):
                torch.Tensor.grad.__set__(self, None)
                self.__dict__["sparse"] = gradient = sparse_on_gpu(gradient)
            elif gradient is not None and not isinstance(gradient, CudaTensor) and not self.__dict__.get("assigned"):
                gradient = as_cuda(gradient)
                torch.Tensor.grad.__set__(self, gradient)
        return gradient

    @grad.setter
    def grad(self, gradient):
        self.__dict__["assigned"] = gradient is not None
        self.__dict__["sparse"] = gradient if isinstance(gradient, SparseCudaTensor) else None
        KEPT.append(gradient)
        if self.__dict__["sparse"] is not None:
            gradient = None
        with torch._C.DisableTorchFunctionSubclass():
            torch.Tensor.grad.__set__(self, gradient)

    @grad.deleter
    def grad(self):
        self.grad = None

    def __deepcopy__(self, memo):
        """Copy what a model consists of, on the pretended GPU, without the gradient."""
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = Parameter(copied, self.requires_grad) if isinstance(self, Parameter) else copied
        return memo[id(self)]

    def numpy(self, **options):
        """Refuse what only `cpu` does, as torch does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first")

    __array__ = numpy


def asked(*arguments, device=None, dtype=None, non_blocking=False):
    """Return the device and the dtype that `to` is asked for; None where it is not."""
    device = next((each for each in (*arguments, device) if isinstance(each, (str, torch.device))), None)
    return device, next((each for each in (*arguments, dtype) if isinstance(each, torch.dtype)), None)


def to_either(tensor, *arguments, **options):
    """Convert a tensor of the host, which may be asked to the pretended GPU."""
    devices = [a for a in (*arguments, options.get("device")) if isinstance(a, (str, torch.device))]
    if all(map(is_host, devices)):
        return TO(tensor, *arguments, **options)
    _, dtype = asked(*arguments, **options)
    return on_gpu(tensor if dtype is None else TO(tensor, dtype))


def check_devices(values):
    """Raise where tensors of the host, but for single numbers, are among those of the GPU."""
    found = list(tensors_in(values))
    if any(not isinstance(tensor, CudaTensor) and tensor.dim() > 0 for tensor in found):
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two, cuda:0 and cpu!")


def plain(tensor):
    """Return the same memory as a tensor of the host."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(torch.Tensor)


def as_cuda(tensor):
    """Return the same memory as a tensor of the pretended GPU, which is kept."""
    KEPT.append(tensor.as_subclass(CudaTensor))
    return KEPT[-1]


def in_pool(tensor):
    """Return a copy in the pool's memory, with its strides, which is poisoned when nobody holds it any more."""
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    block = np.asarray(cuda_stand_in.PoolBlock((max(reach, 0) + 1) * tensor.itemsize))
    with torch._C.DisableTorchFunctionSubclass():
        return torch.from_numpy(block).view(tensor.dtype).as_strided(tensor.shape, tensor.stride()).copy_(plain(tensor))


def on_gpu(tensor):
    """Return a copy of a tensor on the pretended GPU, with its strides."""
    return as_cuda(in_pool(tensor))


class SparseCudaTensor(torch.Tensor):
    """A sparse tensor that says it is on a GPU: indices and values there, since torch makes no subclass of its own."""

    layout = torch.sparse_coo
    is_sparse = is_cuda = True
    device = CudaTensor.device

    def __new__(cls, indices, values, shape):
        """Make one of these parts."""
        made = cls._make_wrapper_subclass(cls, shape, dtype=values.dtype, device="cpu")
        made.parts = indices, values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Refuse what is not below."""
        raise TypeError(f"the pretended GPU does not have {function} of sparse tensors")

    def _indices(self):
        return self.parts[0]

    def _values(self):
        return self.parts[1]

    indices, values = _indices, _values

    def sparse_dim(self):
        """How many axes the indices have."""
        return len(self.parts[0])

    def detach(self):
        """Return it as it is."""
        return self

    def coalesce(self):
        """Return each index once, in order, after all work on the current stream."""
        current().run()
        given = torch.sparse_coo_tensor(*map(plain, self.parts), self.shape, check_invariants=False)
        return sparse_on_gpu(given.coalesce())


def sparse_on_gpu(tensor):
    """Return a copy of a sparse tensor on the pretended GPU."""
    return SparseCudaTensor(on_gpu(tensor._indices()), on_gpu(tensor._values()), tensor.shape)


def on_host(tensor):
    """Return a copy on the host, after all work is done."""
    cuda_stand_in.synchronize_all()
    return plain(tensor).clone()


def maker(make):
    """Return a function of torch that makes tensors, on the pretended GPU as well."""

    @functools.wraps(make)
    def made(*arguments, device=None, **options):
        if device is None or is_host(device):
            return make(*arguments, device=device, **options)
        tensor = make(*arguments, **options)
        if make is EMPTY:
            tensor.untyped_storage().fill_(cuda_stand_in.POISON)
        return as_cuda(tensor)

    return made


EMPTY, TO = torch.empty, torch.Tensor.to


class Stream:
    """A stream of torch's."""

    def __init__(self):
        self.stream = cuda_stand_in.Stream()

    @property
    def cuda_stream(self):
        """Its address."""
        return self.stream.ptr


class External(Stream):
    """The one in force, as torch shows it."""

    def __init__(self, stream):
        self.stream = stream


@contextlib.contextmanager
def in_force(stream):
    """Make a stream torch's current one, and not CuPy's."""
    IN_FORCE.append(stream)
    try:
        yield
    finally:
        IN_FORCE.pop()


class CUDAGraph:
    """What `torch.cuda.graph` has recorded."""

    recorded = None

    def replay(self):
        """Put it on the current stream."""
        self.recorded.launch(current())


@contextlib.contextmanager
def graph(recorder, stream):
    """Record what is put on a stream of torch's."""
    cuda_stand_in.runtime.deviceSynchronize()
    with in_force(stream):
        stream.stream.begin_capture()
        try:
            yield
        finally:
            recorder.recorded = stream.stream.end_capture()


def from_dlpack(given, of_torch=torch.from_dlpack):
    """Return a tensor over the same memory, which lives as long as that does."""
    if not isinstance(given, cupy_stand_in.ndarray):
        return of_torch(given)
    return torch.from_numpy(given.__dlpack__(stream=current().ptr or 1)).as_subclass(CudaTensor)


class Described(ctypes.Structure):
    """DLPack's description of a tensor, as far as it is changed here."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


BORROW = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Described))
STREAM = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


class Exchange(ctypes.Structure):
    """DLPack's table of a library's functions."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("others", ctypes.c_void_p * 4),
        ("borrow", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


OF_TORCH = Exchange.from_address(exchange_table(torch.Tensor))
BORROW_OF_TORCH = ctypes.PYFUNCTYPE(*(BORROW._restype_, *BORROW._argtypes_))(OF_TORCH.borrow)


@BORROW
def borrow(tensor, described):
    """Describe a tensor as torch's own function does, and say that it is on the pretended GPU."""
    failed = BORROW_OF_TORCH(tensor, described)
    if isinstance(tensor, CudaTensor):
        described.contents.device_type = 2
    return failed


@STREAM
def current_stream(device_type, device_id, found):
    """Write the address of the current stream."""
    found[0] = current().ptr
    return int(device_type != 2)


EXCHANGE = Exchange(
    OF_TORCH.version, OF_TORCH.others, *(ctypes.cast(each, ctypes.c_void_p) for each in (borrow, current_stream))
)


PRETENDED = {
    "CUDAGraph": CUDAGraph,
    "Stream": Stream,
    "current_stream": lambda index=None: External(current()),
    "empty_cache": lambda: None,
    "graph": graph,
    "is_available": lambda: True,
    "is_bf16_supported": lambda: True,
    "is_current_stream_capturing": lambda: current().is_capturing(),
    "stream": in_force,
    "synchronize": lambda device=None: cuda_stand_in.runtime.deviceSynchronize(),
}


def no_accelerator(check_available=False):
    """torch.accelerator knows no stand-in: in a build for CUDA it believes torch.cuda, and then asks the driver."""


def pretend(monkeypatch):
    """Make torch's functions use the stand-in's streams, and create tensors on the pretended GPU."""
    for name, pretended in PRETENDED.items():
        monkeypatch.setattr(torch.cuda, name, pretended)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", no_accelerator)
    for name in MAKERS:
        monkeypatch.setattr(torch, name, maker(getattr(torch, name)))
    for module in (torch, torch.utils.dlpack):
        monkeypatch.setattr(module, "from_dlpack", from_dlpack)
    monkeypatch.setattr(torch.Tensor, "to", to_either)
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)  # else modules keep their classes
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(steppers, "TABLE", ctypes.addressof(EXCHANGE))
    monkeypatch.setattr(devices, "exchange_table", lambda tensor_type: ctypes.addressof(EXCHANGE))
    monkeypatch.setattr(steppers, "GRADIENT_TYPE", CudaTensor)
    devices.gpu_of_torch.cache_clear()


def pair(name, tensors, **options):
    """Return the same model on the pretended GPU and on the host, each with an optimizer of fastopt.torch."""
    there = [Parameter(on_gpu(tensor)) for tensor in tensors]
    here = [Parameter(tensor.clone()) for tensor in tensors]
    make = getattr(subject, name)
    return there, here, make(there, **options), make(here, **options)
