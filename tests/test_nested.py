"""Parameters in nested containers: paths, gradients that mirror them, state dicts, and what does not match."""

import copy
from collections import OrderedDict, UserDict, UserList, deque, namedtuple
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import pytest
from fastopt.bench import oracle
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rule_cases import OPTIMIZERS, OPTIONS
from tolerances import TRAJECTORY, assert_close

import fastopt

F32 = np.float32
Layer = namedtuple("Layer", "w b")
ARRAY = object()  # stands for an array in a drawn structure
NAMES = st.sampled_from(["w", "b", "enc", "0", "", "a.b"])


def ones(*shape):
    """An array of ones."""
    return np.ones(shape, F32)


def structures():
    """Structures of lists, tuples and dicts, empty ones included."""
    return st.recursive(
        st.just(ARRAY),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.tuples(inner, inner).map(lambda pair: Layer(*pair)),
            st.dictionaries(NAMES, inner, max_size=3),
        ),
        max_leaves=8,
    )


def leaves(structure):
    """The leaves of a structure, in order."""
    if isinstance(structure, dict):
        return [leaf for entry in structure.values() for leaf in leaves(entry)]
    if isinstance(structure, (list, tuple)):
        return [leaf for entry in structure for leaf in leaves(entry)]
    return [structure]


def filled(structure, values, sequence=None):
    """The structure with these values for leaves, its sequences perhaps of another type."""
    if isinstance(structure, dict):
        return {name: filled(entry, values, sequence) for name, entry in structure.items()}
    if isinstance(structure, (list, tuple)):
        entries = [filled(entry, values, sequence) for entry in structure]
        make = sequence or (type(structure)._make if isinstance(structure, Layer) else type(structure))
        return make(entries)
    return next(values)


def paths(structure, above=()):
    """The path of each leaf."""
    entries = structure.items() if isinstance(structure, dict) else enumerate(structure)
    for name, entry in entries:
        if entry is ARRAY:
            yield ".".join([*above, str(name)])
        else:
            yield from paths(entry, (*above, str(name)))


def is_nested(structure):
    """Whether a container holds containers."""
    entries = structure.values() if isinstance(structure, dict) else structure
    return any(entry is not ARRAY for entry in entries)


@settings(max_examples=150, deadline=None)
@given(structures(), st.sampled_from(sorted(OPTIMIZERS)), st.randoms(use_true_random=False))
def test_nested_is_as_flat(structure, kind, random):
    """Steps over nested arrays equal those over a flat list to the bit, with a state dict's round trip between."""
    assume(structure is not ARRAY and leaves(structure))
    names = list(paths(structure))
    rng = np.random.default_rng(random.randrange(2**32))
    start = [rng.standard_normal(random.choice([(3,), (2, 2), ()])).astype(F32) for _ in names]
    make, options = OPTIMIZERS[kind]
    flat, nested = copy.deepcopy(start), copy.deepcopy(start)
    params = filled(structure, iter(nested))
    if len(set(names)) < len(names):
        with pytest.raises(ValueError, match="have the path"):
            make(params, **options)
        return
    twin, opt = make(flat, **options), make(params, **options)
    for when in range(4):
        grads = [rng.standard_normal(x.shape).astype(F32) if random.random() < 0.8 else None for x in start]
        twin.step(grads)
        opt.step(filled(structure, iter(grads), random.choice([None, list, tuple, deque])))
        if when == 1:
            saved = opt.state_dict()
            opt = make(params, **options)
            opt.load_state_dict(saved)
    for ours, theirs in zip(nested, flat, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    if is_nested(structure):
        assert opt.state_dict()["param_groups"][0]["params"] == names
    for number, key in enumerate(opt.state_dict()["param_groups"][0]["params"]):
        assert (key in opt.state) == (number in twin.state)
        for entry, value in twin.state.get(number, {}).items():
            np.testing.assert_array_equal(opt.state[key][entry], value)


def test_against_the_oracle():
    """Layers of (W, b), as autograd's users have them, with a layer that has no parameters."""
    rng = np.random.default_rng(0)
    params = [(rng.standard_normal((3, 4)), rng.standard_normal(4)), (), (rng.standard_normal((4, 2)), np.zeros(2))]
    flat = leaves(params)
    trainer = oracle.Trainer(flat)
    opt = fastopt.SGD(params, lr=0.1, momentum=0.9)
    for _ in range(4):
        g = [rng.standard_normal(x.shape) for x in flat]
        opt.step([(g[0], g[1]), (), (g[2], g[3])])
        trainer.step("momentum", g, {**OPTIONS, "lr": 0.1, "momentum": 0.9})
    for ours, wanted in zip(flat, trainer.params, strict=True):
        assert_close(ours, wanted, TRAJECTORY)


def test_paths():
    """Nested arrays have paths as keys, a flat list numbers, and a flat dict its names, with dots or without."""
    cases = [
        ([ones(1), ones(1)], [0, 1]),
        (Layer(ones(1), ones(1)), [0, 1]),
        ({"a.b": ones(1), "a": ones(1)}, ["a.b", "a"]),
        ([(ones(1), ones(1)), ones(1)], ["0.0", "0.1", "1"]),
        ([Layer(ones(1), ones(1)), ()], ["0.0", "0.1"]),
        ({"enc": {"w": ones(1)}, "b": ones(1)}, ["enc.w", "b"]),
        ({"params": {"dense": {"kernel": ones(1)}}}, ["params.dense.kernel"]),
        ([{"w": ones(1)}, {"w": ones(1)}], ["0.w", "1.w"]),
        ([{"w": ones(1), "lr": ones(1)}], ["0.w", "0.lr"]),
    ]
    for params, keys in cases:
        assert fastopt.SGD(params).state_dict()["param_groups"][0]["params"] == keys


def test_on_a_gpu(device):
    """Arrays of CuPy, beside arrays of NumPy, in the same containers."""
    w, b, host = device.array(ones(2, 3)), device.array(ones(3)), ones(4)
    opt = fastopt.SGD({"gpu": [(w, b), ()], "host": host}, lr=0.5, momentum=0.9)
    opt.step({"gpu": [None, None], "host": ones(4)})
    opt.step({"gpu": [[device.array(ones(2, 3)), None], ()], "host": None})
    opt.bind({"gpu": [[None, device.array(ones(3))], ()], "host": None})
    opt.step()
    saved = opt.state_dict()
    assert saved["param_groups"][0]["params"] == ["gpu.0.0", "gpu.0.1", "host"]
    opt.load_state_dict(saved)
    assert [opt.state[key]["step"] for key in ("gpu.0.0", "gpu.0.1", "host")] == [1, 1, 1]
    for x in (device.get(w), device.get(b), host):
        np.testing.assert_array_equal(x, F32(0.5))
    with pytest.raises(ValueError, match=r"two parameters have the path 'a\.b'"):
        fastopt.SGD({"a": {"b": w}, "a.b": b})


class Rows(Sequence):
    """A sequence of the rows of an array, which are made at each access: views of it, or copies."""

    def __init__(self, table, copied):
        self.table, self.copied = table, copied

    def __getitem__(self, index):
        return self.table[index].copy() if self.copied else self.table[index]

    def __len__(self):
        return len(self.table)


def test_arrays_that_are_made_at_each_access():
    """They are refused where they are copies, which nobody would hold, and trained where they are views."""
    table = ones(3, 2)
    for wrap in (lambda rows: rows, lambda rows: {"a": [rows]}, lambda rows: [{"params": rows}]):
        with pytest.raises(ValueError, match=r"another array of '.*' at each access"):
            fastopt.SGD(wrap(Rows(table, copied=True)))
        fastopt.SGD(wrap(Rows(table, copied=False)))
    fastopt.SGD({"a": [Rows(table, copied=False)]}, lr=0.5).step({"a": [Rows(ones(3, 2), copied=True)]})
    assert (table == 0.5).all()


def test_groups():
    """A list of dicts is one of groups where they have "params"; what is nested there is numbered across groups."""
    groups = [
        {"params": [(ones(1), ones(1)), (), (), (ones(1),)], "lr": 0.5},
        {"params": {"head": [ones(1), {"b": ones(1)}]}},
        {"params": [ones(1)]},
        {"params": ([ones(1)],)},
    ]
    opt = fastopt.SGD(groups, lr=0.25)
    keys = [group["params"] for group in opt.state_dict()["param_groups"]]
    assert keys == [["0.0", "0.1", "3.0"], ["head.0", "head.1.b"], [6], ["7.0"]]
    opt.step([[None, (), None, [ones(1)]], {"head": [None, {"b": ones(1)}]}, [None], [[ones(1)]]])
    assert list(opt.state) == ["3.0", "head.1.b", "7.0"]
    assert groups[0]["params"][3][0] == 0.5
    assert groups[1]["params"]["head"][1]["b"] == 0.75
    opt.add_param_group({"params": {"late": [ones(1)]}})
    opt.add_param_group({"params": [[ones(1)]]})
    keys = [group["params"] for group in opt.state_dict()["param_groups"]]
    assert keys[4:] == [["late.0"], ["9.0"]]


def test_what_a_group_shows():
    """Its params have the form that was given, and cannot be changed."""
    w, b, c = ones(1), ones(2), ones(3)
    given = fastopt.SGD([{"w": w, "b": [b]}, c]).param_groups[0]["params"]
    assert isinstance(given, tuple)
    assert isinstance(given[0], MappingProxyType)
    assert given[0]["w"] is w
    assert given[0]["b"][0] is b
    assert given[1] is c
    assert "0.b.0" in repr(fastopt.SGD([{"w": w, "b": [b]}, c]).param_groups[0])


def test_bound_gradients():
    """They are written where they are, and read at each step."""
    params = {"enc": [ones(2), ones(3)], "b": ones(1)}
    grads = {"b": ones(1), "enc": (ones(2), ones(3))}
    opt = fastopt.SGD(params, lr=0.5)
    opt.bind(grads)
    opt.step()
    grads["enc"][1][...] = 2
    opt.step()
    assert params["enc"][0].tolist() == [0, 0]
    assert params["enc"][1].tolist() == [-0.5] * 3
    opt.bind({"b": None, "enc": None})
    with pytest.raises(ValueError, match="'enc'"):
        opt.bind({"b": None, "enc": [None]})
    opt.step()
    assert params["b"] == 0


def test_containers_of_many_types():
    """Any mapping and any sequence, of parameters and of gradients."""
    forms = [
        (UserDict, UserList), (OrderedDict, deque), (MappingProxyType, tuple), (dict, Layer._make)
    ]  # fmt: skip
    for mapping, sequence in forms:
        w, b = ones(2), ones(3)
        opt = fastopt.SGD(mapping({"layer": sequence([w, b])}), lr=0.5)
        for other, entries in forms:
            opt.step(other({"layer": entries([ones(2), None])}))
        assert w.tolist() == [-1, -1]
        assert b.tolist() == [1, 1, 1]


@pytest.mark.parametrize("way", ["step", "bind"])
@pytest.mark.parametrize(
    ("grads", "error", "words"),
    [
        ([{"w": None}, [None, None]], ValueError, ["'0'", "'b'", "missing"]),
        ([{"w": None, "b": None, "c": None}, [None, None]], ValueError, ["'0'", "'c'", "unknown"]),
        ([[None, None], [None, None]], TypeError, ["params at '0' is a dict", "list"]),
        ([None, {"0": None, "1": None}], TypeError, ["params at '1' is a list", "dict"]),
        ([None, [None]], ValueError, ["2 parameters", "1 gradients", "'1'"]),
        ([None, ones(2)], TypeError, ["params at '1' is a list", "ndarray"]),
        ([None, [None, ones(2)]], TypeError, ["params at '1.1' is a list", "ndarray"]),
        ([None, [[ones(2)], None]], TypeError, ["the gradient of parameter '1.0'", "list"]),
        ([None, (None for _ in range(2))], TypeError, ["'1'", "generator"]),
        ([None, "ab"], TypeError, ["'1'", "str"]),
        ([None, [ones(3), None]], ValueError, ["the gradient of parameter '1.0'", "(3,)"]),
        ([None], ValueError, ["2 parameters", "1 gradients"]),
        (None, TypeError, ["list", "None"]),
    ],
)
def test_gradients_that_do_not_mirror(way, grads, error, words):
    """The message says where, and nothing has changed."""
    params = [{"w": ones(2), "b": ones(2)}, [ones(2), (ones(2),)]]
    opt = fastopt.SGD(params, lr=0.5)
    with pytest.raises(error) as caught:
        getattr(opt, way)(grads)
    for word in words:
        assert word in str(caught.value)
    assert all((x == 1).all() for x in leaves(params))
    assert not opt.state


def in_itself(make):
    """A container that has itself as an entry."""
    outer = [ones(1)]
    outer.append(make(outer))
    return outer


def deep(levels):
    """A list in a list, and so on."""
    nested = [ones(1)]
    for _ in range(levels - 1):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: {"a.b": ones(1), "a": {"b": ones(1)}}, ValueError, ["two parameters", "'a.b'"]),
        (lambda: {"a": [ones(1)], "a.0": ones(1)}, ValueError, ["two parameters", "'a.0'"]),
        (lambda: in_itself(lambda outer: outer), ValueError, ["in itself", "'1'"]),
        (lambda: in_itself(lambda outer: {"a": (outer,)}), ValueError, ["in itself", "'1.a.0'"]),
        (lambda: deep(65), ValueError, ["64 deep"]),
        (lambda: deep(100_000), ValueError, ["64 deep"]),
        (lambda: [(), [{}]], ValueError, ["empty"]),
        (lambda: {"a": {3: ones(1)}}, TypeError, ["strings", "3", "'a'"]),
        (lambda: [[ones(1), None]], TypeError, ["parameter '0.1' is None"]),
        (lambda: [[ones(1), 2.0]], TypeError, ["parameter '0.1' is a float"]),
        (lambda: [[ones(1), np.arange(3)]], TypeError, ["parameter '0.1' has dtype int64", "astype"]),
        (lambda: [[ones(1)], (x for x in [ones(1)])], TypeError, ["parameter '1' is a generator", "list"]),
    ],
)
def test_params_that_are_refused(make, error, words):
    """Paths that collide, containers without an end, and what is no array; in a group as well."""
    for call in (lambda: fastopt.SGD(make()), lambda: fastopt.SGD([{"params": make()}])):
        with pytest.raises(error) as caught:
            call()
        for word in words:
            assert word in str(caught.value)
    opt = fastopt.SGD([{"params": {"first": ones(1)}}])
    with pytest.raises(error):
        opt.add_param_group({"params": make()})
    assert len(opt.param_groups) == 1
    opt.step([{"first": ones(1)}])


def test_the_deepest_that_is_taken():
    """As deep as the message says."""
    params = deep(64)
    opt = fastopt.SGD(params, lr=0.5)
    opt.step(deep(64))
    assert leaves(params)[0] == 0.5


@pytest.mark.parametrize(
    "params",
    [
        [{"w": ones(1)}, {"params": ones(1)}],
        [{"params": ones(1)}, [ones(1)]],
        [{"params": ones(1)}, {"lr": 0.1}],
        [{"w": ones(1), "lr": 0.1}],
    ],
)
def test_groups_in_part(params):
    """Where some dicts are meant as groups, all have to be."""
    with pytest.raises(TypeError, match="a parameter group is a dict with an entry 'params'"):
        fastopt.SGD(params)


def test_names_in_two_groups():
    """They would have one state."""
    with pytest.raises(ValueError, match=r"two groups have a parameter named 'w\.0'"):
        fastopt.SGD([{"params": {"w": [ones(1)]}}, {"params": {"w": [ones(1)]}}])
