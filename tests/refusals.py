"""Optimizers, invalid arguments, and the assertion that these are refused and change nothing; no tests here."""

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from pairs import usually
from rule_cases import optimizer_of

F32, F64 = np.float32, np.float64
SHAPES = {"w1": (3, 4), "w2": (5,), "w3": (2, 6)}
DTYPES = {"w1": F32, "w2": F32, "w3": F64}
KINDS = {
    "sgd": optimizer_of("sgd", lr=0.1),
    "momentum": optimizer_of("momentum", lr=0.1, dampening=0.1),
    "nesterov": optimizer_of("nesterov", lr=0.1),
    "adagrad": optimizer_of("adagrad", lr=0.1, lr_decay=0.01),
    "adam": optimizer_of("adam_amsgrad", lr=0.1),
}
OTHERS = {  # whose options are tested, and no more
    "rmsprop": optimizer_of("rmsprop", lr=0.1),
    "adamw": optimizer_of("adamw", lr=0.1),
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


OF_ONE = [(kind, name) for name, kind in {name: kind for kind, names in OPTIONS.items() for name in names}.items()]
every_option = pytest.mark.parametrize(
    ("kind", "name"), usually(OF_ONE, [(kind, name) for kind, names in OPTIONS.items() for name in names])
)


def read_only(array):
    """The array, which can no longer be written."""
    array.flags.writeable = False
    return array


SCALAR = lambda s: F32(1)  # noqa: E731
IN_W1 = "the gradient of parameter 'w1'"
BAD_GRADIENTS = {
    "float64": (lambda s: np.zeros((3, 4), F64), TypeError, ["float64", "float32", "astype(np.float32)"]),
    "int": (lambda s: np.zeros((3, 4), int), TypeError, ["int64", "astype(np.float32)"]),
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
