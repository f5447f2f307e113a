"""Messages that give advice: each test follows the advice, and it works.

A case is an argument, the message's advice, and the advice as code.
"""

import array
import copy
import ctypes
import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from foreign_stand_in import Column, Exported, Immutable, Lazy

import fastopt
import fastopt.torch
from fastopt.schedules import Cosine, Piecewise

F32 = np.float32


def ones(*shape):
    """An array of ones."""
    return np.ones(shape, F32)


def read_only(given):
    """The array, which can no longer be written."""
    given.flags.writeable = False
    return given


def saved(tmp_path, **arrays):
    """What NumPy reads from a file of arrays."""
    np.savez(tmp_path / "w.npz", **arrays)
    return np.load(tmp_path / "w.npz")


def refused(advice, act, *given, **more):
    """Assert that a call is refused, and that the message has the advice."""
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        act(*given, **more)
    message = str(caught.value)
    del caught  # or this frame and its optimizer wait for the garbage collector, which may come in a later capture
    assert advice in message


def trains(opt, params):
    """Assert that a step changes every array in nested containers."""
    flat = list(flattened(params))
    before = [np.array(x) for x in flat]
    opt.step(mirrored(params))
    assert all((x != y).all() for x, y in zip(flat, before, strict=True))


def flattened(params):
    """The arrays in nested containers."""
    if isinstance(params, (list, tuple, dict)):
        return itertools.chain(*map(flattened, params.values() if isinstance(params, dict) else params))
    return [params]


def mirrored(params):
    """Gradients of ones for arrays in nested containers."""
    if isinstance(params, dict):
        return {name: mirrored(entry) for name, entry in params.items()}
    return [mirrored(entry) for entry in params] if isinstance(params, (list, tuple)) else np.ones_like(params)


ARRAY = "pass np.array(..., np.float32) of it"
TENSOR = "pass .detach().numpy() of it"
FLOATS = ".astype(np.float32)"
COPY = "pass a .copy()"
RECORD = [("a", "f4"), ("b", "f8", 2)]
ALONE = {  # instead of an array
    "list of floats": (lambda: [1.0, 2.0], ARRAY, lambda x: np.array(x, F32)),
    "list of ints": (lambda: [1, 2], ARRAY, lambda x: np.array(x, F32)),
    "range": (lambda: range(3), ARRAY, lambda x: np.array(x, F32)),
    "float": (lambda: 1.0, ARRAY, lambda x: np.array(x, F32)),
    "scalar": (lambda: F32(1), ARRAY, lambda x: np.array(x, F32)),
    "buffer": (lambda: array.array("d", [1, 2]), ARRAY, lambda x: np.array(x, F32)),
    "like jax": (lambda: Immutable(np.ones((3, 2))), ARRAY, lambda x: np.array(x, F32)),
    "like pandas": (lambda: Column([1, 2]), ARRAY, lambda x: np.array(x, F32)),
    "like tinygrad": (lambda: Lazy([1, 2]), "pass np.array(..., np.float32) of its .numpy()",
                      lambda x: np.array(x.numpy(), F32)),
    "sparse": (lambda: scipy.sparse.csc_matrix(ones(2, 3)), "pass .toarray() of it", lambda x: x.toarray()),
    "sparse array": (lambda: scipy.sparse.coo_array(ones(2, 3)), "pass .toarray() of it", lambda x: x.toarray()),
    "tensor": (lambda: torch.ones(3), TENSOR, lambda x: x.detach().numpy()),
    "torch's parameter": (lambda: torch.nn.Parameter(torch.ones(3)), TENSOR, lambda x: x.detach().numpy()),
    "int64": (lambda: np.arange(1, 3), FLOATS, lambda x: x.astype(F32)),
    "bool": (lambda: np.ones(3, bool), FLOATS, lambda x: x.astype(F32)),
    "longdouble": (lambda: np.ones(3, np.longdouble), FLOATS, lambda x: x.astype(F32)),
    "foreign byte order": (lambda: np.ones(3, ">f4"), FLOATS, lambda x: x.astype(F32)),
    "text": (lambda: np.array(["1", "2.5"]), FLOATS, lambda x: x.astype(F32)),
    "dates": (lambda: np.zeros(3, "M8[s]"), FLOATS, lambda x: x.astype(F32)),
    "numbers as objects": (lambda: np.array([1, 2.5], object), FLOATS, lambda x: x.astype(F32)),
    "arrays as objects": (lambda: np.array([ones(2), ones(3)], object), "pass .tolist() of it", lambda x: x.tolist()),
    "complex64": (lambda: np.ones(3, np.complex64) * (1 + 1j), "pass .view(np.float32) of it", lambda x: x.view(F32)),
    "complex128": (lambda: np.ones(3, complex) * (1 + 1j), "or of its .astype(np.complex64)",
                   lambda x: x.astype(np.complex64).view(F32)),
    "record": (lambda: np.ones(3, RECORD), "{name: array[name].astype(np.float32) for name in array.dtype.names}",
               lambda x: {name: x[name].astype(F32) for name in x.dtype.names}),
    "masked": (lambda: np.ma.masked_equal(ones(3), 5), "pass its .data or .filled()", lambda x: x.filled()),
    "masked, its data": (lambda: np.ma.masked_equal(ones(3), 5), "pass its .data", lambda x: x.data),
    "read-only": (lambda: read_only(ones(3)), "pass a writable .copy()", lambda x: x.copy()),
    "of bytes": (lambda: np.frombuffer(b"01234567", F32), "pass a writable .copy()", lambda x: x.copy()),
    "broadcast": (lambda: np.broadcast_to(F32(1), (2, 3)), "pass a writable .copy()", lambda x: x.copy()),
    "with gaps": (lambda: ones(4, 6)[:, :3], COPY, lambda x: x.copy()),
    "unaligned": (lambda: np.zeros(25, np.uint8)[1:].view(F32), COPY, lambda x: x.copy()),
}  # fmt: skip


@pytest.mark.parametrize(("make", "advice", "follow"), ALONE.values(), ids=ALONE.keys())
def test_what_is_no_parameter(make, advice, follow):
    """Alone, or in containers."""
    for wrap in (lambda x: x, lambda x: [ones(2), x], lambda x: {"a": [{"b": x}]}, lambda x: [[ones(2)], (x,)]):
        given = make()
        refused(advice, fastopt.SGD, wrap(given))
        params = follow(given)
        trains(fastopt.SGD(params, lr=0.5), params)
        wrapped = wrap(follow(given))
        trains(fastopt.SGD(wrapped, lr=0.5), wrapped)


SEVERAL = {  # instead of containers
    "npz": (lambda tmp: saved(tmp, w=ones(2), b=ones(3)), "as dict(np.load(file))", dict),
    "npz in a dict": (lambda tmp: {"enc": saved(tmp, w=ones(2))}, "as dict(np.load(file))",
                      lambda x: {"enc": dict(x["enc"])}),
    "npz in a list": (lambda tmp: [[saved(tmp, w=ones(2))], [ones(2)]], "as dict(np.load(file))",
                      lambda x: [[dict(x[0][0])], x[1]]),
    "values of an npz": (lambda tmp: saved(tmp, w=ones(2)).values(), "in a dict or a list", list),
    "generator in a list": (lambda tmp: [(ones(2) for _ in range(2))], "pass a list of what it makes",
                            lambda x: [list(x[0])]),
    "numbers as names": (lambda tmp: {1: ones(2), 2: ones(2)}, "use {str(name): array, ...}",
                         lambda x: {str(name): entry for name, entry in x.items()}),
    "None": (lambda tmp: [ones(2), None], "leave it out", lambda x: x[:1]),
    "a word": (lambda tmp: {"kind": "dense", "w": ones(2)}, "pass the arrays themselves", lambda x: {"w": x["w"]}),
    "one array twice": (lambda tmp: [BOTH, BOTH], "pass each once", lambda x: x[:1]),
    "one path twice": (lambda tmp: {"a.b": ones(2), "a": {"b": ones(2)}}, "give one of them another name",
                       lambda x: {"a_b": x["a.b"], "a": x["a"]}),
    "too deep": (lambda tmp: nested(80), "in few containers", lambda x: nested(3)),
}  # fmt: skip
BOTH = ones(3)


def nested(levels):
    """An array in so many lists."""
    return [nested(levels - 1)] if levels else ones(2)


@pytest.mark.parametrize(("make", "advice", "follow"), SEVERAL.values(), ids=SEVERAL.keys())
def test_what_holds_no_parameters(make, advice, follow, tmp_path):
    """Containers that do not keep their arrays, that name them otherwise, or hold something else."""
    given = make(tmp_path)
    refused(advice, fastopt.SGD, given)
    params = follow(given)
    trains(fastopt.SGD(params, lr=0.5), params)


def test_tensors_are_trained_by_fastopt_torch():
    """The other advice for tensors, and the one for modules."""
    module = torch.nn.Linear(2, 3)
    for given, parameters in (
        (module, module.parameters()),
        (torch.nn.ParameterList([torch.ones(2)]), None),
        (module.weight, [module.weight]),
        (module.parameters(), module.parameters()),
    ):
        refused("fastopt.torch trains tensors", fastopt.SGD, given)
        fastopt.torch.SGD(given.parameters() if parameters is None else parameters, lr=0.5)
    refused("pass .parameters() of it", fastopt.SGD, module)


GRADIENTS = {
    "list": (lambda: [1, 2, 3], "pass np.asarray(..., np.float32) of it", lambda g: np.asarray(g, F32)),
    "like pandas": (lambda: Column([1, 2, 3]), "pass np.asarray(..., np.float32) of it", lambda g: np.asarray(g, F32)),
    "like tinygrad": (lambda: Lazy([1, 2, 3]), "pass np.asarray(..., np.float32) of its .numpy()",
                      lambda g: np.asarray(g.numpy(), F32)),
    "like jax, float64": (lambda: Immutable(np.ones(3)), "pass np.asarray(..., np.float32) of it",
                          lambda g: np.asarray(g, F32)),
    "buffer of float64": (lambda: array.array("d", [1, 2, 3]), "pass np.asarray(..., np.float32) of it",
                          lambda g: np.asarray(g, F32)),
    "sparse": (lambda: scipy.sparse.csc_matrix(ones(1, 3)), "pass .toarray() of it", lambda g: g.toarray().reshape(3)),
    "float64": (lambda: np.ones(3), "pass .astype(np.float32) of it", lambda g: g.astype(F32)),
    "complex": (lambda: np.ones(3, complex), "pass .real.astype(np.float32) of it", lambda g: g.real.astype(F32)),
    "masked": (lambda: np.ma.masked_equal(ones(3), 5), "pass its .data or .filled()", lambda g: g.filled()),
    **{
        f"tensor, {name}": (make, "pass .to(torch.float32).numpy(force=True) of it",
                            lambda g: g.to(torch.float32).numpy(force=True))
        for name, make in {
            "float64": lambda: torch.ones(3).double(),
            "bfloat16": lambda: torch.ones(3).bfloat16(),
            "in a graph": lambda: torch.ones(3).requires_grad_(),
            "negated": lambda: torch._neg_view(-torch.ones(3)),
            "of zeros": lambda: torch._efficientzerotensor((3,)),
            "a row of ints": lambda: torch.ones(2, 3, dtype=torch.int32)[0],
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize(("make", "advice", "follow"), GRADIENTS.values(), ids=GRADIENTS.keys())
def test_what_is_no_gradient(make, advice, follow):
    """At a step, in a binding, and in a single call."""
    p = ones(3)
    opt = fastopt.SGD(p, lr=0.5)
    for act in (opt.step, opt.bind, lambda g: fastopt.fused.sgd(p, g, lr=0.5)):
        refused(advice, act, make())
        assert (p == 1).all()
    g = follow(make())
    wanted = 1 - F32(0.5) * np.array(g, F32)
    opt.step(g)
    np.testing.assert_array_equal(p, wanted)
    fastopt.fused.sgd(p, g, lr=0.5)
    opt.bind(g)
    opt.step()


def test_gradients_that_overlap():
    """A copy of what lies where a parameter or a state does."""
    p = ones(3)
    opt = fastopt.SGD(p, lr=0.5, momentum=0.9)
    opt.step(ones(3))
    for given in (p, opt.state[0]["momentum_buffer"]):
        refused("pass a .copy() of it", opt.step, given)
        opt.step(given.copy())
    refused("pass a .copy() of one", fastopt.fused.sgd, p, p, lr=0.5)
    fastopt.fused.sgd(p, p.copy(), lr=0.5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # torch's, in NumPy's eyes
def test_gradients_that_cannot_be_bound():
    """What never changes, or may move: a scalar, and the memory of other libraries."""
    p = np.ones((), F32)
    opt = fastopt.SGD(p, lr=0.5)
    refused("bind a 0-d array", opt.bind, F32(1))
    opt.bind(np.array(F32(1)))
    for given in (Immutable(ones(3)), torch.ones(3), array.array("f", [1, 1, 1]), memoryview(bytes(12)).cast("f")):
        p = ones(3)
        opt = fastopt.SGD([p], lr=0.5)
        refused("bind np.array(...) of it", opt.bind, [given])
        bound = np.array(given)
        opt.bind([bound])
        bound[...] = 2
        opt.step()
        assert (p == 0).all()


def test_gradients_that_are_missing():
    """None, where the message asks for it."""
    a, b = ones(2), ones(2)
    for params, short, whole in (
        ([a, b], [ones(2)], [ones(2), None]),
        ({"a": a, "b": b}, {"a": a}, {"a": None, "b": None}),
    ):
        opt = fastopt.SGD(params, lr=0.5)
        refused("give None where a parameter has no gradient", opt.step, short)
        opt.step(whole)
    refused("call bind(grads) first", opt.step)
    opt.bind(whole)
    opt.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Exported(np.full(3, 2, F32)),
        lambda: Immutable(np.full(3, 2, F32)),
        lambda: torch.full((3,), 2.0),
        lambda: torch.full((6,), 2.0)[::2],
        lambda: array.array("f", [2, 2, 2]),
        lambda: (ctypes.c_float * 3)(2, 2, 2),
        lambda: memoryview(np.full(3, 2, F32)),
        lambda: np.full(3, 2, F32).data.toreadonly(),
    ],
    ids=["DLPack", "like jax", "tensor", "tensor with gaps", "array", "ctypes", "memoryview", "read-only memoryview"],
)
def test_gradients_of_others(make):
    """Memory on the CPU is read where it lies, through DLPack or as a buffer, and stays as it is."""
    p, q, r, one = ones(3), ones(3), ones(3), ones(3)
    given = make()
    fastopt.SGD(p, lr=0.25).step(given)
    fastopt.SGD([(q, one)], lr=0.25).step([(given, None)])
    fastopt.fused.sgd(r, given, lr=0.25)
    for x in (p, q, r):
        assert x.tolist() == [0.5, 0.5, 0.5]
    held = given.array if isinstance(given, Exported) else given
    assert np.asarray(held).tolist() == [2, 2, 2]


def test_tensors_over_a_parameter():
    """The same memory, seen by torch, is no gradient."""
    p = ones(3)
    refused("pass a .copy() of it", fastopt.SGD(p).step, torch.from_numpy(p))


SINGLE = {
    "tensor": (lambda: torch.ones(3), TENSOR, lambda x: x.detach().numpy()),
    "torch's parameter": (lambda: torch.nn.Parameter(torch.ones(3)), TENSOR, lambda x: x.detach().numpy()),
    "list": (lambda: [1, 2, 3], ARRAY, lambda x: np.array(x, F32)),
    "like jax": (lambda: Immutable(ones(3)), ARRAY, lambda x: np.array(x, F32)),
    "read-only": (lambda: read_only(ones(3)), "pass a writable .copy()", lambda x: x.copy()),
    "with gaps": (lambda: ones(6)[::2], COPY, lambda x: x.copy()),
    "int": (lambda: np.arange(3), ".astype(np.float32)", lambda x: x.astype(F32)),
}


@pytest.mark.parametrize(("make", "advice", "follow"), SINGLE.values(), ids=SINGLE.keys())
def test_arrays_of_single_calls(make, advice, follow):
    """Of a parameter and of a state; following it updates the array that is passed then."""
    p, g, v = ones(3), ones(3), np.zeros(3, F32)
    for name in ("p", "velocity"):
        good = {"p": p, "g": g, "velocity": v}
        call = lambda **given: fastopt.fused.momentum(**given, lr=0.5, momentum=0.9)  # noqa: E731
        refused(advice, call, **{**good, name: make()})
        followed = follow(make())
        before = followed.copy()
        call(**{**good, name: followed})
        assert (followed != before).any()


def test_buffers_of_single_calls():
    """A momentum of RMSProp needs its buffer."""
    p, g, s = ones(3), ones(3), np.zeros(3, F32)
    refused("pass an array of zeros like p", fastopt.fused.rmsprop, p, g, s, lr=0.1, momentum=0.9)
    fastopt.fused.rmsprop(p, g, s, np.zeros_like(p), lr=0.1, momentum=0.9)


@pytest.mark.exhaustive  # takes ten seconds
def test_on_a_gpu(device):
    """Between GPU and host, and of dtypes that are not updated there."""
    p, g, host = device.array(ones(3)), device.array(ones(3)), ones(3)
    opt, there = fastopt.SGD(host), fastopt.SGD([p])
    for act in (opt.step, lambda given: fastopt.fused.sgd(host, given, lr=0.1)):
        refused("pass .get() of it", act, g)
        act(g.get())
    for act in (lambda given: there.step([given]), lambda given: fastopt.fused.sgd(p, given, lr=0.1)):
        refused("pass cupy.asarray(...) of it, and keep that", act, ones(3))
        act(device.array(ones(3)))
    whole = device.array(np.arange(3, dtype=np.int32))
    refused("pass .astype('float32') of it", fastopt.SGD, whole)
    fastopt.SGD(device.array(device.get(whole).astype(F32)))
    for act in (lambda given: there.step([given]), lambda given: fastopt.fused.sgd(p, given, lr=0.1)):
        refused("pass .astype('float32') of it", act, whole)
        act(device.array(device.get(whole).astype(F32)))
        turning = device.array(np.ones(3, np.complex64))
        refused("pass .real.astype('float32') of it", act, turning)
        act(device.array(device.get(turning).real.astype(F32)))


def test_complex_parameters_on_a_gpu(device):
    """Their imaginary parts are not dropped."""
    for dtype, advice in ((np.complex64, "pass .view(np.float32) of it"), (complex, "or of its .astype(np.complex64)")):
        given = device.array(np.ones(3, dtype) * (1 + 1j))
        refused(advice, fastopt.SGD, given)
        pairs = device.array(device.get(given).astype(np.complex64).view(F32))
        fastopt.SGD(pairs, lr=0.5).step(device.array(ones(6)))
        assert device.get(pairs).tolist() == [0.5] * 6


def test_memory_on_a_gpu(stand_in):
    """What is read-only, has gaps, is not aligned, or is the same twice: a copy, as the message makes it."""
    cupy = stand_in.cupy
    g, host = stand_in.array(ones(3)), ones(3)
    given = cupy.Foreign(stand_in.array(host).host, readonly=True)
    refused("pass cupy.array(...) of it", fastopt.SGD, [given])
    fastopt.SGD([cupy.asarray(given).copy()], lr=0.5).step([g])
    gaps = stand_in.array(ones(4, 6))[:, :3]
    refused("pass a .copy() of it, and use that", fastopt.SGD, [gaps])
    fastopt.SGD([gaps.copy()], lr=0.5).step([stand_in.array(ones(4, 3))])
    p = stand_in.array(host)
    askew = cupy.ndarray(stand_in.array(np.zeros(16, np.uint8)).host[1:13].view(F32))
    refused("pass a .copy() of it", fastopt.SGD([p]).step, [askew])
    fastopt.SGD([p]).step([askew.copy()])
    refused("pass a .copy() of one", fastopt.fused.sgd, p, p, lr=0.5)
    fastopt.fused.sgd(p, p.copy(), lr=0.5)
    stand_in.synchronize()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64], ids=lambda dtype: dtype.__name__)
def test_buffers_of_single_calls_on_a_gpu(device, dtype):
    """They lie as their parameter does, and are of float32 for half precision."""
    p, g = (device.array(np.asfortranarray(np.ones((2, 3), dtype))) for _ in range(2))
    real = "float64" if dtype is np.float64 else "float32"
    call = lambda v: fastopt.fused.momentum(p, g, v, lr=0.5, momentum=0.9)  # noqa: E731
    refused(f"make it with cupy.zeros_like(p, dtype='{real}')", call, device.array(np.zeros((2, 3), real)))
    call(device.cupy.zeros_like(p, dtype=real))
    assert (device.get(p) == 0.5).all()


def test_tensors_on_a_gpu(pretended):
    """Those that require a gradient show no memory: the message comes first."""
    for given in (torch.nn.Parameter(torch.ones(3, device="cuda")), torch.ones(3, device="cuda").requires_grad_()):
        refused("pass .detach() of it, or train it with fastopt.torch", fastopt.SGD, [given])
        fastopt.torch.SGD([given], lr=0.1)


def capture(device, opt, stream, *grads):
    """A graph of a step."""
    with device.capture(stream) as graph:
        opt.step(*grads)
    return graph


def twice(opt, stream, *grads):
    """Two steps like the one that is to be captured."""
    with stream:
        opt.step(*grads)
        opt.step(*grads)


def on_device(device, count=2):
    """Parameters and gradients on a GPU, and a stream there."""
    params, grads = ([device.array(ones(3)) for _ in range(count)] for _ in range(2))
    return params, grads, device.stream()


def assert_replays(device, graph, params):
    """Assert that a graph updates the parameters."""
    before = [device.get(p) for p in params]
    graph.launch()
    assert all((device.get(p) != x).all() for p, x in zip(params, before, strict=True))


WARM = "Take two steps like it before"
NOT_WARM = {  # what comes before the capture; the gradients that are given in it
    "the first step": (lambda opt, grads, stream: None, slice(None)),
    "an option": (lambda opt, grads, stream: opt.param_groups[0].update(lr=0.25), slice(None)),
    "gradients for others": (lambda opt, grads, stream: twice(opt, stream, grads), slice(1)),
}


@pytest.mark.parametrize(("act", "given"), NOT_WARM.values(), ids=NOT_WARM.keys())
def test_captures_without_warming_up(device, act, given):
    """Two steps like the captured one."""
    params, grads, stream = on_device(device)
    opt = fastopt.SGD(params, lr=0.5, momentum=0.9)
    if act is NOT_WARM["an option"][0]:
        twice(opt, stream, grads)
    act(opt, grads, stream)
    chosen = [g if i in range(*given.indices(2)) else None for i, g in enumerate(grads)]
    refused(WARM, capture, device, opt, stream, chosen)
    twice(opt, stream, chosen)
    assert_replays(device, capture(device, opt, stream, chosen), params[given])


@pytest.mark.parametrize("instead", [Cosine(0.5, 100), 0.25], ids=["schedule", "number"])
def test_captures_of_functions(device, instead):
    """One of fastopt's schedules, or a number; and then, as the next message says, two steps."""
    params, grads, stream = on_device(device)
    opt = fastopt.SGD(params, lr=lambda step: 0.5)
    twice(opt, stream, grads)
    refused("use one of fastopt.schedules, or assign a number", capture, device, opt, stream, grads)
    opt.param_groups[0]["lr"] = instead
    refused(WARM, capture, device, opt, stream, grads)
    twice(opt, stream, grads)
    assert_replays(device, capture(device, opt, stream, grads), params)


def test_captures_of_a_momentum_of_0(device):
    """When its schedule has left 0."""
    params, grads, stream = on_device(device)
    opt = fastopt.SGD(params, lr=0.5, momentum=Piecewise([0.0, 0.9], [3]))
    twice(opt, stream, grads)
    refused("capture it when its schedule has left 0", capture, device, opt, stream, grads)
    twice(opt, stream, grads)
    assert opt.param_groups[0]["momentum"] == 0.9
    assert_replays(device, capture(device, opt, stream, grads), params)


def test_captures_with_parameters_on_the_host(device):
    """Two optimizers, of which one is captured."""
    params, grads, stream = on_device(device)
    here = ones(3)
    opt = fastopt.SGD([*params, here], lr=0.5)
    twice(opt, stream, [*grads, ones(3)])
    refused("use two optimizers", capture, device, opt, stream, [*grads, ones(3)])
    opt, other = fastopt.SGD(params, lr=0.5), fastopt.SGD(here, lr=0.5)
    twice(opt, stream, grads)
    assert_replays(device, capture(device, opt, stream, grads), params)
    trains(other, here)


def test_captures_of_gradients_that_lie_otherwise(device):
    """They are copied into arrays that lie as the parameters do, of C's order or of Fortran's."""
    for own, other in ((np.ascontiguousarray, np.asfortranarray), (np.asfortranarray, np.ascontiguousarray)):
        p, g = device.array(own(ones(4, 3))), device.array(other(ones(4, 3)))
        stream, opt = device.stream(), fastopt.SGD([p], lr=0.5)
        twice(opt, stream, [g])
        refused("as zeros_like(p) makes one, and take two steps", capture, device, opt, stream, [g])
        with stream:
            like = device.cupy.zeros_like(p)
            like[...] = g
        twice(opt, stream, [like])
        assert_replays(device, capture(device, opt, stream, [like]), [p])


def test_single_updates_in_a_capture(device):
    """An optimizer's step instead."""
    [p], [g], stream = on_device(device, 1)

    def single():
        with device.capture(stream):
            fastopt.fused.sgd(p, g, lr=0.5)

    with stream:
        fastopt.fused.sgd(p, g, lr=0.5)
    refused("make an optimizer, and capture its step", single)
    opt = fastopt.SGD([p], lr=0.5)
    twice(opt, stream, [g])
    assert_replays(device, capture(device, opt, stream, [g]), [p])


def test_counts_in_a_capture(device):
    """They are asked for outside."""
    params, grads, stream = on_device(device)
    opt = fastopt.SGD(params, lr=Cosine(0.5, 100))
    twice(opt, stream, grads)

    def asked():
        with device.capture(stream):
            opt.step(grads)
            return opt.param_groups[0]["lr"]

    refused("ask for states and rates outside", asked)
    assert opt.param_groups[0]["lr"] == Cosine(0.5, 100)(1)


AFTER = {  # what cannot be done after a capture, what the message advises, and that, as code
    "load": (lambda opt, grads: opt.load_state_dict(opt.state_dict()),
             "load and add parameters before the capture, or make a new optimizer",
             lambda opt, params, grads: loaded(opt, params)),
    "add": (lambda opt, grads: opt.add_param_group({"params": grads[:1]}),
            "load and add parameters before the capture, or make a new optimizer",
            lambda opt, params, grads: loaded(opt, params)),
    "another rule": (lambda opt, grads: opt.param_groups[0].update(momentum=0.0) or opt.step([grads]),
                     "make a new optimizer", lambda opt, params, grads: fastopt.SGD([{"params": params}], lr=0.5)),
    "other gradients": (lambda opt, grads: opt.step([[grads[0], None]]),
                        "give gradients to the same ones, that lie as those did",
                        lambda opt, params, grads: opt),
    "a set of its own": (lambda opt, grads: opt.step([[grads[0], None]]), "or use an optimizer for each set",
                         lambda opt, params, grads: fastopt.SGD([{"params": params}], lr=0.5)),
}  # fmt: skip


def loaded(opt, params):
    """A new optimizer that goes on from an old one's state."""
    new = fastopt.SGD([{"params": params}], lr=0.1, momentum=0.5)
    new.load_state_dict(opt.state_dict())
    assert new.param_groups[0]["momentum"] == 0.9
    return new


@pytest.mark.parametrize(("act", "advice", "follow"), AFTER.values(), ids=AFTER.keys())
def test_after_a_capture(device, act, advice, follow):
    """The graph goes on, and so does what is made or given instead."""
    params, grads, stream = on_device(device)
    opt = fastopt.SGD([{"params": params}], lr=0.5, momentum=0.9)
    twice(opt, stream, [grads])
    graph = capture(device, opt, stream, [grads])
    with stream:
        refused(advice, act, opt, grads)
    device.synchronize()
    new = follow(opt, params, grads)
    twice(new, stream, [grads])
    assert_replays(device, graph, params)


def test_captures_on_several_gpus(stand_in):
    """On the streams of all."""
    params, grads, stream = on_device(stand_in, 1)
    with stand_in.cupy.cuda.Device(1):
        for mine, (more,) in zip((params, grads), on_device(stand_in, 1), strict=False):
            mine.append(more)
        other = stand_in.stream()
    opt = fastopt.SGD(params, lr=0.5)

    second, first = (stand_in.cupy.cuda.Device(i) for i in (1, 0))
    with second, other, first:
        twice(opt, stream, grads)
    refused("on the streams of all, or on none", capture, stand_in, opt, stream, grads)
    with second, stand_in.capture(other) as there, first:
        here = capture(stand_in, opt, stream, grads)
    before = [stand_in.get(p) for p in params]
    here.launch()
    there.launch()
    assert all((stand_in.get(p) != x).all() for p, x in zip(params, before, strict=True))


def test_states():
    """Of a state dict: of another dtype, of another library."""
    opt = fastopt.SGD({"w": ones(3)}, momentum=0.9)
    opt.step({"w": ones(3)})
    for make, advice, follow in (
        (lambda x: x.astype(np.float64), "pass .astype(np.float32) of it", lambda x: x.astype(F32)),
        (torch.as_tensor, "pass .to(torch.float32).numpy(force=True) of it",
         lambda x: x.to(torch.float32).numpy(force=True)),
        (list, "pass np.asarray(..., np.float32) of it", lambda x: np.asarray(x, F32)),
    ):  # fmt: skip
        state_dict = opt.state_dict()
        state = state_dict["state"]["w"]
        state["momentum_buffer"] = make(state["momentum_buffer"])
        refused(advice, opt.load_state_dict, state_dict)
        state["momentum_buffer"] = follow(state["momentum_buffer"])
        opt.load_state_dict(state_dict)


def test_groups():
    """Groups are added to groups; each has its own names."""
    opt = fastopt.SGD(ones(3))
    refused("make the optimizer with a list of groups", opt.add_param_group, {"params": ones(2)})
    opt = fastopt.SGD([{"params": ones(3)}])
    refused("a dict with an entry 'params'", opt.add_param_group, ones(2))
    opt.add_param_group({"params": {"w": [ones(2)]}})
    refused("give each its own name", opt.add_param_group, {"params": {"w": [ones(2)]}})
    opt.add_param_group({"params": {"v": [ones(2)]}})


def test_entries_of_groups():
    """What cannot be assigned, what to do instead; and copies of an optimizer."""
    opt = fastopt.SGD([{"params": {"w": ones(2)}}], lr=lambda step: 0.5)
    group = opt.param_groups[0]
    refused("use add_param_group or a new optimizer", group.__setitem__, "params", [ones(3)])
    opt.add_param_group({"params": [ones(3)]})
    refused("assign a schedule to the option itself, as to 'lr'", group.__setitem__, "schedules", {})
    group["lr"] = Cosine(0.5, 10)
    refused("assign its default instead", group.__delitem__, "momentum")
    group["momentum"] = 0.0
    refused("save state_dict(), and load it into an optimizer over the new arrays", copy.deepcopy, opt)
    fastopt.SGD([{"params": {"w": ones(2)}}, {"params": [ones(3)]}]).load_state_dict(
        without_functions(opt.state_dict())
    )


def without_functions(state_dict):
    """A state dict without the schedules that are functions of the user's, as the message advises."""
    fresh = fastopt.SGD([{"params": {"w": ones(2)}}, {"params": [ones(3)]}])
    refused("assign it to the group before loading, or delete 'lr' from 'schedules'", fresh.load_state_dict, state_dict)
    del state_dict["param_groups"][1]["schedules"]["lr"]
    return state_dict


@pytest.mark.parametrize("params", [None, 3.0, [], "abc", [{"w": 1.0}], torch.ones(2), [np.arange(3)]], ids=repr)
@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (fastopt.SGD, {"lr": -1}, "Invalid learning rate: -1"),
        (fastopt.SGD, {"momentum": "x"}, "Invalid momentum value: 'x'"),
        (fastopt.SGD, {"nesterov": 2}, "Invalid nesterov: 2"),
        (fastopt.SGD, {"lr": lambda step: -1.0}, "Invalid learning rate: -1"),
        (fastopt.SGD, {"nesterov": True}, "Nesterov momentum requires"),
        (fastopt.Adam, {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_come_first(make, options, words, params):
    """Wrong options are named before wrong parameters are, as in torch.optim."""
    refused(words, make, params, **options)
