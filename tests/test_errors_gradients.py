"""Gradients that do not match a parameter or the structure of the parameters, given or bound."""

import numpy as np
import pytest
from pairs import usually
from refusals import BAD_GRADIENTS, F32, IN_W1, SCALAR, SITUATIONS, STATE, Subject, read_only, refused

import fastopt

ways = pytest.mark.parametrize("way", usually(["step"], ["step", "bind"]))


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


def test_scalars_cannot_be_bound():
    """A NumPy scalar never changes: a step takes it, a binding does not."""
    p = np.ones((), F32)
    opt = fastopt.SGD(p, lr=0.5)
    with pytest.raises(TypeError, match="0-d array"):
        opt.bind(F32(1))
    opt.step(F32(1))
    assert p == 0.5
