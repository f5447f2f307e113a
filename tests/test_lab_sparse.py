"""The claims about the lab's neuron with a sparse weight: which rule arrives first, and which of its parameters."""

import functools
import importlib
from functools import partial

import numpy as np
import pytest
from lab_cases import assert_gradient, experiment
from pages import ROOT

import fastopt
from fastopt import lab
from fastopt.lab.descent import descend
from fastopt.lab.training import OPTIMIZERS

# fastopt.lab.sparse is the experiment itself: these are the modules
sparse, neuron, arrivals = (importlib.import_module(f"fastopt.lab.{name}") for name in ("sparse", "neuron", "arrivals"))

seeds = pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.exhaustive if seed > 0 else []) for seed in range(5)]
)


@functools.cache
def numbers_of(seed):
    """Return what the experiment has of a seed's pairs."""
    return lab.sparse(seed=seed)[1]


def test_the_slope_of_the_neuron():
    """Is that of its loss."""
    cell = neuron.Neuron(seed=0)
    assert_gradient(cell.loss, cell.gradient, np.random.default_rng(1).uniform(-3, 3, (20, 2)))
    assert (cell.x == 0).sum() == neuron.ZEROS
    assert ((cell.y > 0) & (cell.y < 1)).all()


@seeds
def test_adagrad_goes_both_ways_at_once(seed):
    """Plain descent, momentum and Nesterov turn a right angle; momentum still arrives sooner; no seed is special."""
    numbers = numbers_of(seed)
    rate, history, turn = (numbers[key] for key in ("effective_lr", "history", "turn"))
    reached = {rule: each["reached"] for rule, each in numbers["arrivals"].items()}
    assert rate["w"][0] > numbers["lr"] > 10 * rate["b"][0]
    assert history["b"][0] > 100 * history["w"][0]
    assert all((np.diff(values) >= 0).all() for values in history.values())
    assert all((np.diff(values) <= 0).all() for values in rate.values())
    assert max(turn["sgd"], turn["momentum"], turn["nesterov"]) < 0.1
    assert turn["adagrad"] > 0.5
    assert max(reached["momentum"], reached["nesterov"]) < reached["adagrad"]
    first = np.diff(numbers["paths"]["adagrad"][:2], axis=0)
    np.testing.assert_allclose(np.abs(first), numbers["lr"], rtol=1e-6)  # lr * g / |g|, both ways
    without = numbers["without_root"]["effective_lr"]
    assert without["b"][0] < 0.1 * rate["b"][0]
    assert numbers["loss"][sparse.NO_ROOT][-1] > 5 * numbers["target"]
    cell = neuron.Neuron(seed)
    assert cell.loss(np.array(numbers["best"])) > 0.5  # what made y is noisy
    np.testing.assert_allclose(cell.gradient(np.array(numbers["best"])), 0, atol=1e-6)
    own = np.cumsum(cell.gradient(np.array(numbers["paths"][sparse.NO_ROOT][:-1])) ** 2, axis=0)
    for i, name in enumerate("wb"):
        np.testing.assert_allclose(numbers["without_root"]["history"][name], own[:, i])
        np.testing.assert_allclose(without[name], numbers["lr"] / (own[:, i] + 1e-10))


def test_the_effective_rates_are_those_of_the_optimizer():
    """Its accumulator is the history; and without the root, the rule is the one it says."""
    numbers = experiment("sparse")[1]
    cell = neuron.Neuron(seed=0)
    points = np.array(sparse.START)
    optimizer = fastopt.Adagrad(points, lr=0.1)
    for step in range(30):
        optimizer.step(cell.gradient(points))
        accumulator = optimizer.state[0]["sum"]
        for i, name in enumerate("wb"):
            assert numbers["history"][name][step] == pytest.approx(accumulator[i], rel=1e-12)
            assert numbers["effective_lr"][name][step] == pytest.approx(
                0.1 / (np.sqrt(accumulator[i]) + 1e-10), rel=1e-12
            )
    path = np.array(numbers["paths"][sparse.NO_ROOT])
    gradient = cell.gradient(path[:-1])
    np.testing.assert_allclose(
        path[1:], path[:-1] - 0.1 * gradient / (np.cumsum(gradient**2, axis=0) + 1e-10), rtol=1e-12
    )


@seeds
def test_rmsprop_and_adam_are_the_answer(seed):
    """All three begin alike; AdaGrad's rates only fall, and the others' rise again; Adam is there with the momenta."""
    numbers = numbers_of(seed)
    rates, turn = numbers["rates"], numbers["turn"]
    reached = {rule: each["reached"] for rule, each in numbers["arrivals"].items()}
    for rule in ("rmsprop", "adam"):
        first = np.diff(numbers["paths"][rule][:2], axis=0)
        np.testing.assert_allclose(np.abs(first), numbers["lr"], rtol=1e-5)  # but for eps
        assert turn[rule] > 0.5
        for name in "wb":
            assert rates[rule][name][0] == pytest.approx(rates["adagrad"][name][0], rel=1e-6)
            assert rates[rule][name][-1] > 1.5 * min(rates[rule][name])
            assert rates[rule][name][-1] > 2 * rates["adagrad"][name][-1]
    assert rates["adagrad"] == numbers["effective_lr"]
    assert reached["adam"] < reached["rmsprop"] < reached["adagrad"]
    assert reached["adam"] < 2 * max(reached["momentum"], reached["nesterov"])


@seeds
def test_nadam_overshoots_less_than_adam_and_lion_never_rests(seed):
    """From steps of one length; Lion's stay as long, so only at a low rate does its loss arrive, and late."""
    numbers = numbers_of(seed)
    adam, nadam, lion = (np.array(numbers["paths"][rule]) for rule in ("adam", "nadam", "lion"))
    for path in (adam, nadam, lion):
        np.testing.assert_allclose(np.abs(path[1] - path[0]), numbers["lr"], rtol=1e-5)
    assert nadam[:, 0].max() < adam[:, 0].max()
    assert nadam[:, 1].min() > adam[:, 1].min()
    reached = {rule: each["reached"] for rule, each in numbers["arrivals"].items()}
    assert reached["nadam"] < reached["adam"]
    assert numbers["tuned"]["nadam"]["reached"] < numbers["tuned"]["adam"]["reached"]
    np.testing.assert_allclose(np.abs(np.diff(lion, axis=0)), numbers["lr"], rtol=1e-9)
    assert numbers["turn"]["lion"] > 0.5
    assert np.abs(lion[-50:] - numbers["best"]).max() < 3 * numbers["lr"]
    assert reached["lion"] is None
    assert numbers["tuned"]["lion"]["lr"] < numbers["lr"]
    assert numbers["tuned"]["lion"]["reached"] > numbers["tuned"]["sgd"]["reached"]


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_the_rates_as_drawn_are_those_of_one_first_step(rule):
    """Of adaptive rules, for any gradient; the others have the other rate, and a rule that is added finds its own."""
    lr = sparse.rates_of(0.3, 0.02)[rule]
    first = descend(partial(OPTIMIZERS[rule], lr=lr), lambda points: np.array([-3.0, 70.0]), np.zeros(2), 1)[1]
    if rule in ("sgd", "momentum", "nesterov"):
        assert lr == 0.02
    else:
        np.testing.assert_allclose(first, [0.3, -0.3], rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "make", "average"),
    [
        ("rmsprop", fastopt.RMSprop, "square_avg"),
        ("adam", fastopt.Adam, "exp_avg_sq"),
    ],
)
def test_the_faded_rates_are_those_of_the_optimizer(rule, make, average):
    """By its own average of squares, and Adam's correction."""
    numbers = experiment("sparse")[1]
    lr = numbers["drawn"][rule]
    cell, points = neuron.Neuron(seed=0), np.array(sparse.START)
    optimizer = make(points, lr=lr)
    for step in range(30):
        optimizer.step(cell.gradient(points))
        squares = optimizer.state[0][average] / (1 - 0.999 ** (step + 1) if rule == "adam" else 1)
        for i, name in enumerate("wb"):
            assert numbers["rates"][rule][name][step] == pytest.approx(lr / np.sqrt(squares[i]), rel=1e-6)


def test_what_is_reached_and_where_a_path_turns():
    """The step from which on the loss is at or below the target; the way along w when 9/10 of that along b are done."""
    stays = neuron.STAYS * [0.5]
    assert neuron.reached(np.array([3.0, 2.0, 1.0, *stays]), 1.0) == 2
    assert neuron.reached(np.array([3.0, 0.5, 2.0, 0.5, *stays]), 1.0) == 3
    assert neuron.reached(np.array([3.0, 2.0, *stays]), 1.0) is None  # a step less than it must stay
    assert neuron.reached(np.array([0.5, *stays, 2.0]), 1.0) is None
    assert neuron.reached(np.array([0.5, *stays]), 1.0) == 0
    assert neuron.reached(np.array([3.0, 2.0]), 1.0) is None
    path = np.array([[0.0, 0.0], [1.0, 5.0], [2.0, 9.5], [4.0, 10.0]])
    assert neuron.turn(path, np.array([4.0, 10.0])) == 0.5
    assert neuron.turn(path[:2], np.array([4.0, 10.0])) is None


@seeds
def test_the_lectures_claims_of_adagrad(seed):
    """Which hold at rates that are chosen alike, and not at the rates that are drawn; and w arrives before b."""
    numbers = numbers_of(seed)
    drawn, tuned = numbers["arrivals"], numbers["tuned"]
    assert drawn["adagrad"]["w"] < drawn["adagrad"]["b"]
    assert drawn["sgd"]["reached"] < drawn["adagrad"]["reached"]
    assert tuned["adagrad"]["reached"] < tuned["sgd"]["reached"]
    assert tuned["sgd"]["b"] < tuned["sgd"]["w"]
    for alike in numbers["one_rate"].values():
        assert alike["sgd"]["reached"] is None
        assert alike["adagrad"] == drawn["adagrad"]  # which hears of no scale
    starts = numbers["starts"]
    assert 0 < starts["w_first"] < starts["alike"] < starts["tried"] == 33**2


def test_the_best_rate_is_the_one_that_is_there_first():
    """Of all that are tried; none where the steps are too few."""
    cell, start = neuron.Neuron(seed=1), np.array(sparse.START)
    least = neuron.bottom(cell)
    found = arrivals.tuned(cell, start, 60)
    for rule in ("momentum", "adagrad"):
        reached = {}
        for lr in arrivals.RATES:
            path = descend(partial(OPTIMIZERS[rule], lr=lr), cell.gradient, start, 60)
            reached[lr] = neuron.reached(cell.loss(path), neuron.target_loss(cell, start, least))
        there = {lr: step for lr, step in reached.items() if step is not None}
        assert found[rule]["reached"] == min(there.values(), default=None)
        assert there.get(found[rule]["lr"]) == found[rule]["reached"]
    assert all(each["lr"] is each["reached"] is None for each in arrivals.tuned(cell, start, 1).values())


def test_each_parameter_arrives_for_good():
    """When it is within a tenth of its way of the end, and stays there."""
    path = np.array([[0.0, 0.0], [9.5, 5.0], [8.0, 9.5], *(1 + neuron.STAYS) * [[9.5, 8.0]]])
    assert neuron.arrived(path, np.array([10.0, 10.0])) == {"w": 3, "b": None}


def test_without_the_root_the_scale_of_the_loss_matters():
    """Ten times the loss leaves AdaGrad's path, and shortens the other's first step to a tenth."""
    cell, start = neuron.Neuron(seed=0), np.array(sparse.START)
    make = OPTIMIZERS["adagrad"]
    plain = descend(partial(make, lr=0.1), cell.gradient, start, 50)
    scaled = descend(partial(make, lr=0.1), lambda points: 10 * cell.gradient(points), start, 50)
    np.testing.assert_allclose(scaled, plain, atol=1e-8)  # but for eps
    first = cell.without_root(start, 0.1, 1)
    cell.gradient = lambda points, gradient=cell.gradient: 10 * gradient(points)
    np.testing.assert_allclose(
        np.diff(cell.without_root(start, 0.1, 1), axis=0), np.diff(first, axis=0) / 10, rtol=1e-6
    )


@pytest.mark.parametrize(("start", "words"), [((1.0,), "w and b, not 1"), ((11.0, 0.0), "start")])
def test_a_start_that_is_none_is_refused(start, words):
    """With its name."""
    with pytest.raises(ValueError, match=words):
        lab.sparse(start=start)


def test_the_page_quotes_what_the_command_says():
    """Its row for AdaGrad and plain descent: at one rate, at the best ones, as drawn; and of NAdam and Lion."""
    page = (ROOT / "docs/lectures.md").read_text(encoding="utf-8")
    numbers = numbers_of(0)
    drawn, tuned = numbers["arrivals"], numbers["tuned"]
    (row,) = (line for line in page.splitlines() if line.startswith("| AdaGrad is faster"))
    steps = [each[rule]["reached"] for each in (drawn, tuned) for rule in ("adagrad", "sgd")]
    assert row.endswith(f"| {steps[0]} steps and never; {steps[2]} and {steps[3]}; {steps[0]} and {steps[1]} |")
    text = " ".join(page.split())
    nadam, lion = tuned["nadam"], tuned["lion"]
    assert f"arrives after {drawn['nadam']['reached']} steps, at its best rate after {nadam['reached']}." in text
    assert f"At its best rate, {lion['lr']:g}, it arrives after {lion['reached']} steps." in text
    starts = numbers["starts"]
    assert f"| after {drawn['adagrad']['w']} and {drawn['adagrad']['b']} steps; " in page
    assert f"{starts['w_first']} of {starts['alike']} starts like the lecture's" in page
