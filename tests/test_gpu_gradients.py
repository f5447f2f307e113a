"""How gradients on a GPU are read: those in their parameters' layout at once, whatever else after a closer look."""

import importlib
import sys

import numpy as np
import pytest
from fastopt.bench import oracle
from fastopt.kernels.reader import UNREAD, Reader
from gpu_steps import DTYPES, arrays, assert_trained, bits, follow, normal, plain, state_arrays
from test_gpu import PARAMS

import fastopt
from fastopt.backends.cupy.parameter import CupyParameter

OPTIONS = {"lr": 0.1, "momentum": 0.9}


@pytest.fixture(params=[True, False], ids=["extension", "no extension"])
def extension(request, monkeypatch):
    """With the extension, and as where it was not built."""
    if not request.param:
        monkeypatch.setattr("fastopt.kernels.reader.lib", None)
    return request.param


@pytest.fixture
def checks(monkeypatch):
    """The names of the checks of single gradients, as they are called."""
    called = []

    def noted(name, method):
        def check(*given):
            called.append(name)
            return method(*given)

        monkeypatch.setattr(CupyParameter, name, check)

    noted("alike", CupyParameter.alike)
    noted("checked_gradient", CupyParameter.checked_gradient)
    return called


def trained(device, params, **options):
    """An optimizer after a step, so that there are states, and the oracle's trainer at the same point."""
    grads = [device.array(normal(np.random.default_rng(1), p.shape, p.dtype)) for p in params]
    trainer = oracle.Trainer(plain(device, params))
    opt = fastopt.SGD(params, **OPTIONS, **options)
    opt.step(grads)
    follow(device, trainer, "momentum", grads, OPTIONS)
    return opt, trainer


# The usual ones


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_gradients_are_read_at_once(device, dtype, extension, checks):
    """None is looked at by itself, whatever their parameters' layout, dtype and shape; some are missing."""
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (700,), (), (1,), (4, 1, 3), (1, 6)]
    layouts = [PARAMS["C"], PARAMS["Fortran"]]
    lay = [layouts[i % 2] if len(shape) > 1 else layouts[0] for i, shape in enumerate(shapes)]
    params = [device.array(put(normal(rng, shape, dtype))) for put, shape in zip(lay, shapes, strict=True)]
    opt, trainer = trained(device, params)
    opt.step([None] * len(params))  # after the first step, there is more to be kept off
    for missing in (None, 2, None, None):
        grads = [device.array(put(normal(rng, shape, dtype))) for put, shape in zip(lay, shapes, strict=True)]
        if missing is not None:
            grads[missing] = None
        before = bits(device, [g for g in grads if g is not None])
        checks.clear()
        opt.step(grads)
        assert set(checks) == (set() if extension else {"alike"})
        assert bits(device, [g for g in grads if g is not None]) == before
        follow(device, trainer, "momentum", grads, OPTIONS)
    assert_trained(device, opt, params, trainer)


def test_beside_gradients_on_the_host(device, extension, checks):
    """In one call, those of NumPy and those of CuPy, in any order."""
    params = [device.array(np.ones((3, 5), np.float32)), np.ones(4), device.array(np.ones(700, np.float32)), np.ones(2)]
    opt = fastopt.SGD(params, lr=0.5)
    for _ in range(3):
        grads = [device.array(np.ones((3, 5), np.float32)), np.ones(4), None, np.ones(2)]
        opt.step(grads)
    assert set(checks) == (set() if extension else {"alike"})
    for p, want in zip(params, (-0.5, -0.5, 1.0, -0.5), strict=True):
        assert ((p if isinstance(p, np.ndarray) else device.get(p)) == want).all()


# Those that are read after a closer look


ODD = {
    "Fortran": lambda device, g: device.array(np.asfortranarray(g)),
    "every second": lambda device, g: device.array(np.repeat(g, 2, axis=1))[:, ::2],
    "backwards": lambda device, g: device.array(np.ascontiguousarray(g[::-1]))[::-1],
    "one row for all": lambda device, g: device.array(np.broadcast_to(g[:1], g.shape)),
    "foreign": lambda device, g: device.foreign(device.array(g)),
    "only DLPack": lambda device, g: device.only_dlpack(device.array(g)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_gradients_are_read_one_by_one(device, name, extension, checks):
    """Only these; they train as others do, and are only read."""
    shapes = [(3, 5), (4, 6), (700,)]
    params = arrays(device, shapes)
    opt, trainer = trained(device, params)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        here = [normal(rng, shape) for shape in shapes]
        if name == "one row for all":
            here[1] = np.broadcast_to(here[1][:1], (4, 6))
        there = [device.array(here[0]), ODD[name](device, here[1]), device.array(here[2])]
        checks.clear()
        opt.step(there)
        assert checks.count("checked_gradient") == 1
        assert checks.count("alike") == (1 if extension else 3)
        trainer.step("momentum", here, OPTIONS)
    assert_trained(device, opt, params, trainer)


@pytest.mark.parametrize("lay", ["backwards", "both backwards", "Fortran, backwards"])
def test_parameters_that_run_backwards(device, lay, extension):
    """Their gradients lie as they do, which takes a closer look."""
    here = PARAMS[lay](normal(np.random.default_rng(0), (5, 7)))
    params = [device.array(here)]
    opt, trainer = trained(device, params)
    for seed in range(2):
        grads = [PARAMS[lay](normal(np.random.default_rng(seed), (5, 7)))]
        opt.step([device.array(grads[0])])
        trainer.step("momentum", grads, OPTIONS)
    assert_trained(device, opt, params, trainer)


def test_gradients_of_a_class_of_ones_own(stand_in, extension, checks):
    """A subclass may be anything: it is looked at, and so is a gradient of a parameter that is of one."""

    class Own(stand_in.cupy.ndarray):
        """Of one's own."""

    params = [stand_in.array(np.ones(3, np.float32)), Own(stand_in.array(np.ones(3, np.float32)).host)]
    opt = fastopt.SGD(params, lr=0.5)
    plain_, own = stand_in.array(np.ones(3, np.float32)), Own(stand_in.array(np.ones(3, np.float32)).host)
    for grads, slow in (([plain_, plain_], 1), ([own, own], 1), ([own, plain_], 2)):
        checks.clear()
        opt.step(grads)
        assert checks.count("checked_gradient") == slow
    for p in params:
        assert (stand_in.get(p) == -0.5).all()


def test_empty_gradients(device, extension):
    """They have no memory, and take part."""
    params = [device.array(np.ones(shape, np.float32)) for shape in ((0,), (3, 0), (4,))]
    opt = fastopt.SGD(params, lr=0.5)
    for _ in range(3):
        opt.step([device.array(np.ones(shape, np.float32)) for shape in ((0,), (3, 0), (4,))])
    assert [opt.state[i]["step"] for i in range(3)] == [3, 3, 3]
    assert (device.get(params[2]) == -0.5).all()


# Those that are refused


WRONG = {
    "dtype": (lambda device, opt, p: device.array(np.ones((3, 5))), TypeError, "dtype float64, its parameter float32"),
    "as many bytes": (lambda device, opt, p: device.array(np.ones((3, 5), np.int32)), TypeError, "dtype int32"),
    "shape": (lambda device, opt, p: device.array(np.ones((5, 3), np.float32)), ValueError, r"shape \(5, 3\)"),
    "fewer axes": (lambda device, opt, p: device.array(np.ones(15, np.float32)), ValueError, r"shape \(15,\)"),
    "more axes": (
        lambda device, opt, p: device.array(np.ones((1, 3, 5), np.float32)),
        ValueError,
        r"shape \(1, 3, 5\)",
    ),
    "a row less": (lambda device, opt, p: device.array(np.ones((2, 5), np.float32)), ValueError, r"shape \(2, 5\)"),
    "its parameter": (lambda device, opt, p: p[0], ValueError, "overlaps parameter 0"),
    "another parameter": (lambda device, opt, p: p[1][:15].reshape(3, 5), ValueError, "overlaps parameter 1"),
    "the end of one": (lambda device, opt, p: p[1][685:].reshape(3, 5), ValueError, "overlaps parameter 1"),
    "a state": (lambda device, opt, p: opt.state[0]["momentum_buffer"], ValueError, "overlaps the momentum_buffer"),
    "on the host": (lambda device, opt, p: np.ones((3, 5), np.float32), TypeError, "not an array on a GPU"),
    "a list": (lambda device, opt, p: [[1.0] * 5] * 3, TypeError, "list"),
    "a number": (lambda device, opt, p: 1.0, TypeError, "not an array on a GPU"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_gradients_are_refused(device, name, extension):
    """In the first step and in a later one, before anything has changed; the next step goes on."""
    make, error, match = WRONG[name]
    params = arrays(device)
    opt, trainer = trained(device, params)
    grads = arrays(device, seed=2)
    for _ in range(2):
        watched = [*params, *grads, *state_arrays(opt)]
        before = bits(device, watched)
        with pytest.raises(error, match=match):
            opt.step([make(device, opt, params), *grads[1:]])
        assert bits(device, watched) == before
        opt.step(grads)
        follow(device, trainer, "momentum", grads, OPTIONS)
    assert_trained(device, opt, params, trainer)


def test_gradients_on_another_gpu_are_refused(stand_in, extension):
    """Also where all else is as expected."""
    params = arrays(stand_in)
    opt, _ = trained(stand_in, params)
    with stand_in.cupy.cuda.Device(1):
        elsewhere = arrays(stand_in, seed=3)
    before = bits(stand_in, params)
    with pytest.raises(ValueError, match="gradient of parameter 1 is on GPU 1, its parameter on GPU 0"):
        opt.step([arrays(stand_in, seed=3)[0], elsewhere[1], None])
    assert bits(stand_in, params) == before


def test_gradients_off_their_elements_are_refused(stand_in, extension):
    """A GPU cannot read what is not aligned to its elements."""
    params = arrays(stand_in)
    opt, _ = trained(stand_in, params)
    shifted = np.zeros(62, np.uint8)[2:].view(np.float32).reshape(3, 5)
    assert not shifted.flags.aligned
    with pytest.raises(ValueError, match="gradient of parameter 0 is not aligned"):
        opt.step([stand_in.cupy.ndarray(shifted), None, None])


# CuPy's own arrays; there is no memory at their addresses, nor need there be


OCCUPIED = 0x7F0000001000, 0x7F0000001100  # what gradients must keep off
FREE = 0x7F0000002000


def placed(shape=(3, 5), dtype=np.float32, address=FREE, strides=None, device=0, kind="ndarray"):
    """An array of CuPy, or of a subclass, at an address."""
    cupy = importlib.import_module("cupy")
    memory = cupy.cuda.UnownedMemory(address, 4096, None, device_id=device)
    kinds = {"ndarray": cupy.ndarray, "subclass": type("Own", (cupy.ndarray,), {})}
    return kinds[kind](shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0), strides=strides)


READ = {
    "another address": {"address": FREE + 4},
    "right before": {"address": OCCUPIED[0] - 60},
    "right behind": {"address": OCCUPIED[1]},
}
LEFT = {
    "dtype": {"dtype": np.int32},
    "byte order": {"dtype": ">f4"},
    "halves": {"dtype": np.float16},
    "shape": {"shape": (5, 3)},
    "a row less": {"shape": (2, 5)},
    "fewer axes": {"shape": (15,)},
    "more axes": {"shape": (1, 3, 5)},
    "Fortran": {"strides": (4, 12)},
    "backwards": {"strides": (-20, 4), "address": FREE + 40},
    "gaps": {"strides": (40, 8)},
    "one for all": {"strides": (0, 0)},
    "device": {"device": 1},
    "not aligned": {"address": FREE + 2},
    "no memory": {"address": 0},
    "over the start": {"address": OCCUPIED[0] - 56},
    "over the end": {"address": OCCUPIED[1] - 4},
    "inside": {"address": OCCUPIED[0] + 64},
    "subclass": {"kind": "subclass"},
}


def reader(*expected):
    """A reader of such arrays."""
    return Reader(expected, *np.array([OCCUPIED]).T.copy())


@pytest.mark.parametrize("name", [*READ, *LEFT])
def test_the_reader_looks_into_cupys_arrays(name):
    """It reads those that are as expected, and leaves all others; a missing one is none."""
    given_ = placed(**{**READ, **LEFT}[name])
    addresses, unread, none = reader(placed(), placed(), placed(), None).read([given_, placed(), None, placed()])
    assert addresses.tolist() == [given_.data.ptr if name in READ else UNREAD, FREE, 0, UNREAD]
    assert (unread, none) == (1 + (name in LEFT), 1)


def test_the_reader_keeps_nothing_and_takes_anything():
    """No reference is lost or left behind, whatever is looked at."""
    subject = reader(placed(), np.ones(3), placed())
    others = [placed(**changed) for changed in LEFT.values()]
    items = [*others, object(), 1.0, "text", np.ones(3), placed, type(placed()), [1.0]]
    shared = [np.dtype(np.float32), *items]
    for item in items:
        subject.read([item, item, item])
    before = [sys.getrefcount(each) for each in shared]
    for _ in range(100):
        for item in items:
            subject.read([item, item, item])
    assert [sys.getrefcount(each) for each in shared] == before
