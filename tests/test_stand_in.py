"""The stand-ins refuse what CuPy, CUDA and torch refuse: what they let pass would fail on a user's GPU."""

import cuda_stand_in
import cuda_tensors
import cupy_stand_in
import numpy as np
import pytest
import torch
from cuda_tensors import on_gpu
from fastopt.kernels import cuda, tables
from tolerances import ONE_STEP, assert_close

import fastopt

WORLD = cuda_stand_in.WORLD


def assign(target, value):
    """Write all of an array."""
    target[...] = value


def add_in_place(target, value):
    """Add to all of an array."""
    target += value


UNSUPPORTED = TypeError, "Unsupported type"
IMPLICIT = TypeError, "Implicit conversion to a NumPy array is not allowed"
REFUSED = {
    "np.asarray": (lambda there, here: np.asarray(there), *IMPLICIT),
    "np.array": (lambda there, here: np.array(there), *IMPLICIT),
    "np.asarray of a list": (lambda there, here: np.asarray([there]), *IMPLICIT),
    "here[...] = there": (lambda there, here: assign(here, there), *IMPLICIT),
    "np.add(there, here)": (lambda there, here: np.add(there, here), *UNSUPPORTED),
    "np.add(here, there)": (lambda there, here: np.add(here, there), *UNSUPPORTED),
    "there + here": (lambda there, here: there + here, *UNSUPPORTED),
    "here + there": (lambda there, here: here + there, *UNSUPPORTED),
    "there += here": (lambda there, here: add_in_place(there, here), *UNSUPPORTED),
    "here += there": (lambda there, here: add_in_place(here, there), *UNSUPPORTED),
    "there[...] = here": (lambda there, here: assign(there, here), ValueError, "cannot be used for fill"),
    "there[...] = a list": (lambda there, here: assign(there, [1.0, 2.0, 3.0]), ValueError, "cannot be used for fill"),
    "np.from_dlpack": (lambda there, here: np.from_dlpack(there), Exception, None),
    "memoryview": (lambda there, here: memoryview(there), TypeError, None),
    "torch.from_numpy": (lambda there, here: torch.from_numpy(there), TypeError, "expected np.ndarray"),
    "bool": (lambda there, here: bool(there), ValueError, "truth value"),
    "float": (lambda there, here: float(there), TypeError, "can be converted to Python scalars"),
    "hash": (lambda there, here: hash(there), TypeError, "unhashable"),
    "len": (lambda there, here: len(there[0]), TypeError, "len"),
    "iter": (lambda there, here: iter(there[0]), TypeError, "0-d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cupy_refuses(device, name):
    """With an error of the same kind, on either; the array stays as it was."""
    act, error, message = REFUSED[name]
    there = device.array(np.arange(3, dtype=np.float32))
    with pytest.raises(error, match=message):
        act(there, np.ones(3, np.float32))
    assert device.get(there).tolist() == [0, 1, 2]


STRICTER = {
    "np.sin": np.sin,
    "np.zeros_like": np.zeros_like,
    "np.copyto": lambda there: np.copyto(there, there),
    "==": lambda there: there == there,
    "in": lambda there: there in [1.0],
    "an index": lambda there: there[np.array([0])],
    "NumPy's scalar on the left": lambda there: np.float32(2) * there,
    "a type of its own": lambda there: cupy_stand_in.asarray(np.zeros(3, "U1")),
}


@pytest.mark.parametrize("name", STRICTER)
def test_what_the_stand_in_alone_refuses(stand_in, name):
    """CuPy computes some of it; nothing here is to depend on that."""
    with pytest.raises((TypeError, ValueError)):
        STRICTER[name](stand_in.array(np.arange(3, dtype=np.float32)))


def test_functions_check_what_they_write(device):
    """As CuPy does, before anything is put on the stream."""
    cupy = device.cupy
    whole, small = (device.array(np.ones(n, np.float32)) for n in (3, 2))
    for act, error, message in (
        (lambda: cupy.multiply(whole, whole, out=small), ValueError, "Out shape is mismatched|could not be broadcast"),
        (lambda: cupy.multiply(whole, whole, out=np.ones(3)), TypeError, "must be cupy.ndarray|Unsupported type"),
        (lambda: cupy.sqrt(whole, out=cupy.asarray(np.zeros(3, np.int64))), TypeError, "same_kind"),
        (lambda: cupy.multiply(whole, np.ones(3, np.float32)), *UNSUPPORTED),
        (lambda: whole.reshape(2), ValueError, "reshape|size"),
    ):
        with pytest.raises(error, match=message):
            act()


def test_kernels_check_their_arguments(device):
    """Their types above all."""
    cupy = device.cupy
    update = cupy.ElementwiseKernel("float32 g, float32 lr", "float32 p", "p -= lr * g", "test_update")
    p, g = (device.array(np.ones(3, np.float32)) for _ in range(2))
    double = device.array(np.ones(3))
    for given, message in (
        ((double, 0.5, p), "Type is mismatched"),
        ((g, 0.5, double), "Type is mismatched"),
        ((g, 0.5, np.ones(3, np.float32)), "Unsupported type"),
        ((np.ones(3, np.float32), 0.5, p), "Unsupported type"),
        ((g, 0.5, p, p), "Wrong number of arguments"),
    ):
        with pytest.raises(TypeError, match=message):
            update(*given)
    update(g, 0.5, p)
    assert device.get(p).tolist() == [0.5] * 3


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), np.int64(2)], ids=repr)
def test_fused_functions(device, number):
    """Take arrays and NumPy's scalars, and compute what they do to NumPy's arrays."""
    cupy = device.cupy

    def update(p, g, v, lr):
        v *= np.float32(0.5)
        v += g * g
        p -= g / (cupy.sqrt(v) + np.float32(1e-3)) * lr

    rng = np.random.default_rng(0)
    p, g, v = (rng.random((5, 7)).astype(np.float32) for _ in range(3))
    there = [device.array(array) for array in (p, g, v)]
    fused = cupy.fuse()(update)
    for _ in range(2):
        fused(*there, number)
        v = np.float32(0.5) * v + g * g
        p = p - g / (np.sqrt(v) + np.float32(1e-3)) * number
    assert_close(device.get(there[0]), p, 4 * ONE_STEP)
    assert_close(device.get(there[2]), v, 4 * ONE_STEP)
    with pytest.raises((TypeError, AssertionError)):
        fused(*there[:2], v, number)


def test_fused_functions_see_no_values(stand_in):
    """Nor arrays of other libraries, nor a NumPy scalar to the left, which would treat them as its own."""
    p, other = (stand_in.array(np.ones(3, np.float32)) for _ in range(2))
    for function in (
        lambda p: p.__imul__(other) and None,
        lambda p: p.__imul__(np.ones(3)) and None,
        lambda p: p.__iadd__(np.float32(2) * p) and None,
        lambda p: p.__iadd__(1.0) if p else None,
    ):
        with pytest.raises(TypeError):
            stand_in.cupy.fuse()(function)(p)


# Streams and memory


def test_what_is_computed_waits(stand_in):
    """Before its stream gets there, an array holds no numbers; a read waits for the current stream only."""
    cupy, stream = stand_in.cupy, stand_in.stream()
    zero, three, one = cupy.zeros((), np.float32), cupy.full((), 3, np.float32), cupy.asarray(np.float32(1))
    none, numbers = cupy.empty((), np.float32), cupy.arange(2, np.float32)
    assert all(np.isnan(array.host).all() for array in (zero, three, one, none, numbers))
    waits = WORLD.waits
    assert (bool(zero), int(three), float(one)) == (False, 3, 1.0)
    assert WORLD.waits == waits + 3
    assert np.isnan(cupy.asnumpy(none))
    one += three
    with stream:
        one += three
    assert one.host == 1
    assert one.get() == 4
    with stream:
        assert one.get() == 7


def test_nobody_reads_inside_of_a_capture(stand_in):
    """Nor allocates: replays would use memory that others own by then."""
    stream, array = stand_in.stream(), stand_in.array(np.ones(1, np.float32))
    with stand_in.capture(stream):
        for act in (
            array.get,
            lambda: float(array),
            lambda: stand_in.cupy.zeros(3),
            array.copy,
            lambda: stand_in.cupy.asarray(np.ones(3)),
            stand_in.cupy.cuda.Event().record,
        ):
            with pytest.raises(cuda_stand_in.CUDARuntimeError):
                act()


def test_memory_is_anothers_when_its_own_stream_gets_there(stand_in):
    """Work of that stream comes before; that of another is too late."""
    kernel = stand_in.cupy.cuda.runtime.memcpyAsync, stand_in.cupy.cuda.runtime.memcpyDeviceToDevice
    target, stream = stand_in.array(np.zeros(2, np.float32)), stand_in.stream()

    def copy(on):
        source = stand_in.array(np.ones(2, np.float32))
        kernel[0](target.data.ptr, source.data.ptr, 8, kernel[1], on.ptr)

    copy(cuda_stand_in.get_current_stream())
    assert stand_in.get(target).tolist() == [1, 1]
    copy(stream)
    with pytest.raises(cuda_stand_in.CUDARuntimeError, match="given back"):
        stand_in.synchronize()
    WORLD.fault = None


def test_events_come_with_their_stream(stand_in):
    """Their times are none before."""
    cuda = stand_in.cupy.cuda
    start, end = cuda.Event(), cuda.Event()
    start.record()
    end.record()
    with pytest.raises(cuda_stand_in.CUDARuntimeError, match="NotReady"):
        cuda.get_elapsed_time(start, end)
    stand_in.synchronize()
    assert cuda.get_elapsed_time(start, end) > 0


def test_arrays_of_another_device(stand_in):
    """No kernel takes them; `asarray` copies them to the current device."""
    cupy = stand_in.cupy
    here = stand_in.array(np.ones(3, np.float32))
    with cupy.cuda.Device(1):
        there = stand_in.array(np.ones(3, np.float32))
        assert cupy.asarray(there) is there
    for act in (lambda: add_in_place(here, there), lambda: assign(here, there), lambda: cupy.sqrt(there)):
        with pytest.raises(ValueError, match="different from the current device"):
            act()
    assert cupy.asarray(there).device.id == 0


# Tensors of torch


@pytest.fixture
def pretended(stand_in, monkeypatch):
    """The stand-in, which torch takes for a GPU."""
    cuda_tensors.pretend(monkeypatch)
    yield stand_in
    cuda_tensors.KEPT.clear()


def test_tensors_over_arrays(pretended):
    """In place, in the order of the stream: torch finds what kernels before it have written, and they what it has."""
    array = pretended.cupy.zeros(3, np.float32)
    tensor = torch.from_dlpack(array)
    assert (tensor.is_cuda, tensor.data_ptr()) == (True, array.data.ptr)
    array += np.float32(2)
    tensor.mul_(3)
    array += np.float32(1)
    assert tensor.cpu().tolist() == array.get().tolist() == [7] * 3
    here = np.ones(3, np.float32)
    assert torch.from_dlpack(here).device.type == "cpu"
    del array
    assert tensor.cpu().tolist() == [7] * 3


def test_what_torch_refuses(pretended):
    """Of the host, with tensors that are on the GPU."""
    there, here = on_gpu(torch.ones(3)), torch.ones(3)
    for act, error, message in (
        (lambda: there.numpy(), TypeError, "can't convert cuda"),
        (lambda: np.asarray(there), TypeError, "can't convert cuda"),
        (lambda: there + here, RuntimeError, "same device"),
        (lambda: here.add_(there), RuntimeError, "same device"),
        (lambda: torch._foreach_add_([there], [here]), RuntimeError, "same device"),
        (lambda: torch.zeros_like(there, device="cpu"), NotImplementedError, "to the host"),
    ):
        with pytest.raises(error, match=message):
            act()
    assert (there + torch.tensor(2.0)).cpu().tolist() == [3] * 3
    assert there.copy_(2 * here).cpu().tolist() == here.copy_(there).tolist() == [2] * 3


def test_where_tensors_are(pretended):
    """On the pretended GPU, of torch's makers; their results as well; and on the host, where that is asked for."""
    for make in (
        lambda **where: torch.empty(3, **where),
        lambda **where: torch.zeros(3, **where),
        lambda **where: torch.ones(3, **where),
        lambda **where: torch.full((3,), 2.0, **where),
        lambda **where: torch.tensor([1.0], **where),
        lambda **where: torch.zeros_like(on_gpu(torch.ones(3)), **where),
    ):
        assert make(device="cuda").is_cuda
    there = torch.empty(3, dtype=torch.float32, device=torch.device("cuda", 0))
    assert there.cpu().isnan().all()
    for tensor in (there, there[1:], there.detach(), there + 1, there.to(torch.float64), there.to("cuda")):
        assert (tensor.device, tensor.is_cuda) == (torch.device("cuda", 0), True)
    for tensor in (there.cpu(), there.to("cpu"), there.to(torch.device("cpu"), torch.float64), torch.empty(3)):
        assert type(tensor) is torch.Tensor
        assert not tensor.is_cuda


def test_modules(pretended):
    """Their parameters move, and gradients are where these are, but for one that somebody has assigned."""
    generator, model = torch.Generator().manual_seed(0), torch.nn.Linear(3, 2)
    here = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(4, 3, generator=generator)
    model.to("cuda")
    assert [(p.is_cuda, p.is_leaf, p.requires_grad) for p in model.parameters()] == [(True, True, True)] * 2
    with torch.autocast("cuda", torch.bfloat16):
        model(x.to("cuda", torch.float32)).sum().backward()
    for p, want in zip(model.parameters(), (x.sum(0).expand(2, 3), torch.full((2,), 4.0)), strict=True):
        assert p.grad.is_cuda
        assert p.grad is p.grad
        torch.testing.assert_close(p.grad.cpu(), want)
    assert [p.detach().cpu().tolist() for p in model.parameters()] == [p.tolist() for p in here]
    model.bias.grad = torch.ones(2)
    assert not model.bias.grad.is_cuda
    model.zero_grad(set_to_none=True)
    assert model.bias.grad is None
    with pytest.raises(RuntimeError, match="same device"):
        model(x)


def test_who_waits_for_torchs_stream(pretended):
    """Reading a number waits, and is refused inside a capture."""
    there, recorded = on_gpu(torch.ones(1)), torch.cuda.CUDAGraph()
    waits = WORLD.waits
    there.mul_(2)
    assert WORLD.waits == waits
    for act in (there.item, there.tolist, there.cpu, lambda: bool(there), lambda: torch.zeros(1).copy_(there)):
        act()
        waits += 1
        assert WORLD.waits == waits
    with torch.cuda.graph(recorded, stream=torch.cuda.Stream()), pytest.raises(cuda_stand_in.CUDARuntimeError):
        there.item()


def test_torchs_current_stream_is_its_own(pretended):
    """Not CuPy's."""
    cupy, stream = pretended.cupy, torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream().cuda_stream == stream.cuda_stream != 0
        assert cupy.cuda.get_current_stream().ptr == 0
    assert torch.cuda.current_stream().cuda_stream == 0


def test_nothing_stays_pretended(stand_in):
    """After a test with the pretence."""

    def found():
        modules = torch, torch.cuda, torch.Tensor, torch.version, torch.utils.dlpack, torch.__future__
        return [dict(vars(module)) for module in modules]

    before = found()
    with pytest.MonkeyPatch.context() as patch:
        cuda_tensors.pretend(patch)
        assert torch.cuda.is_available()
        assert found() != before
    assert found() == before


# Kernels and memory


def test_the_stand_in_waits(stand_in):
    """A kernel has a copy of its argument, and reads all else when its stream gets there, and not before."""
    cupy = stand_in.cupy
    stream = stand_in.stream()
    target = np.zeros(2, np.int64)
    message = np.zeros(1, tables.MESSAGE)
    message["to"], message["apart"], message["count"] = target.ctypes.data, 1, 2
    message["words"][0, :2] = 5, 6
    send = cuda.small_kernels(cupy)["send"]
    with stream:
        send((1,), (32,), (message,))
    message["words"] = 0
    assert target.tolist() == [0, 0]
    stream.synchronize()
    assert target.tolist() == [5, 6]
    source, memory = np.array([1, 2]), cupy.cuda.Memory(16)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    pointer.copy_from_host_async(source.ctypes.data, 16, stream)
    source[:] = 7  # too early: a write must wait
    stream.synchronize()
    pointer.copy_to_host(target.ctypes.data, 16)
    assert target.tolist() == [7, 7]


def test_the_stand_in_catches_gradients_that_are_gone(stand_in):
    """What is read at a replay is what lies there then."""
    p, g = stand_in.array(np.ones(4, np.float32)), stand_in.array(np.ones(4, np.float32))
    opt, stream = fastopt.SGD([p], lr=0.5), stand_in.stream()
    with stream:
        opt.step([g])
    g.host[...] = 2.0
    assert (stand_in.get(p) == 0.0).all()


def test_the_stand_in_is_strict_while_it_captures(stand_in):
    """What CUDA would refuse then, or what would be read anew at each replay, it refuses."""
    cupy = stand_in.cupy
    stream, memory, data = stand_in.stream(), cupy.cuda.Memory(16), np.zeros(2)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    before = WORLD.allocated
    with stand_in.capture(stream) as graph:
        for act in (
            lambda: cupy.cuda.Memory(8),
            lambda: pointer.copy_from_host_async(data.ctypes.data, 16, stream),
            stream.synchronize,
            cupy.cuda.Device(0).synchronize,
        ):
            with pytest.raises(cuda_stand_in.CUDARuntimeError):
                act()
    assert WORLD.allocated == before
    assert graph.graph.work == []
    with pytest.raises(cuda_stand_in.CUDARuntimeError, match="default stream"):
        cuda_stand_in.get_current_stream().begin_capture()
    with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="does not match"):
        stream.__enter__()
