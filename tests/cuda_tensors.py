"""Tensors of torch that say they are on a GPU, over memory of the host, for the stand-in for CuPy; no tests here."""

import types

import cuda_stand_in
import torch
from torch.nn import Parameter

import fastopt.torch as subject
from fastopt.torch import devices, updater

KEPT = []  # all such tensors of a test: memory of a real GPU is there until its streams are done with it


class CudaTensor(torch.Tensor):
    """What torch's operations do with it, they do at once; kernels wait for their stream."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Keep what comes out."""
        result = super().__torch_function__(function, types, args, kwargs)
        if isinstance(result, CudaTensor):
            KEPT.append(result)
        return result

    @property
    def device(self):
        """The device that it pretends to be on."""
        return torch.device("cuda", 0)

    @property
    def is_cuda(self):
        """True, as of all on a GPU."""
        return True

    def to(self, *arguments, **options):
        """Convert, and stay where it is."""
        return super().to(*[a for a in arguments if not isinstance(a, torch.device)], **options)


def on_gpu(tensor):
    """Return a copy of a tensor on the pretended GPU, with its strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    KEPT.append(copy.copy_(tensor.detach()))
    return copy.as_subclass(CudaTensor)


def on_host(tensor):
    """Return a copy on the host, after all work is done."""
    cuda_stand_in.synchronize_all()
    return tensor.detach().as_subclass(torch.Tensor).clone()


def pretend(monkeypatch):
    """Let torch's functions speak of the stand-in's streams."""

    def current_stream(index):
        return types.SimpleNamespace(cuda_stream=cuda_stand_in.get_current_stream().ptr)

    def capturing():
        return cuda_stand_in.get_current_stream().is_capturing()

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", capturing)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(updater, "TABLE", 0)  # through which C++ would see that they are not there
    devices.gpu_of_torch.cache_clear()


def pair(name, tensors, **options):
    """Return the same model on the pretended GPU and on the host, each with an optimizer of fastopt.torch."""
    there = [Parameter(on_gpu(tensor)) for tensor in tensors]
    here = [Parameter(tensor.clone()) for tensor in tensors]
    make = getattr(subject, name)
    return there, here, make(there, **options), make(here, **options)
