"""Parameters that cannot be updated, or that overlap, and groups that do not fit."""

import numpy as np
import pytest
import torch
from refusals import F32, F64, assert_refused, frozen, read_only

import fastopt


@pytest.mark.parametrize("make", [fastopt.SGD, fastopt.Adagrad])
@pytest.mark.parametrize(
    ("params", "error", "word"),
    [
        ([], ValueError, "empty"),
        ((), ValueError, "empty"),
        ({}, ValueError, "empty"),
        ([{"params": []}], ValueError, "empty"),
        ([{"params": np.ones(2)}, {"params": {}}], ValueError, "empty"),
        (iter([]), ValueError, "empty"),
        (None, TypeError, "params must be"),
        (3.0, TypeError, "params must be"),
        ("abc", TypeError, "params must be"),
        ([np.ones(2), None], TypeError, "parameter 1 is None"),
        ([np.ones(2), 2.0], TypeError, "parameter 1 is a float"),
        ([np.ones(2), np.float64(1)], TypeError, "parameter 1 is a numpy.float64"),
        ([np.ones(2), [1.0, 2.0]], TypeError, "parameter 1 is a list"),
        ([np.ones(2), {"params": np.ones(2)}], TypeError, "'params'"),
        ({"a": [1.0]}, TypeError, "parameter 'a' is a list"),
        ({"a": torch.ones(2)}, TypeError, "parameter 'a' is a torch.Tensor"),
        ({3: np.ones(2)}, TypeError, "named by strings, not by 3"),
        ([{"lr": 0.1}], TypeError, "'params'"),
        ([{"params": np.ones(2)}, np.ones(2)], TypeError, "'params'"),
        ([{"params": {"a": np.ones(2)}}, {"params": {"a": np.ones(2)}}], ValueError, "'a'"),
        ([{"params": None}], TypeError, "params must be"),
    ],
)
def test_params_that_are_none(make, params, error, word):
    """Empty parameters, things that are not arrays, and groups that are not groups."""
    assert_refused(error, [word], lambda: make(params))


def strided_over(array, shape, strides):
    """A writable view, whatever it overlaps."""
    return np.lib.stride_tricks.as_strided(array, shape, strides)


UNUSABLE = {
    "int64": (lambda: np.arange(6), TypeError, ["int64", "astype(np.float"]),
    "int8": (lambda: np.zeros(6, np.int8), TypeError, ["int8", "astype(np.float32)"]),
    "bool": (lambda: np.zeros(6, bool), TypeError, ["bool", "astype(np.float32)"]),
    "object": (lambda: np.array([1.0, 2.0], object), TypeError, ["object", "astype(np.float"]),
    "longdouble": (lambda: np.zeros(6, np.longdouble), TypeError, [np.dtype(np.longdouble).name, "astype(np.float"]),
    "complex64": (lambda: np.zeros(6, np.complex64), TypeError, ["complex64", "(np.float32)"]),
    "text": (lambda: np.array(["1.0"]), TypeError, ["str", "astype(np.float"]),
    "record": (lambda: np.zeros(6, [("a", F32)]), TypeError, ["astype(np.float"]),
    "date": (lambda: np.zeros(6, "M8[s]"), TypeError, ["datetime64", "astype(np.float"]),
    "foreign float32": (
        lambda: np.zeros(6, np.dtype(F32).newbyteorder()),
        TypeError,
        ["byte order", "astype(np.float32)"],
    ),
    "foreign float64": (
        lambda: np.zeros(6, np.dtype(F64).newbyteorder()),
        TypeError,
        ["byte order", "astype(np.float"],
    ),
    "masked": (lambda: np.ma.masked_equal(np.arange(6.0), 3), TypeError, ["masked", ".filled()"]),
    "read-only": (lambda: read_only(np.zeros(6, F32)), ValueError, ["read-only", ".copy()"]),
    "of bytes": (lambda: np.frombuffer(b"01234567", F32), ValueError, ["read-only", ".copy()"]),
    "broadcast": (lambda: np.broadcast_to(F32(1), (2, 3)), ValueError, [".copy()"]),
    "broadcast, writable": (lambda: strided_over(np.zeros(3, F32), (2, 3), (0, 4)), ValueError, ["dense", ".copy()"]),
    "one element, repeated": (lambda: strided_over(np.zeros(1, F32), (6,), (0,)), ValueError, ["dense", ".copy()"]),
    "over itself": (lambda: strided_over(np.zeros(9, F32), (4, 3), (4, 4)), ValueError, ["dense", ".copy()"]),
    "with gaps": (lambda: np.zeros((4, 6), F32)[:, :3], ValueError, ["dense", ".copy()"]),
    "every second": (lambda: np.zeros(6, F32)[::2], ValueError, ["dense", ".copy()"]),
    "unaligned": (lambda: np.zeros(25, np.uint8)[1:].view(F32), ValueError, [".copy()"]),
}
unusable = pytest.mark.parametrize(("make_array", "error", "words"), UNUSABLE.values(), ids=UNUSABLE.keys())


@unusable
@pytest.mark.parametrize("make", [fastopt.SGD, fastopt.Adagrad])
def test_parameters_that_cannot_be_updated(make, make_array, error, words):
    """By themselves, by name, in a group, and added later; what is passed is never written."""
    bad, good = make_array(), np.ones(4, F32)
    opt = make([{"params": good}])
    before = frozen([np.ma.getdata(bad), good, opt.state_dict()])
    for call, name in (
        (lambda: make(bad), "parameter 0"),
        (lambda: make([good, bad]), "parameter 1"),
        (lambda: make({"a": good, "bad": bad}), "parameter 'bad'"),
        (lambda: make([{"params": good}, {"params": {"bad": bad}}]), "parameter 'bad'"),
        (lambda: opt.add_param_group({"params": bad}), "parameter 1"),
    ):
        assert_refused(error, [name, *words], call)
    assert frozen([np.ma.getdata(bad), good, opt.state_dict()]) == before
    opt.step([np.ones(4, F32)])
    assert good[0] < 1


@unusable
@pytest.mark.parametrize("name", ["p", "velocity", "accumulator"])
def test_single_calls_with_arrays_that_cannot_be_updated(name, make_array, error, words):
    """A parameter, a velocity, an accumulator; as a gradient only dtype and kind matter."""
    bad = make_array()
    dtype = bad.dtype if bad.dtype in (F32, F64) else F32
    p, g, state = (np.full(bad.shape, value, dtype) for value in (1, 2, 3))
    before = frozen([np.ma.getdata(bad), p, g, state])
    calls = {
        "p": lambda: fastopt.fused.momentum(bad, g, state, lr=0.1, momentum=0.9),
        "velocity": lambda: fastopt.fused.momentum(p, g, bad, lr=0.1, momentum=0.9),
        "accumulator": lambda: fastopt.fused.adagrad(p, g, bad, lr=0.1),
    }
    assert_refused(error, [name, *words[-1:]], calls[name])
    assert frozen([np.ma.getdata(bad), p, g, state]) == before
    if error is TypeError and not isinstance(bad, np.ma.MaskedArray):
        with pytest.raises(TypeError, match=r"g has dtype .*astype\(np\.float"):
            fastopt.fused.sgd(p, bad, lr=0.1)
        assert frozen([bad, p]) == [before[0], before[1]]


BUFFER = np.arange(24, dtype=F32)
OVERLAPPING = {
    "twice": lambda b: (b, b),
    "two views of one": lambda b: (b[:], b[:]),
    "reshaped": lambda b: (b, b.reshape(4, 6)),
    "transposed": lambda b: (b.reshape(4, 6), b.reshape(4, 6).T),
    "reversed": lambda b: (b, b[::-1]),
    "part": lambda b: (b, b[5:7]),
    "by one element": lambda b: (b[:13], b[12:]),
    "by one element, backwards": lambda b: (b[12:][::-1], b[:13][::-1]),
    "of another dtype": lambda b: (b, b.view(F64)[2:3]),
    "inside": lambda b: (b[10:11], b),
}


@pytest.mark.parametrize("pair", OVERLAPPING.values(), ids=OVERLAPPING.keys())
@pytest.mark.parametrize("make", [fastopt.SGD, fastopt.Adagrad])
def test_parameters_that_overlap(make, pair):
    """One array given twice, or two that share memory, within and between groups, and added later."""
    buffer = BUFFER.copy()
    a, b = pair(buffer)
    apart = np.ones(3, F32)
    opt = make([{"params": a}])
    for call, names in (
        (lambda: make([a, apart, b]), ("parameter 0", "parameter 2")),
        (lambda: make({"a": a, "x": apart, "b": b}), ("parameter 'a'", "parameter 'b'")),
        (lambda: make([{"params": {"b": b}}, {"params": {"x": apart, "a": a}}]), ("parameter 'a'", "parameter 'b'")),
        (lambda: opt.add_param_group({"params": b}), ("parameter 0", "parameter 1")),
    ):
        assert_refused(ValueError, [*names, "overlap", "cop"], call)
    assert frozen(buffer) == frozen(BUFFER)
    assert len(opt.param_groups) == 1
    opt.step([np.ones_like(a)])


def test_neighbours_do_not_overlap():
    """Views side by side, and empty ones anywhere, are parameters like any other."""
    buffer = np.ones(24, F32)
    params = [buffer[:5], buffer[5:11].reshape(2, 3), buffer[11:11], buffer[11:], buffer[3:3]]
    fastopt.SGD(params, lr=0.5).step([np.ones_like(p) for p in params])
    np.testing.assert_array_equal(buffer, F32(0.5))


def test_groups_that_do_not_fit_are_not_added():
    """An optimizer to which a group cannot be added is as before, its binding included."""
    params, twins = np.ones(3, F32), np.ones(3, F32)
    gradient = np.ones(3, F32)
    opt, twin = (fastopt.SGD([{"params": p}], lr=0.1, momentum=0.9) for p in (params, twins))
    opt.step([gradient])
    twin.step([gradient])
    opt.bind([gradient])
    before = frozen([params, opt.state_dict()])
    for group, error in (
        ({"params": np.ones(2), "lr": -1}, ValueError),
        ({"params": np.ones(2), "nesterov": True, "momentum": 0.0}, ValueError),
        ({"params": np.ones(2), "beta": 1}, ValueError),
        ({"params": [np.ones(2), params]}, ValueError),
        ({"params": [np.ones(2), np.arange(3)]}, TypeError),
        ({"params": []}, ValueError),
        ({"lr": 0.1}, TypeError),
        (np.ones(2), TypeError),
    ):
        with pytest.raises(error):
            opt.add_param_group(group)
        assert frozen([params, opt.state_dict()]) == before
    opt.step()
    twin.step([gradient])
    assert frozen([params, opt.state_dict()]) == frozen([twins, twin.state_dict()])
    with pytest.raises(ValueError, match="list of groups"):
        fastopt.SGD(np.ones(3)).add_param_group({"params": np.ones(2)})
