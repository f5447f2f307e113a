"""Bad input: a ValueError or TypeError that names what is wrong and says what to do, and nothing has changed.

Every case runs on a victim and is followed by a correct step, which must give what a twin gives that never saw it.
"""

import copy
import math
from collections.abc import Mapping
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

import fastopt

F32, F64 = np.float32, np.float64
SHAPES = {"w1": (3, 4), "w2": (5,), "w3": (2, 6)}
DTYPES = {"w1": F32, "w2": F32, "w3": F64}
KINDS = {
    "sgd": (fastopt.SGD, {"lr": 0.1}),
    "momentum": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    "nesterov": (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": (fastopt.Adagrad, {"lr": 0.1, "lr_decay": 0.01}),
    "adam": (fastopt.Adam, {"lr": 0.1, "amsgrad": True}),
}
OTHERS = {  # whose options are tested, and no more
    "rmsprop": (fastopt.RMSprop, {"lr": 0.1}),
    "adamw": (fastopt.AdamW, {"lr": 0.1}),
}
STATE = {"momentum": "momentum_buffer", "nesterov": "momentum_buffer", "adagrad": "sum", "adam": "max_exp_avg_sq"}


def values(seed=0):
    """Arrays like the parameters."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(DTYPES[name]) for name, shape in SHAPES.items()}


def frozen(value):
    """A value, with all arrays in it, as something that can be compared to the bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.strides, value.tobytes("A")
    if isinstance(value, Mapping):
        return {key: frozen(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(entry) for entry in value]
    return type(value), repr(value)


class Subject:
    """An optimizer under test, with its parameters."""

    def __init__(self, kind="momentum", steps=0, bound=False, form=dict, **options):
        self.kind, self.form = kind, form
        self.params = values()
        make, defaults = {**KINDS, **OTHERS}[kind]
        self.opt = make(self.shaped(self.params), **{**defaults, **options})
        for seed in range(steps):
            self.opt.step(self.mirrored(values(1 + seed)))
        if bound:
            self.opt.bind(self.mirrored(values(7)))

    def shaped(self, named):
        """Parameters in the form under test: by name, in a list, or in two groups, a dict and an array alone."""
        if self.form == "groups":
            return [{"params": {"w1": named["w1"], "w2": named["w2"]}}, {"params": named["w3"]}]
        return named if self.form is dict else list(named.values())

    def mirrored(self, named):
        """Gradients in that form."""
        shaped = self.shaped(named)
        return [group["params"] for group in shaped] if self.form == "groups" else shaped

    def grads(self, **changed):
        """Good gradients by name, but for those that are changed."""
        return {**values(5), **changed}

    @property
    def group(self):
        """The first group."""
        return self.opt.param_groups[0]

    def snapshot(self):
        """All that an error must not change."""
        groups = [{**group, "params": None} for group in self.opt.param_groups]
        return frozen([self.params, self.opt.state, self.opt.state_dict(), groups, repr(self.opt)])

    def steps(self):
        """Take two correct steps, and return all that they lead to."""
        for seed in (8, 9):
            self.opt.step(self.mirrored(values(seed)))
        return self.snapshot()


def assert_refused(error, words, act, context=None):
    """Assert that an act raises exactly this type of error, and says these words."""
    caught = None
    try:
        act()
    except Exception as raised:
        caught = raised
    assert type(caught) is error, (caught, context)
    for word in words:
        assert word in str(caught), context


def refused(error, words, act, context=None, **situation):
    """Assert that an act on an optimizer is refused, and has changed nothing, then or later."""
    victim, twin = Subject(**situation), Subject(**situation)
    before = victim.snapshot()
    assert_refused(error, words, lambda: act(victim), context or situation)
    assert victim.snapshot() == before, context or situation
    assert victim.steps() == twin.steps(), context or situation


SITUATIONS = [
    {"kind": kind, "steps": steps, "bound": bound}
    for kind in KINDS
    for steps, bound in ((0, False), (2, False), (2, True))
]


# Hyperparameters

NUMBERS = {
    "lr": "learning rate",
    "momentum": "momentum",
    "dampening": "dampening",
    "weight_decay": "weight_decay",
    "lr_decay": "lr_decay",
    "initial_accumulator_value": "initial_accumulator_value",
    "eps": "eps",
    "alpha": "alpha",
}
PAIRS = ("betas",)
OPTIONS = {
    "momentum": ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"),
    "adagrad": ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "maximize"),
    "rmsprop": ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize"),
    "adam": ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"),
    "adamw": ("lr", "betas", "weight_decay", "amsgrad"),
}
BAD_NUMBERS = [
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (-1.0, ValueError),
    (-1, ValueError),
    (-5e-324, ValueError),
    (F32(-0.5), ValueError),
    (F32(np.nan), ValueError),
    (np.array(-1.0), ValueError),
    (Fraction(-1, 3), ValueError),
    (np.longdouble("1e4000"), ValueError),
    (10**400, ValueError),
    ("0.1", TypeError),
    (None, TypeError),
    (True, TypeError),
    (np.True_, TypeError),
    (1j, TypeError),
    ([0.1], TypeError),
    (np.array([0.1]), TypeError),
    (np.array("0.1"), TypeError),
]
BAD_PAIRS = [(value, TypeError) for value in (0.9, None, "ab", (), (0.9,), (0.9, 0.9, 0.9), {0.9: 1, 0.99: 2})]
BAD_PAIRS += [((0.9, value), error) for value, error in BAD_NUMBERS]
BAD_PAIRS += [((value, 0.999), error) for value, error in BAD_NUMBERS]
BAD_PAIRS += [((1.0, 0.999), ValueError), ([0.9, 1], ValueError), ((0.9, 1.5), ValueError)]
BAD_FLAGS = [(value, TypeError) for value in (2, -1, 1.0, "yes", None, [], np.array([True]))]


def bad_values(name):
    """Every value that an option cannot have, and the error."""
    for value, error in BAD_PAIRS if name in PAIRS else BAD_NUMBERS if name in NUMBERS else BAD_FLAGS:
        if name == "dampening" and error is ValueError and -math.inf < value < 0:
            continue  # as in torch, dampening may be negative
        yield value, error


every_option = pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in OPTIONS.items() for name in names]
)


@every_option
def test_options_of_constructors(kind, name):
    """A constructor refuses them, for all parameters and in a group; the parameters are as before and can be used."""
    make, defaults = {**KINDS, **OTHERS}[kind]
    params = values()
    for value, error in bad_values(name):
        for call in (
            lambda value=value: make(params, **{**defaults, name: value}),
            lambda value=value: make([{"params": params, name: value}], **defaults),
            lambda value=value: make([{"params": params}, {"params": np.ones(2), name: value}], **defaults),
        ):
            assert_refused(error, [name, "must be"], call, value)
    assert frozen(params) == frozen(values())
    make(params, **defaults).step(values(5))


@every_option
def test_options_assigned(kind, name):
    """Assigning them to a group raises at once; the former value stays."""
    for value, error in bad_values(name):
        act = lambda s, value=value: s.group.__setitem__(name, value)  # noqa: E731
        refused(error, [name, "must be"], act, value, kind=kind, steps=1)


@every_option
def test_options_of_state_dicts(kind, name):
    """A state dict with one of them is refused whole."""
    for value, error in bad_values(name):
        refused(error, [name, "must be"], loaded(entry(*GROUP, name)(value)), value, kind=kind, steps=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", [1, 3])
def test_values_of_schedules(kind, when):
    """A schedule's value is checked at every step; the next step asks the schedule again."""
    for value, error in BAD_NUMBERS:
        wrong = []
        schedule = lambda step, wrong=wrong: wrong[0] if wrong and step == when else 0.1 / (1 + step)  # noqa: E731
        victim, twin = (Subject(kind, steps=when, lr=schedule) for _ in range(2))
        before = victim.snapshot()
        wrong.append(value)
        for _ in range(2):
            assert_refused(error, ["lr", "must be"], lambda victim=victim: victim.opt.step(victim.grads()), value)
            assert victim.snapshot() == before
        wrong.clear()
        assert victim.steps() == twin.steps()


@pytest.mark.parametrize("kind", KINDS)
def test_first_values_of_schedules(kind):
    """The value for step 0 is checked at construction, and the present one where a schedule is assigned."""
    for value, error in BAD_NUMBERS:
        schedule = lambda step, value=value: value if step in (0, 2) else 0.1  # noqa: E731
        assert_refused(error, ["lr", "must be"], lambda schedule=schedule: Subject(kind, lr=schedule), value)
        act = lambda s, schedule=schedule: s.group.__setitem__("lr", schedule)  # noqa: E731
        refused(error, ["lr", "must be"], act, value, kind=kind, steps=2)


def test_schedules_that_raise():
    """The error of a schedule itself comes through, and nothing has changed."""

    def schedule(step):
        if broken:
            raise ZeroDivisionError("mine")
        return 0.1

    broken = False
    victim, twin = (Subject(steps=1, lr=schedule, bound=True) for _ in range(2))
    before = victim.snapshot()
    broken = True
    for act in (victim.opt.step, lambda: victim.opt.step(victim.grads())):
        with pytest.raises(ZeroDivisionError, match="mine"):
            act()
    assert victim.snapshot() == before
    broken = False
    assert victim.steps() == twin.steps()


def test_a_bad_rate_of_one_group_stops_all_groups():
    """Rates of all groups are checked before any is taken."""
    box = [0.1]
    p, q = np.ones(3, F32), np.ones(3, F64)
    opt = fastopt.SGD([{"params": p, "lr": lambda step: 0.5 / (1 + step)}, {"params": q, "lr": lambda step: box[0]}])
    opt.step([np.ones(3, F32), np.ones(3)])
    box[0] = -1.0
    before = frozen([p, q, opt.state_dict()])
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        opt.step([np.ones(3, F32), np.ones(3)])
    assert frozen([p, q, opt.state_dict()]) == before
    box[0] = 0.1
    opt.step([np.ones(3, F32), np.ones(3)])
    np.testing.assert_array_equal(p, F32(0.25))
    np.testing.assert_array_equal(q, 1 - 0.1 - 0.1)


def test_a_failed_first_step_leaves_no_prepared_state():
    """States begin with what the group says at the step that succeeds, not at one that failed before."""
    box = [0.1]
    p = np.ones(4, F32)
    opt = fastopt.Adagrad(p, lr=lambda step: box[0])
    box[0] = math.nan
    with pytest.raises(ValueError, match="lr must be"):
        opt.step(np.ones(4, F32))
    assert dict(opt.state) == {}
    box[0] = 0.1
    opt.param_groups[0]["initial_accumulator_value"] = 3.0
    opt.step(np.ones(4, F32))
    np.testing.assert_array_equal(opt.state[0]["sum"], F32(4))
    np.testing.assert_array_equal(p, F32(1) - F32(0.1) * F32(1) / (F32(2) + F32(1e-10)))


@pytest.mark.parametrize(
    "options",
    [
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.0},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        {"nesterov": True, "momentum": 0.9, "dampening": -0.1},
    ],
)
def test_nesterov_without_momentum_or_with_dampening(options):
    """Refused by the constructor, in any group, by load_state_dict and by the single call."""
    params = values()
    for call in (
        lambda: fastopt.SGD(params, **options),
        lambda: fastopt.SGD([{"params": params, **options}]),
        lambda: fastopt.fused.momentum(
            params["w1"], values(1)["w1"], values(2)["w1"], **{"lr": 0.1, "momentum": 0.0, **options}
        ),
    ):
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
            call()
    assert frozen(params) == frozen(values())

    def load(s):
        state_dict = s.opt.state_dict()
        state_dict["param_groups"][0].update({"momentum": 0.0, **options})
        s.opt.load_state_dict(state_dict)

    refused(ValueError, ["Nesterov momentum requires"], load, steps=1)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("nesterov", {"momentum": 0.0}),
        ("nesterov", {"dampening": 0.5}),
        ("momentum", {"nesterov": True}),
        ("sgd", {"nesterov": True}),
    ],
)
def test_contradictions_between_steps(kind, change, bound):
    """Options that contradict each other raise at every step until they no longer do."""
    victim, twin = (Subject(kind, steps=2, bound=bound) for _ in range(2))
    before = victim.snapshot()
    former = {name: victim.group[name] for name in change}
    for name, value in change.items():
        victim.group[name] = value
    for _ in range(2):
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
            victim.opt.step() if bound else victim.opt.step(victim.grads())
    for name, value in former.items():
        victim.group[name] = value
    assert victim.snapshot() == before
    if bound:
        victim.opt.step()
        twin.opt.step()
    assert victim.steps() == twin.steps()


# Options that do not exist


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", ["learning_rate", "beta", "step", "foreach", "Lr"])
def test_unknown_options(kind, name):
    """Unknown to the constructor, in a group, and when assigned."""
    make, defaults = {**KINDS, **OTHERS}[kind]
    params = values()
    with pytest.raises(TypeError, match=name):
        make(params, **defaults, **{name: 0.1})
    with pytest.raises(ValueError, match=f"unknown option '{name}'.*lr"):
        make([{"params": params, name: 0.1}], **defaults)
    assert frozen(params) == frozen(values())
    if name != "step":
        refused(ValueError, [f"unknown option '{name}'", "lr"], lambda s: s.group.__setitem__(name, 0.1), kind=kind)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(
    ("error", "words", "act"),
    [
        (ValueError, ["lr", "deleted"], lambda s: s.group.__delitem__("lr")),
        (ValueError, ["deleted"], lambda s: s.group.pop("weight_decay")),
        (ValueError, ["deleted"], lambda s: s.group.clear()),
        (ValueError, ["parameters", "add_param_group"], lambda s: s.group.__setitem__("params", s.params)),
        (ValueError, ["step", "0 or more"], lambda s: s.group.__setitem__("step", -1)),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", 1.0)),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", True)),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", np.array(1.5))),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", np.array([1]))),
        (TypeError, ["step", "int"], lambda s: s.group.__setitem__("step", torch.tensor(1.0))),
        (ValueError, ["step"], lambda s: s.group.__setitem__("step", 10**400)),
        (ValueError, ["unknown option 'beta'"], lambda s: s.group.update(beta=0.1)),
        (ValueError, ["weight_decay"], lambda s: s.group.update(maximize=True, weight_decay=-1)),
    ],
)
def test_groups_keep_their_entries(kind, error, words, act):
    """Entries can be neither deleted nor exchanged for nonsense; an update of several is all or nothing."""
    refused(error, words, act, kind=kind, steps=2)


def test_groups_cannot_be_exchanged():
    """What would be dropped in silence raises."""
    opt = Subject().opt
    for act in (
        lambda: setattr(opt, "param_groups", []),
        lambda: opt.param_groups.__setitem__(0, {"lr": 1.0}),
        lambda: opt.param_groups.append({"params": np.ones(3)}),
        lambda: setattr(opt, "state", {}),
        lambda: opt.state.__setitem__("w1", {}),
    ):
        with pytest.raises((TypeError, AttributeError)):
            act()


# Parameters


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
    "float16": (lambda: np.zeros(6, np.float16), TypeError, ["float16", "astype(np.float32)"]),
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


def read_only(array):
    """The array, which can no longer be written."""
    array.flags.writeable = False
    return array


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
@pytest.mark.parametrize("place", ["p", "velocity", "accumulator"])
def test_single_calls_with_arrays_that_cannot_be_updated(place, make_array, error, words):
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
    assert_refused(error, [place, *words[-1:]], calls[place])
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


# Gradients

SCALAR = lambda s: F32(1)  # noqa: E731
IN_W1 = "the gradient of parameter 'w1'"
BAD_GRADIENTS = {
    "float64": (lambda s: np.zeros((3, 4), F64), TypeError, ["float64", "float32", "astype(np.float32)"]),
    "int": (lambda s: np.zeros((3, 4), int), TypeError, ["int64", "astype(np.float32)"]),
    "float16": (lambda s: np.zeros((3, 4), np.float16), TypeError, ["float16", "astype(np.float32)"]),
    "object": (lambda s: np.zeros((3, 4), object), TypeError, ["object", "astype(np.float32)"]),
    "complex": (lambda s: np.zeros((3, 4), complex), TypeError, ["complex128", "astype(np.float32)"]),
    "foreign": (lambda s: np.zeros((3, 4), np.dtype(F32).newbyteorder()), TypeError, ["order", "astype(np.float32)"]),
    "transposed shape": (lambda s: np.zeros((4, 3), F32), ValueError, ["(4, 3)", "(3, 4)"]),
    "same size": (lambda s: np.zeros((2, 6), F32), ValueError, ["(2, 6)", "(3, 4)"]),
    "flat": (lambda s: np.zeros(12, F32), ValueError, ["(12,)", "(3, 4)"]),
    "one axis more": (lambda s: np.zeros((1, 3, 4), F32), ValueError, ["(1, 3, 4)", "(3, 4)"]),
    "to be broadcast": (lambda s: np.zeros((1, 4), F32), ValueError, ["(1, 4)", "(3, 4)"]),
    "0-d": (lambda s: np.zeros((), F32), ValueError, ["()", "(3, 4)"]),
    "scalar": (SCALAR, ValueError, ["()", "(3, 4)"]),
    "empty": (lambda s: np.zeros((0, 4), F32), ValueError, ["(0, 4)", "(3, 4)"]),
    "float": (lambda s: 0.0, TypeError, ["float", "np.asarray"]),
    "list": (lambda s: [[0.0] * 4] * 3, TypeError, ["list", "np.asarray"]),
    "tensor": (lambda s: torch.zeros(3, 4).double(), TypeError, ["torch.Tensor", "float64", ".numpy(force=True)"]),
    "tensor in a graph": (lambda s: torch.zeros(3, 4).requires_grad_(), TypeError, ["Tensor", ".numpy(force=True)"]),
    "masked": (lambda s: np.ma.zeros((3, 4), F32), TypeError, ["masked", ".filled()"]),
    "its parameter": (lambda s: s.params["w1"], ValueError, ["overlaps parameter 'w1'", ".copy()"]),
    "its parameter, read-only": (
        lambda s: read_only(s.params["w1"][:]), ValueError, ["overlaps parameter 'w1'", ".copy()"]
    ),
    "its parameter, reversed": (lambda s: s.params["w1"][::-1], ValueError, ["overlaps parameter 'w1'", ".copy()"]),
    "element of its parameter": (
        lambda s: np.broadcast_to(s.params["w1"][2:, 3:], (3, 4)),
        ValueError,
        ["overlaps parameter 'w1'", ".copy()"],
    ),
    "another parameter": (
        lambda s: s.params["w3"].reshape(-1).view(F32)[6:18].reshape(3, 4), ValueError, ["overlaps parameter 'w3'"]
    ),
    "over another parameter's edge": (
        lambda s: np.broadcast_to(s.params["w2"][-1:], (3, 4)), ValueError, ["overlaps parameter 'w2'", ".copy()"]
    ),
}  # fmt: skip
ways = pytest.mark.parametrize("way", ["step", "bind"])


@ways
@pytest.mark.parametrize(("make_array", "error", "words"), BAD_GRADIENTS.values(), ids=BAD_GRADIENTS.keys())
def test_gradients_that_do_not_fit(way, make_array, error, words):
    """Of another kind, dtype or shape, or where a parameter lies; bound ones stay bound."""
    if way == "bind" and make_array is SCALAR:
        error, words = TypeError, ["0-d array"]  # which is no use, whatever the shape
    act = lambda s: getattr(s.opt, way)(s.grads(w1=make_array(s)))  # noqa: E731
    for situation in SITUATIONS:
        refused(error, [IN_W1, *words], act, **situation)


@ways
@pytest.mark.parametrize("kind", ["momentum", "nesterov", "adagrad", "adam"])
@pytest.mark.parametrize(
    "view",
    [
        lambda b: b,
        lambda b: b[::-1],
        lambda b: b[:],
        lambda b: read_only(b[:]),
        lambda b: np.broadcast_to(b[:1], (3, 4)),
    ],
)
def test_gradients_over_a_state(kind, way, view):
    """A gradient may not be a state, whichever parameter's, seen in any way."""
    name = STATE[kind]
    act = lambda s: getattr(s.opt, way)(s.grads(w1=view(s.opt.state["w1"][name])))  # noqa: E731
    refused(ValueError, [IN_W1, f"overlaps the {name} of parameter 'w1'", ".copy()"], act, kind=kind, steps=1)


@ways
def test_all_is_checked_before_anything_changes(way):
    """The last gradient of the last dtype is wrong: nothing of the first has changed."""
    words = ["the gradient of parameter 'w3'", "astype(np.float64)"]
    refused(TypeError, words, lambda s: getattr(s.opt, way)(s.grads(w3=np.zeros((2, 6), F32))), kind="adagrad", steps=1)


def test_bound_gradients_survive_a_failed_bind():
    """The former binding is used by the next step."""
    victim, twin = (Subject(steps=1, bound=True) for _ in range(2))
    with pytest.raises(TypeError):
        victim.opt.bind(victim.grads(w3=None, w1=3))
    victim.opt.step()
    twin.opt.step()
    assert victim.snapshot() == twin.snapshot()


@ways
@pytest.mark.parametrize(
    ("form", "mirror", "error", "words"),
    [
        (dict, lambda g: {"w1": g["w1"], "w2": g["w2"]}, ValueError, ["'w3'", "missing", "None"]),
        (dict, lambda g: {**g, "w4": g["w1"]}, ValueError, ["'w4'", "unknown"]),
        (dict, lambda g: {"w1": g["w1"], "w2": g["w2"], "W3": g["w3"]}, ValueError, ["'w3'", "'W3'"]),
        (dict, lambda g: {}, ValueError, ["'w1', 'w2', 'w3'", "missing"]),
        (dict, lambda g: list(g.values()), TypeError, ["dict", "list"]),
        (dict, lambda g: g["w1"], TypeError, ["dict", "ndarray"]),
        (dict, lambda g: None, TypeError, ["dict", "None"]),
        (list, lambda g: [g["w1"], g["w2"]], ValueError, ["3 parameters", "2 gradients", "None"]),
        (list, lambda g: [*g.values(), None], ValueError, ["3 parameters", "4 gradients"]),
        (list, lambda g: [], ValueError, ["3 parameters", "0 gradients"]),
        (list, lambda g: [g["w2"], g["w1"], g["w3"]], ValueError, ["parameter 0", "(5,)", "(3, 4)"]),
        (list, lambda g: g, TypeError, ["list", "dict"]),
        (list, lambda g: (x for x in g.values()), TypeError, ["list", "generator"]),
        (list, lambda g: np.zeros((3, 3, 4), F32), TypeError, ["list", "ndarray"]),
        (list, lambda g: None, TypeError, ["list", "None"]),
        (list, lambda g: {0: g["w1"], 1: g["w2"], 2: g["w3"]}, TypeError, ["list", "dict"]),
        ("groups", lambda g: g, ValueError, ["2 groups"]),
        ("groups", lambda g: [g["w1"], g["w2"], g["w3"]], ValueError, ["2 groups"]),
        ("groups", lambda g: [{"w1": g["w1"], "w2": g["w2"]}], ValueError, ["2 groups"]),
        ("groups", lambda g: [{"w1": g["w1"]}, g["w3"]], ValueError, ["'w2'", "missing"]),
        ("groups", lambda g: [[g["w1"], g["w2"]], g["w3"]], TypeError, ["dict", "list"]),
        ("groups", lambda g: [{"w1": g["w1"], "w2": g["w2"]}, [g["w3"]]], TypeError, ["parameter 2", "list"]),
        ("groups", lambda g: None, ValueError, ["2 groups"]),
        ("groups", lambda g: [None, g["w3"]], TypeError, ["dict", "None"]),
    ],
)
def test_gradients_that_do_not_mirror(way, form, mirror, error, words):
    """Wrong count, wrong keys, the wrong container, groups that are not there."""
    for situation in SITUATIONS:
        refused(error, words, lambda s: getattr(s.opt, way)(mirror(s.grads())), form=form, **situation)


def test_nothing_bound():
    """A step without gradients needs bound ones, before and after steps with others."""
    for situation in SITUATIONS:
        if not situation["bound"]:
            refused(RuntimeError, ["bind(grads)"], lambda s: s.opt.step(), **situation)


# Single calls: their states, all that they can take, and options that they need; and the states that they need.
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
ADAMS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
CALLS = {
    "sgd": ((), {"lr": 0.1}),
    "momentum": (("velocity",), MOMENTUM),
    "nesterov": (("velocity",), MOMENTUM),
    "adagrad": (("accumulator",), {"lr": 0.1}),
    "rmsprop": (("square_avg", "momentum_buffer", "grad_avg"), {"lr": 0.1}),
    "adam": (ADAMS, {"lr": 0.1, "step": 1}),
    "adamw": (ADAMS, {"lr": 0.1, "step": 1}),
}
NEEDED = {name: states[:2] if "adam" in name else states[:1] for name, (states, _) in CALLS.items()}


def test_scalars_cannot_be_bound():
    """A NumPy scalar never changes: a step takes it, a binding does not."""
    p = np.ones((), F32)
    opt = fastopt.SGD(p, lr=0.5)
    with pytest.raises(TypeError, match="0-d array"):
        opt.bind(F32(1))
    opt.step(F32(1))
    assert p == 0.5


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("make_array", "error", "words"), BAD_GRADIENTS.values(), ids=BAD_GRADIENTS.keys())
def test_gradients_of_single_calls(name, make_array, error, words):
    """The same gradients are refused there, and no argument has changed."""
    subject = Subject()
    p, options = subject.params["w1"], CALLS[name][1]
    states = [np.ones((3, 4), F32) for _ in CALLS[name][0]]
    gradient = make_array(subject)
    if isinstance(gradient, np.ndarray) and error is ValueError and not np.shares_memory(gradient, p):
        words = ["(3, 4)"]
        if gradient.shape == (3, 4):
            return  # over another parameter, of which a single call knows nothing
    before = frozen([p, states])
    assert_refused(
        error,
        ["g", *(word.replace("parameter 'w1'", "p") for word in words if "'w1'" not in word)],
        lambda: getattr(fastopt.fused, name)(p, gradient, *states, **options),
    )
    assert frozen([p, states]) == before
    getattr(fastopt.fused, name)(p, np.ones_like(p), *states, **options)


@pytest.mark.parametrize(("name", "state_name"), [(name, state) for name in CALLS for state in CALLS[name][0]])
@pytest.mark.parametrize(
    ("make_state", "error", "words"),
    [
        (lambda p, g: np.zeros((3, 4), F64), TypeError, ["float64", "astype(np.float32)"]),
        (lambda p, g: np.zeros((4, 3), F32), ValueError, ["(4, 3)", "(3, 4)"]),
        (lambda p, g: np.zeros((2, 6), F32), ValueError, ["(2, 6)", "(3, 4)"]),
        (lambda p, g: None, TypeError, ["None"]),
        (lambda p, g: [[0.0] * 4] * 3, TypeError, ["list"]),
        (lambda p, g: p, ValueError, ["p and", "overlap", ".copy()"]),
        (lambda p, g: p[::-1], ValueError, []),
        (lambda p, g: g, ValueError, ["overlap", ".copy()"]),
        (lambda p, g: g[:], ValueError, ["overlap", ".copy()"]),
    ],
)
def test_states_of_single_calls(name, state_name, make_state, error, words):
    """A velocity or accumulator must be like the parameter, lie like it, and be apart from all else."""
    p, g = np.ones((3, 4), F32), np.ones((3, 4), F32)
    states, options = CALLS[name]
    given = {state: np.ones((3, 4), F32) for state in states}
    given[state_name] = make_state(p, g)
    if given[state_name] is None and state_name not in NEEDED[name]:
        return  # without it, the call asks for another rule
    others = [given[state] for state in states if state != state_name]
    assert_refused(error, [state_name, *words], partial(getattr(fastopt.fused, name), p, g, **given, **options))
    assert frozen([p, g, *others]) == frozen([np.ones((3, 4), F32)] * (1 + len(states)))


@pytest.mark.parametrize("call", CALLS)
def test_options_of_single_calls(call):
    """Hyperparameters are checked before the arrays change."""
    function = getattr(fastopt.fused, call)
    states, options = CALLS[call]
    arrays = [np.ones(3, F32) for _ in ("p", "g", *states)]
    for name in {*options, *function.__kwdefaults__} - {"step"}:
        for value, error in bad_values(name):
            act = lambda name=name, value=value: function(*arrays, **{**options, name: value})  # noqa: E731
            assert_refused(error, [name, "must be"], act, value)
    assert frozen(arrays) == frozen([np.ones(3, F32)] * len(arrays))


@pytest.mark.parametrize("call", ["adam", "adamw"])
def test_steps_of_single_calls(call):
    """A step is a whole number from 1; with another one a correction would be of nothing, or of a power that grows."""
    arrays = [np.ones(3, F32) for _ in range(4)]
    for step, error in ((0, ValueError), (-1, ValueError), (2**63, ValueError), (1.0, TypeError), (None, TypeError)):
        act = partial(getattr(fastopt.fused, call), *arrays, lr=0.1, step=step)
        assert_refused(error, ["step must be"], act, step)
    assert frozen(arrays) == frozen([np.ones(3, F32)] * 4)
    getattr(fastopt.fused, call)(*arrays, lr=0.1, step=np.int64(1))


def test_a_momentum_needs_its_buffer():
    """RMSProp's call says so; without a momentum, a buffer is used all the same."""
    p, g, s, v = (np.ones(3, F32) for _ in range(4))
    act = partial(fastopt.fused.rmsprop, p, g, s, lr=0.1, momentum=0.9)
    assert_refused(ValueError, ["momentum=0.9 needs a momentum_buffer", "zeros"], act)
    assert frozen([p, g, s, v]) == frozen([np.ones(3, F32)] * 4)
    fastopt.fused.rmsprop(p, 2 * g, s, v, lr=0.1)
    assert (v != 1).all()


def test_single_calls_have_no_other_options():
    """Unknown names, missing ones, and hyperparameters by position are Python's own TypeError."""
    p, g, v = (np.ones(3, F32) for _ in range(3))
    for call in (
        lambda: fastopt.fused.sgd(p, g, 0.1),
        lambda: fastopt.fused.sgd(p, g),
        lambda: fastopt.fused.sgd(p, g, lr=0.1, momentum=0.9),
        lambda: fastopt.fused.sgd(p, g, lr=lambda step: 0.1),
        lambda: fastopt.fused.momentum(p, g, v, lr=0.1),
        lambda: fastopt.fused.momentum(p, g, lr=0.1, momentum=0.9),
        lambda: fastopt.fused.nesterov(p, g, v, lr=0.1, momentum=0.9, dampening=0.0),
        lambda: fastopt.fused.adagrad(p, g, v, lr=0.1, lr_decay=0.1),
        lambda: fastopt.fused.rmsprop(p, g, lr=0.1),
        lambda: fastopt.fused.rmsprop(p, g, v, lr=0.1, centered=True),
        lambda: fastopt.fused.adam(p, g, v, v, lr=0.1),
        lambda: fastopt.fused.adam(p, g, v, lr=0.1, step=1),
        lambda: fastopt.fused.adamw(p, g, v, v, lr=0.1, step=1, amsgrad=True),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="Nesterov momentum requires"):
        fastopt.fused.nesterov(p, g, v, lr=0.1, momentum=0.0)
    assert frozen([p, g, v]) == frozen([np.ones(3, F32)] * 3)


# State dicts


def entry(*path):
    """Where a state dict is changed."""

    def change(value):
        def act(state_dict):
            target = state_dict
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value(target.get(path[-1])) if callable(value) else value

        return act

    return change


def without(*path):
    """Delete an entry."""

    def act(state_dict):
        target = state_dict
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]

    return act


def renamed(state_dict):
    """Other names, consistently."""
    state_dict["state"]["v1"] = state_dict["state"].pop("w1")
    state_dict["param_groups"][0]["params"] = ["v1", "w2", "w3"]


GROUP = ("param_groups", 0)
BAD_STATE_DICTS = {
    "no state": (without("state"), ValueError, ["'state'", "state_dict()"]),
    "no groups": (without("param_groups"), ValueError, ["'param_groups'", "state_dict()"]),
    "groups not a list": (entry("param_groups")({}), ValueError, ["param_groups"]),
    "no group": (entry("param_groups")([]), ValueError, ["1 param_groups"]),
    "a group too many": (entry("param_groups")(lambda g: g * 2), ValueError, ["1 param_groups"]),
    "group not a dict": (entry("param_groups")([3]), ValueError, ["group 0", "entries"]),
    "group without lr": (without(*GROUP, "lr"), ValueError, ["group 0", "lr"]),
    "group without step": (without(*GROUP, "step"), ValueError, ["group 0", "step"]),
    "group without params": (without(*GROUP, "params"), ValueError, ["group 0", "params"]),
    "option too many": (entry(*GROUP, "foreach")(None), ValueError, ["group 0", "entries"]),
    "params are fewer": (entry(*GROUP, "params")(["w1", "w2"]), ValueError, ["group 0", "'w3'"]),
    "params in another order": (entry(*GROUP, "params")(["w2", "w1", "w3"]), ValueError, ["group 0", "'w2', 'w1'"]),
    "params by index": (entry(*GROUP, "params")([0, 1, 2]), ValueError, ["group 0", "[0, 1, 2]", "'w1'"]),
    "params as arrays": (
        entry(*GROUP, "params")(lambda p: [np.ones(3), np.ones(3), np.ones(3)]),
        ValueError,
        ["group 0", "'w1'"],
    ),
    "params as text": (entry(*GROUP, "params")("w1"), ValueError, ["group 0"]),
    "other names": (renamed, ValueError, ["'v1'", "'w1'"]),
    "schedule as lr": (entry(*GROUP, "lr")(lambda lr: lambda step: 0.1), TypeError, ["lr", "number"]),
    "group step negative": (entry(*GROUP, "step")(-1), ValueError, ["group 0", "step"]),
    "group step a float": (entry(*GROUP, "step")(2.0), TypeError, ["group 0", "step", "int"]),
    "group step a tensor": (entry(*GROUP, "step")(torch.tensor(2.0)), TypeError, ["group 0", "step", "int"]),
    "state not a dict": (entry("state")([]), ValueError, ["state", "'w1'"]),
    "state of a stranger": (entry("state", "w9")({"step": 1}), ValueError, ["'w9'", "'w1'"]),
    "state an array": (entry("state", "w1")(np.ones((3, 4), F32)), ValueError, ["parameter 'w1'", "step"]),
    "state without step": (without("state", "w1", "step"), ValueError, ["parameter 'w1'", "step"]),
    "state of another rule": (entry("state", "w1", "square_avg")(np.ones((3, 4), F32)), ValueError, ["parameter 'w1'"]),
    "step negative": (entry("state", "w1", "step")(-1), ValueError, ["parameter 'w1'", "step"]),
    "step a float": (entry("state", "w1", "step")(1.0), TypeError, ["parameter 'w1'", "step", "int"]),
    "step a bool": (entry("state", "w1", "step")(True), TypeError, ["parameter 'w1'", "step", "int"]),
    "step a tensor": (entry("state", "w1", "step")(torch.tensor(1.0)), TypeError, ["parameter 'w1'", "step", "int"]),
    "step half": (entry("state", "w1", "step")(np.array(1.5)), TypeError, ["parameter 'w1'", "step", "int"]),
    "step an array": (entry("state", "w1", "step")(np.array([1])), TypeError, ["parameter 'w1'", "step", "int"]),
    "step text": (entry("state", "w1", "step")("1"), TypeError, ["parameter 'w1'", "step", "int"]),
    "step None": (entry("state", "w1", "step")(None), TypeError, ["parameter 'w1'", "step", "int"]),
    "step beyond counting": (entry("state", "w1", "step")(10**400), ValueError, ["parameter 'w1'", "step"]),
}
BAD_STATES = {
    "transposed": (lambda a: a.T, ValueError, ["(4, 3)", "(3, 4)"]),
    "same size": (lambda a: a.reshape(2, 6), ValueError, ["(2, 6)", "(3, 4)"]),
    "float64": (lambda a: a.astype(F64), TypeError, ["float64", "astype(np.float32)"]),
    "int": (lambda a: a.astype(int), TypeError, ["int64", "astype(np.float32)"]),
    "foreign": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError, ["order", "astype(np.float32)"]),
    "list": (lambda a: a.tolist(), TypeError, ["list", "np.asarray"]),
    "tensor": (lambda a: torch.as_tensor(a), TypeError, ["torch.Tensor", ".numpy(force=True)"]),
    "None": (lambda a: None, TypeError, ["None"]),
    "masked": (lambda a: np.ma.array(a), TypeError, ["masked"]),
}


def loaded(change):
    """Change a copy of the own state dict in one place, and in others that would show a partial load; then load it."""

    def act(s):
        state_dict = copy.deepcopy(s.opt.state_dict())
        state_dict["state"]["w2"]["step"] = 99
        state_dict["param_groups"][0]["weight_decay"] = 0.5
        change(state_dict)
        s.opt.load_state_dict(state_dict)

    return act


@pytest.mark.parametrize("kind", STATE)
@pytest.mark.parametrize(("change", "error", "words"), BAD_STATE_DICTS.values(), ids=BAD_STATE_DICTS.keys())
def test_state_dicts_that_do_not_fit(kind, change, error, words):
    """Entries that are missing, unknown, of another name or type."""
    refused(error, words, loaded(change), kind=kind, steps=2, bound=True)


@pytest.mark.parametrize("kind", STATE)
@pytest.mark.parametrize(("change", "error", "words"), BAD_STATES.values(), ids=BAD_STATES.keys())
def test_states_that_do_not_fit(kind, change, error, words):
    """Arrays of another shape, dtype or kind."""
    act = loaded(lambda state_dict: entry("state", "w1", STATE[kind])(change)(state_dict))
    refused(error, [f"the {STATE[kind]} of parameter 'w1'", *words], act, kind=kind, steps=2)


def test_an_accumulator_cannot_be_missing():
    """A parameter that has counted steps by AdaGrad has an accumulator; without it the rate would jump."""
    act = loaded(without("state", "w1", "sum"))
    refused(ValueError, ["parameter 'w1'", "sum"], act, kind="adagrad", steps=2)


@pytest.mark.parametrize("given", [None, 3, [], "state", np.ones(3), {}, {"state": {}}, {"param_groups": []}])
def test_what_is_no_state_dict(given):
    """Anything else than a dict with its two entries."""
    refused(ValueError, ["'state'", "'param_groups'"], lambda s: s.opt.load_state_dict(given), steps=1)


@pytest.mark.parametrize(
    ("kind", "other"), [("momentum", "adagrad"), ("adagrad", "momentum"), ("sgd", "adagrad"), ("adam", "rmsprop")]
)
def test_state_dicts_of_another_class(kind, other):
    """SGD's for Adagrad and the other way round, RMSprop's for Adam."""
    foreign = Subject(other, steps=2).opt.state_dict()
    refused(ValueError, [KINDS[kind][0].__name__], lambda s: s.opt.load_state_dict(foreign), kind=kind, steps=1)


@pytest.mark.parametrize("form", [list, "groups"])
def test_state_dicts_of_other_groups(form):
    """Of the same parameters, in other groups or under other keys."""
    foreign = Subject(form=form).opt.state_dict()
    refused(ValueError, ["state dict", "group"], lambda s: s.opt.load_state_dict(foreign), steps=1)


@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize(("make", "kind"), [(torch.optim.SGD, "momentum"), (torch.optim.Adagrad, "adagrad")])
def test_state_dicts_of_torch(make, kind, as_arrays):
    """What torch.optim saves is refused, its tensors turned into arrays or not."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in values().values()]
    options = {"momentum": 0.9} if kind == "momentum" else {}
    optimizer = make(tensors, lr=0.1, **options)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    state_dict = optimizer.state_dict()
    if as_arrays:
        state_dict["state"] = {
            key: {name: value.detach().numpy() for name, value in state.items()}
            for key, state in state_dict["state"].items()
        }
    act = lambda s: s.opt.load_state_dict(state_dict)  # noqa: E731
    refused(ValueError, ["group 0", "entries"], act, kind=kind, steps=1, form=list)
