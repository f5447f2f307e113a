"""Adam's betas as schedules, each of the two: on NumPy arrays, and on a GPU, which evaluates them itself."""

import copy
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from fastopt.bench import oracle
from gpu_steps import arrays, assert_trained, follow, plain, refused_capture, state_arrays, warm, warmed_up
from rule_cases import OPTIMIZERS, numbers
from tolerances import TRAJECTORY, assert_close

import fastopt
from fastopt import fused
from fastopt.schedules import Constant, Cosine, Linear, OneCycle, Plateau, Warmup

CYCLE = OneCycle(0.1, 30)
BETA1, BETA2 = CYCLE.momentum(), Linear(0.9, 0.999, 25)
KINDS = ["adam", "adam_amsgrad", "adamw", "adamw_amsgrad"]
PAIRS = {
    "first": (BETA1, 0.99),
    "second": (0.8, BETA2),
    "both": (BETA1, BETA2),
    "functions": (lambda step: 0.5 + 0.01 * step, lambda step: np.float64(0.75)),
}


def adam(**options):
    """An optimizer, what it trains, and a gradient."""
    w = np.ones(3)
    return fastopt.Adam(w, **options), w, np.array([2.0, 0.2, -1.0])


def frozen(opt, w):
    """All that an error must not change, to the bit."""
    return repr((w.tobytes(), opt.state_dict(), opt.param_groups))


def assert_refused(opt, w, act, match, error=ValueError):
    """Assert that an act raises an error that says what it must, and changes nothing."""
    before = frozen(opt, w)
    with pytest.raises(error, match=match):
        act()
    assert frozen(opt, w) == before


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=[] if dtype is np.float32 else pytest.mark.exhaustive)
        for kind in KINDS
        for dtype in (np.float32, np.float64)
    ],
)
def test_trajectories(kind, dtype):
    """Each step by the betas of its own, also in the corrections of the bias, which go by each parameter's count."""
    rng = np.random.default_rng(5)
    make, defaults = OPTIMIZERS[kind]
    options = [{**defaults, "lr": CYCLE, "betas": pair} for pair in PAIRS.values()] + [defaults]
    p = [rng.standard_normal((5, 3)).astype(dtype) for _ in options]
    trainer = oracle.Trainer(p)
    opt = make([{"params": [x], **o} for x, o in zip(p, options, strict=True)])
    for t in range(40):
        g = [rng.standard_normal(x.shape).astype(dtype) if (t + i) % 5 else None for i, x in enumerate(p)]
        opt.step([[x] for x in g])
        now = [numbers(o, t) for o in options]
        trainer.step(kind, g, now)
        for group, o in zip(opt.param_groups, now, strict=True):
            assert {name: group[name] for name in o} == o
            assert [type(group["betas"]), *map(type, group["betas"])] == [tuple, float, float]
    for x, want in zip(p, trainer.params, strict=True):
        assert_close(x, want, TRAJECTORY)


def test_a_group_describes_the_schedules_of_its_betas():
    """As plain Python, number and description side by side; the numbers themselves are a pair."""
    for given in ((BETA1, 0.999), [BETA1, 0.999]):
        opt, _, _ = adam(betas=given)
        group = opt.param_groups[0]
        assert group["betas"] == (BETA1(0), 0.999)
        assert group["schedules"] == {"betas": [BETA1.to_dict(), 0.999]}
        assert json.loads(json.dumps(group["schedules"])) == group["schedules"]
        assert group.schedules["betas"] == (BETA1, 0.999)
        assert f"betas=({BETA1!r}, 0.999)" in repr(opt)
    group["betas"] = (lambda step: 0.5, np.float64(0.75))
    assert group["schedules"] == {"betas": [{"name": "callable"}, 0.75]}
    assert type(group["schedules"]["betas"][1]) is float


def test_schedules_begin_and_end():
    """A pair of numbers ends both; one with a schedule begins it, at the group's count of steps."""
    opt, _, g = adam(betas=(BETA1, BETA2))
    group = opt.param_groups[0]
    for _ in range(4):
        opt.step(g)
    assert group["betas"] == (BETA1(3), BETA2(3))
    group["betas"] = group["betas"]
    assert (group["schedules"], group["betas"]) == ({}, (BETA1(3), BETA2(3)))
    opt.step(g)
    assert group["betas"] == (BETA1(3), BETA2(3))
    group["betas"] = (0.5, BETA2)
    assert group["betas"] == (0.5, BETA2(5))
    opt.step(g)
    assert group["betas"] == (0.5, BETA2(5))
    group.update(betas=(BETA1, 0.75), step=11)
    opt.step(g)
    assert (group["betas"], group["schedules"]) == ((BETA1(11), 0.75), {"betas": [BETA1.to_dict(), 0.75]})


def test_groups_of_their_own():
    """Given with the group, as the optimizer's default, and added later, with a count of its own."""
    p, g = [np.ones(2) for _ in range(3)], np.ones(2)
    opt = fastopt.AdamW([{"params": p[0], "betas": (0.5, BETA2)}, {"params": p[1]}], betas=(BETA1, 0.999))
    opt.step([g, g])
    opt.step([g, g])
    opt.add_param_group({"params": p[2]})
    opt.step([g, g, g])
    assert [group["betas"] for group in opt.param_groups] == [(0.5, BETA2(2)), (BETA1(2), 0.999), (BETA1(0), 0.999)]


def test_what_a_schedule_assigns_counts_from_the_next_step_on():
    """Another pair, from inside of the step."""

    def beta(step):
        if step == 1 and not done:
            done.append(step)
            opt.param_groups[0]["betas"] = (beta, 0.5)
        return 0.8

    done = []
    opt, w, g = adam(lr=0.1, betas=(beta, 0.9))
    trainer = oracle.Trainer([w])
    for beta2 in (0.9, 0.9, 0.5):
        opt.step(g)
        trainer.step("adam", [g], {"lr": 0.1, "betas": (0.8, beta2)})
    assert_close(w, trainer.params[0], TRAJECTORY)
    assert opt.param_groups[0]["betas"] == (0.8, 0.5)


# State dicts


@pytest.mark.parametrize("other", [{}, {"betas": (0.5, 0.5)}, {"betas": (Cosine(0.5, 9), Constant(0.5)), "lr": CYCLE}])
def test_a_state_dict_brings_its_schedules(other):
    """Into an optimizer with others, or with none; from there on it goes the same way, to the bit."""
    opt, w, g = adam(lr=Warmup(CYCLE, 3), betas=(BETA1, BETA2))
    for _ in range(7):
        opt.step(g)
    saved = opt.state_dict()
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
    again, x, _ = adam(**other)
    x[:] = w
    again.load_state_dict(saved)
    assert again.param_groups[0].schedules == {"lr": Warmup(CYCLE, 3), "betas": (BETA1, BETA2)}
    assert again.param_groups[0]["betas"] == (BETA1(6), BETA2(6))
    for _ in range(5):
        opt.step(g)
        again.step(g)
    assert frozen(again, x) == frozen(opt, w)


def test_a_state_dict_of_numbers_ends_the_schedules():
    """As one from before there were any."""
    saved = adam(betas=(0.8, 0.9))[0].state_dict()
    opt, _, g = adam(betas=(BETA1, BETA2))
    opt.load_state_dict(saved)
    opt.step(g)
    assert (opt.param_groups[0]["betas"], opt.param_groups[0]["schedules"]) == ((0.8, 0.9), {})


def test_functions_are_not_saved():
    """The loading optimizer keeps its own function for that beta, and says what to do if it has none."""
    mine, theirs = (lambda step: 0.5 + 0.01 * step), (lambda step: 0.25)
    saved = adam(betas=(mine, BETA2))[0].state_dict()
    saved["param_groups"][0]["step"] = 4
    opt, w, g = adam(betas=(theirs, 0.5))
    opt.load_state_dict(saved)
    opt.step(g)
    assert opt.param_groups[0].schedules["betas"] == (theirs, BETA2)
    assert opt.param_groups[0]["betas"] == (0.25, BETA2(4))
    for betas in ((0.9, 0.99), (0.9, BETA2)):
        opt, w, g = adam(betas=betas)
        assert_refused(opt, w, lambda opt=opt: opt.load_state_dict(saved), r"betas\[0\] of group 0 .* delete 'betas'")
        opt.param_groups[0]["betas"] = (theirs, 0.9)
        opt.load_state_dict(saved)
        assert opt.param_groups[0].schedules["betas"] == (theirs, BETA2)
    del saved["param_groups"][0]["schedules"]["betas"]
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["betas"] == (0.5, 0.9)


LINE = BETA2.to_dict()
DESCRIPTIONS = {
    "a schedule for both": (LINE, ValueError, "schedules of betas of group 0 must be a list"),
    "one": ([LINE], TypeError, "betas must be a pair"),
    "three": ([LINE, LINE, 0.5], TypeError, "betas must be a pair"),
    "numbers alone": ([0.9, 0.999], ValueError, "schedules of betas of group 0 must be a list"),
    "nothing": (None, ValueError, "schedules of betas of group 0 must be a list"),
    "out of range": ([LINE, 1.0], ValueError, r"betas\[1\] must be below 1"),
    "a word": (["0.9", LINE], TypeError, r"betas\[0\] must be a number"),
    "no schedule": ([0.9, {"name": "Nothing"}], ValueError, r"betas\[1\] of group 0: .*Nothing"),
    "a plateau": ([Plateau(0.9).to_dict(), 0.999], TypeError, r"betas\[0\] is a Plateau"),
}


@pytest.mark.parametrize(("plain", "error", "match"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_descriptions_that_do_not_fit(plain, error, match):
    """Are refused with the whole state dict."""
    opt, w, g = adam(betas=(BETA1, 0.999))
    opt.step(g)
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0]["schedules"]["betas"] = plain
    assert_refused(opt, w, lambda: opt.load_state_dict(saved), match, error)


# What is refused


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, np.nan, np.inf, None, "0.9", True], ids=repr)
def test_values_out_of_range(value, index):
    """Raise before the step, and at once where it is the present one; the next step asks again."""
    error = ValueError if isinstance(value, float) else TypeError

    def beta(step):
        return value if wrong and step == 2 else 0.5

    wrong = []
    pair = (beta, 0.9) if index == 0 else (0.9, beta)
    opt, w, g = adam(betas=pair)
    opt.step(g)
    opt.step(g)
    wrong.append(True)
    where = rf"betas\[{index}\] must be"
    assert_refused(opt, w, lambda: opt.step(g), where, error)
    assert_refused(opt, w, lambda: opt.param_groups[0].update(lr=0.5, betas=pair), where, error)
    wrong.clear()
    opt.step(g)
    assert opt.param_groups[0]["step"] == 3


def test_a_schedule_that_gets_to_1():
    """Where no average would take in anything."""
    opt, w, g = adam(betas=(0.9, Linear(0.9, 1.0, 2)))
    opt.step(g)
    opt.step(g)
    assert_refused(opt, w, lambda: opt.step(g), r"betas\[1\] must be below 1")
    opt.param_groups[0]["betas"] = (0.9, 0.999)
    opt.step(g)


REFUSED = {
    "a schedule for both": (BETA1, "betas must be a pair"),
    "a function for both": (lambda step: (0.9, 0.999), "betas must be a pair"),
    "one": ((BETA1,), "betas must be a pair"),
    "three": ((BETA1, 0.9, 0.9), "betas must be a pair"),
    "a plateau": ((0.9, Plateau(0.9)), r"betas\[1\] is a Plateau"),
}


@pytest.mark.parametrize(("given", "match"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_pair_of_schedules(given, match):
    """At construction and where it is assigned."""
    with pytest.raises(TypeError, match=match):
        adam(betas=given)
    opt, w, _ = adam(betas=(BETA1, 0.999))
    assert_refused(opt, w, lambda: opt.param_groups[0].update(lr=0.5, betas=given), match, TypeError)


def test_a_function_may_ask_a_plateau():
    """As the refusal says."""
    plateau = Plateau(0.9, factor=0.5, patience=0)
    opt, _, g = adam(betas=(lambda step: plateau.lr, 0.999))
    for metric in (1.0, 1.0):
        opt.step(g)
        plateau.update(metric)
    opt.step(g)
    assert opt.param_groups[0]["betas"] == (0.45, 0.999)


class Halves(NamedTuple):
    """A schedule that is a tuple, with a function in it."""

    lr: float
    exponent: Callable

    def __call__(self, step):
        """The rate at a step."""
        return self.lr * 0.5 ** self.exponent(step)


def test_a_schedule_that_is_a_tuple(device):
    """Drives the rate as any other, beside betas that are scheduled; on a GPU, too."""
    options = {"lr": Halves(0.1, lambda step: step // 3), "betas": (BETA1, BETA2)}
    opt, params, grads, stream, trainer = warm(device, fastopt.Adam, "adam", **options)
    for t in range(2, 9):
        with stream:
            opt.step(grads)
        follow(device, trainer, "adam", grads, numbers(options, t))
    assert opt.param_groups[0]["lr"] == 0.025
    assert_trained(device, opt, params, trainer)


def test_pairs_of_schedules_elsewhere():
    """An option of one number takes none; single updates take numbers."""
    for name in ("lr", "eps", "weight_decay"):
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            adam(**{name: (BETA1, 0.999)})
    w, g, m, v = (np.ones(3) for _ in range(4))
    with pytest.raises(TypeError, match=r"betas\[0\] must be a number"):
        fused.adam(w, g, m, v, lr=0.1, step=1, betas=(BETA1, 0.999))


# On a GPU; replays of every kind are among the cases of test_gpu_captures.py


def test_groups_of_their_own_in_replays(device):
    """Each by its own schedules, beside one of numbers."""
    options = [{"lr": CYCLE, "betas": pair} for pair in ((BETA1, 0.99), (0.5, BETA2), (0.9, 0.999))]
    params, grads = arrays(device), arrays(device, seed=1)
    trainer = oracle.Trainer(plain(device, params))
    opt = fastopt.Adam([{"params": [p], **o} for p, o in zip(params, options, strict=True)])
    opt.bind([[g] for g in grads])
    graph = warmed_up(device, opt)
    for _ in range(2, 9):
        graph.launch()
    for t in range(9):
        follow(device, trainer, "adam", grads, [numbers(o, t) for o in options])
    assert [group["betas"] for group in opt.param_groups] == [numbers(o, 8)["betas"] for o in options]
    assert_trained(device, opt, params, trainer)


@pytest.mark.parametrize("betas", [(0.7, 0.9), (Linear(0.5, 0.9, 9), 0.9), (0.5, lambda step: 0.9)], ids=range(3))
def test_betas_assigned_after_a_capture(device, betas):
    """Count from the next step of the host's on, also in all replays after it."""
    options = {"lr": CYCLE, "betas": (BETA1, BETA2)}
    opt, params, grads, stream, trainer = warm(device, fastopt.Adam, "adam", **options)
    with device.capture(stream) as graph:
        opt.step()
    graph.launch()
    opt.param_groups[0]["betas"] = betas
    with stream:
        opt.step()
    for _ in range(3):
        graph.launch()
    for t in range(2, 7):
        follow(device, trainer, "adam", grads, numbers({**options, "betas": betas} if t > 2 else options, t))
    assert opt.param_groups[0]["betas"] == numbers({"betas": betas}, 6)["betas"]
    assert_trained(device, opt, params, trainer)


@pytest.mark.parametrize("index", [0, 1])
def test_functions_are_not_captured(device, index):
    """They are named by their index in the pair."""
    betas = tuple(0.5 if i != index else lambda step: 0.5 for i in range(2))
    opt, params, grads, stream, _ = warm(device, fastopt.Adam, "adam", lr=0.1, betas=betas)
    match = rf"betas\[{index}\] of group 0 is a function that only Python can call"
    refused_capture(device, opt, stream, grads, [*params, *state_arrays(opt)], match)


def test_a_graph_whose_schedule_gets_to_1(device):
    """The device cannot raise; asking for the number does."""
    opt, _, _, stream, _ = warm(device, fastopt.Adam, "adam", lr=0.1, betas=(0.9, Linear(0.9, 1.0, 4)))
    with device.capture(stream) as graph:
        opt.step()
    for _ in range(3):
        graph.launch()
    with pytest.raises(ValueError, match=r"betas\[1\] must be below 1"):
        opt.param_groups[0]["betas"]
