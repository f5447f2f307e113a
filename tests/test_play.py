"""The page in which marbles roll, below the browser: landscapes, paths, arrows, settings, lessons."""

import importlib
import itertools
import json
import re

import numpy as np
import pytest
from fastopt.bench import oracle
from lab_cases import assert_gradient
from pages import ROOT
from play_cases import QUICK, STEPS, of_one_marble, unpacked

from fastopt.lab.neuron import Neuron
from fastopt.lab.play import formulas, marbles, plane, reply, settings, snippet, walk
from fastopt.lab.play.landscapes import LANDSCAPES
from fastopt.lab.play.lessons import LESSONS
from fastopt.lab.play.shapes import NUMBERS, SHAPES
from fastopt.rules import RULES

SLOW = [name for name in marbles.KINDS if name not in QUICK]  # updates that take a second each to compile
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in SLOW)]


def over(function, points):
    """What a landscape's function, not compiled, returns at points: losses, and gradients."""
    found = np.array([function(*map(float, point)) for point in points.reshape(-1, 2)])
    return found[:, 0].reshape(points.shape[:-1]), found[:, 1:].reshape(points.shape)


def on_the_map(name, count, seed=0):
    """Random points of a landscape."""
    low, high = np.array(LANDSCAPES[name].extent).T
    return np.random.default_rng(seed).uniform(low, high, (count, 2))


def rolled(given):
    """What the first marble of settings does."""
    return marbles.roll_from(given.marbles[0], given.landscape, given.start, given.noises())


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_gradient_is_that_of_the_loss(name):
    """All over the map; the cliff is too steep for differences."""
    function = LANDSCAPES[name].make()
    points = on_the_map(name, 60)
    if name == "cliff":
        points = points[points.sum(axis=-1) > 3]
    assert len(points) > 10
    assert_gradient(lambda at: over(function, at)[0], lambda at: over(function, at)[1], points)


def test_landscapes_of_the_lab_are_the_same_here():
    """To rounding, in loss and gradient."""
    of_lab = {name: importlib.import_module(f"fastopt.lab.{name}") for name in ("landscape", "bounce", "gradients")}
    pairs = {"neuron": Neuron(seed=0)}
    for name, there in (("potholes", of_lab["landscape"]), ("cliff", of_lab["gradients"]), ("neuron", pairs["neuron"])):
        points = on_the_map(name, 100)
        losses, slopes = over(LANDSCAPES[name].make(), points)
        np.testing.assert_allclose(losses, there.loss(points), rtol=1e-12, atol=1e-12)
        scale = np.abs(there.gradient(points)).max()
        np.testing.assert_allclose(slopes, there.gradient(points), rtol=1e-9, atol=1e-12 * scale)
    points = on_the_map("bowl", 100)
    np.testing.assert_allclose(over(formulas.bowl, points)[0], of_lab["bounce"].loss(points), rtol=1e-14)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_least_loss_is_the_least(name):
    """No point of the map is below it, and some point comes close; the basin is above it, and below the start."""
    each = LANDSCAPES[name]
    losses, _ = over(each.make(), on_the_map(name, 3000))
    assert each.least <= losses.min() + 1e-12
    assert each.least < each.target < each.make()(*each.start)[0]


def test_the_digits_plane_goes_through_its_grid():
    """The committed one, and in between it is smooth; the bottom is the trained network."""
    grid = plane.grid()
    assert grid.shape == (plane.POINTS, plane.POINTS)
    function = formulas.between(grid, plane.REACH)
    along = np.linspace(-plane.REACH, plane.REACH, plane.POINTS)
    losses, _ = over(function, np.stack(np.meshgrid(along, along), axis=-1))
    np.testing.assert_allclose(losses, grid, rtol=1e-9, atol=1e-9)
    middle = plane.POINTS // 2
    assert grid[middle, middle] < 0.01 < np.median(grid)
    edge = along[10]  # between two cells
    before, after = (np.array(function(edge + off, 0.3)) for off in (-1e-9, 1e-9))
    np.testing.assert_allclose(before, after, rtol=1e-5)


def test_the_plane_is_made_by_its_script(monkeypatch):
    """A small one: the loss in its middle is the trained network's, and directions are as long as units' weights."""
    monkeypatch.setattr(plane, "REACH", 0.5)
    losses = plane.measured(epochs=1, points=3)
    assert losses[1, 1] == losses.min() > 0
    rng = np.random.default_rng(0)
    params = {"w1": rng.standard_normal((5, 4)), "b1": np.ones(4)}
    found = plane.direction(params, rng)
    np.testing.assert_allclose(np.linalg.norm(found["w1"], axis=0), np.linalg.norm(params["w1"], axis=0))
    assert not found["b1"].any()


@pytest.mark.parametrize("rule", ALL)
def test_a_path_is_that_of_the_optimizer(rule, capsys):
    """With all that it can have: the program that the page hands out ends where the marble does."""
    values = {"lr": 0.02, "weight_decay": 0.01, "max_grad_norm": 1.5, "lr_shape": "cosine", "momentum_shape": "linear"}
    more = {"momentum_end": 0.5, "lr_dips": 2, "lr_end": 0.1, "beta2": 0.99, "alpha": 0.9}
    given = of_one_marble(rule=rule, **values, **more, noise=0.3, seed=3)
    exec(compile(snippet.snippet(given), "snippet", "exec"), {})
    printed = np.array(capsys.readouterr().out.replace("[", " ").replace("]", " ").split()[-2:], np.float64)
    np.testing.assert_allclose(printed, rolled(given).points[-1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", ALL)
def test_a_path_is_that_of_the_oracle(rule):
    """In float64, from the formulas of the papers; and every rule of the library is offered."""
    assert {kind.rule for kind in marbles.KINDS.values()} == {*RULES, walk.WITHOUT_ROOT}
    given = of_one_marble(rule=rule, lr=0.05)
    walked, kind = rolled(given), given.marbles[0].kind
    options = {"eps": 1e-8, "momentum_decay": 4e-3, **given.marbles[0].options({})}
    point, states = np.array(given.start), None
    for step in range(1, STEPS + 1):
        slope = np.array(formulas.bowl(*point)[1:])
        if kind.rule == walk.WITHOUT_ROOT:
            states = (slope**2 + (0 if states is None else states[0]),)
            point = point - 0.05 * slope / (states[0] + options["eps"])
        else:
            carried = RULES[kind.rule].carried_after(options, step, options.get("mu_product", 1.0))
            options["mu_product"] = carried
            point, states = getattr(oracle, kind.rule)(point, slope, states, step, options)
        np.testing.assert_allclose(walked.points[step], point, rtol=1e-9, atol=1e-12)


def test_arrows_are_pull_and_velocity():
    """With momentum: -lr * g, and -lr * momentum * v; for a rule without a velocity the pull is all of the step."""
    given = of_one_marble(rule="momentum", lr=0.05, momentum=0.9)
    walked = rolled(given)
    slopes = over(formulas.bowl, walked.points)[1]
    np.testing.assert_allclose(walked.pulls, -0.05 * slopes[:-1], atol=1e-15)
    velocity = np.zeros(2)
    for step in range(STEPS):
        arrow = np.diff(walked.points, axis=0)[step] - walked.pulls[step]
        np.testing.assert_allclose(arrow, -0.05 * 0.9 * velocity, atol=1e-14)
        velocity = 0.9 * velocity + slopes[step]
    walked = rolled(of_one_marble(rule=walk.WITHOUT_ROOT, lr=0.05))
    np.testing.assert_array_equal(walked.pulls, np.diff(walked.points, axis=0))


@pytest.mark.parametrize("rule", ALL)
def test_effective_rates_are_the_factors_of_gradients(rule):
    """What the pull divided by the gradient is, but for the share of the average that is the gradient's."""
    given = of_one_marble(rule=rule, lr=0.05, lr_shape="linear")
    (marble,), walked = given.marbles, rolled(given)
    rates = marbles.effective_rates(marble, walked, STEPS)
    adaptive = any(name in marbles.HISTORIES for name in marble.kind.states)
    assert (rates is None) == (not adaptive)
    if rates is None or rule.startswith("nadam"):  # whose pull has two parts
        return
    slopes = over(formulas.bowl, walked.points[:-1])[1]
    share = 1.0
    if "beta1" in marble.kind.fields:
        share = (1 - marble["beta1"]) / (1 - marble["beta1"] ** np.arange(1, STEPS + 1))[:, np.newaxis]
    large = np.abs(slopes) > 1e-3
    np.testing.assert_allclose((rates * share)[large], (-walked.pulls / slopes)[large], rtol=1e-5)


def test_a_marble_that_is_thrown_out_stops_there():
    """At the first point outside; what is told of it is finite, and the rates have as many steps."""
    given = of_one_marble(rule="adam", lr=100.0)
    walked = rolled(given)
    assert walked.lost
    assert walked.steps < STEPS
    assert not walk.inside(walked.points[-1], given.landscape.room())
    told = reply.told(given)["marbles"][0]
    assert told["end"] == "lost"
    assert told["home"] is None
    assert len(unpacked(told["points"])) == 2 * (walked.steps + 1)
    assert len(unpacked(told["rates"])) == 2 * walked.steps
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("infinite", [np.inf, np.nan])
def test_a_point_that_is_not_finite_is_lost(infinite):
    assert not walk.inside(np.array([0.0, infinite]), LANDSCAPES["bowl"].room())


def test_a_bowl_throws_out_whoever_is_too_fast():
    """Above 2 / 3, as the page says; below, it ends in the basin."""
    ends = {lr: reply.told(of_one_marble(lr=lr, steps=300))["marbles"][0]["end"] for lr in (0.6, 0.7)}
    assert ends == {0.6: "basin", 0.7: "lost"}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_schedule_can_be_a_rate_and_a_momentum(shape):
    """Its values are what the page draws, and its own numbers change it."""
    given = of_one_marble(rule="momentum", lr=0.5, lr_shape=shape, momentum=0.9, momentum_shape=shape)
    scheduled = given.marbles[0].scheduled(STEPS)
    drawn = marbles.rows(given.marbles[0], STEPS)[1]
    for name, each in scheduled.items():
        np.testing.assert_array_equal(drawn[name], each(np.arange(STEPS)))
    rows = marbles.rows(given.marbles[0], STEPS)[0]
    np.testing.assert_array_equal(rows[:, 2:], np.stack([drawn["lr"], drawn["momentum"]], axis=-1))
    for name in SHAPES[shape].numbers:
        other = NUMBERS[name].least + 2 if NUMBERS[name].whole else 0.7
        changed = of_one_marble(lr=0.5, lr_shape=shape, **{f"lr_{name}": other}).marbles[0]
        assert changed.scheduled(STEPS)["lr"] != scheduled["lr"], name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing", "the settings must be names and values"),
        ({"landscpe": "bowl"}, "there is no setting 'landscpe'"),
        ({"landscape": "moon"}, "unknown landscape 'moon'; it must be one of potholes, bowl"),
        ({"landscape": 3}, "landscape must be a word"),
        ({"steps": "many"}, "Invalid steps: 'many'; steps must be a number"),
        ({"steps": 2.5}, "Invalid steps: 2.5; steps must be a whole number"),
        ({"steps": 0}, "steps must be a number of 1 or more, and 5000 at most"),
        ({"x": float("nan")}, "x must be"),
        ({"y": 1e7}, "y must be"),
        ({"marbles": []}, "there must be 1 to 4 marbles"),
        ({"marbles": [{}] * 5}, "there must be 1 to 4 marbles"),
        ({"marbles": {"rule": "sgd"}}, "there must be 1 to 4 marbles"),
        ({"marbles": [3]}, "the settings of marble 1 must be names and values"),
        ({"marbles": [{}, {"rule": "adem"}]}, "unknown rule of marble 2 'adem'"),
        ({"marbles": [{"lr": True}]}, "lr of marble 1 must be a number, not bool"),
        ({"marbles": [{"beta1": 1}]}, "beta1 of marble 1 must be"),
        ({"marbles": [{"speed": 1}]}, "there is no setting 'speed' of marble 1"),
    ],
)
def test_nonsense_is_named(given, message):
    with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
        settings.checked(given)


def test_what_the_optimizer_refuses_the_page_refuses():
    """With the optimizer's own words."""
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum"):
        reply.told(of_one_marble(rule="nesterov", momentum=0))


def test_settings_have_defaults():
    """The start is the landscape's."""
    given = settings.checked({"landscape": "cliff"})
    assert given.start == LANDSCAPES["cliff"].start
    assert len(given.marbles) == 1
    assert given.marbles[0]["lr"] == marbles.MARBLE["lr"].default
    assert settings.checked({"landscape": "cliff", "x": 6}).start == (6.0, LANDSCAPES["cliff"].start[1])


def test_what_is_packed_can_be_unpacked():
    """As float32; one number stands for equal ones."""
    values = np.random.default_rng(0).standard_normal((5, 2))
    np.testing.assert_array_equal(unpacked(reply.packed(values)), values.astype(np.float32).ravel())
    np.testing.assert_array_equal(unpacked(reply.packed(np.full(7, 0.5))), np.full(7, 0.5))
    assert len(json.dumps(reply.packed(np.full(1000, 0.5)))) < 50


def test_a_reply_has_what_the_path_has():
    """Points, pulls, rates and losses, these above the least; and where the marble ends."""
    given = settings.checked({**LESSONS["carried"].settings, "steps": 100})
    stuck, carried = reply.told(given)["marbles"]
    walked = marbles.roll_from(given.marbles[1], given.landscape, given.start, given.noises())
    np.testing.assert_array_equal(unpacked(carried["points"]), walked.points.astype(np.float32).ravel())
    above = walked.losses - given.landscape.least
    np.testing.assert_array_equal(unpacked(carried["above"]), above.astype(np.float32))
    assert (stuck["end"], carried["end"]) == ("stuck", "basin")
    assert (stuck["home"], carried["home"]) == (None, 51)  # as docs/lectures.md says
    assert carried["final"] == walked.losses[-1]
    assert carried["momentum"] == {"value": float(np.float32(0.9)), "count": 100}
    assert stuck["momentum"] is stuck["rates"] is carried["rates"] is None


def test_random_starts_are_the_same_in_any_portions():
    """And all are counted, for each marble."""
    given = settings.checked({"landscape": "bowl", "steps": 20, "noise": 0.1, "marbles": [{"lr": 0.3}, {"lr": 0.7}]})
    whole = reply.ends_of_starts(given, 0, 30)
    parts = [reply.ends_of_starts(given, first, 10) for first in (0, 10, 20)]
    for marble, total in enumerate(whole):
        assert sum(total.values()) == 30
        assert total == {end: sum(part[marble][end] for part in parts) for end in reply.ENDS}
    assert whole[0] != whole[1]
    assert sum(reply.ends_of_starts(given, 195, 10)[0].values()) == 5  # there are 200


def test_a_landscape_is_told_whole():
    """Its grid, and how it is drawn, as JSON."""
    told = json.loads(json.dumps(reply.landscape("potholes"), allow_nan=False))
    losses = unpacked(told["losses"]).reshape(told["points"], told["points"])
    x = np.linspace(*told["x"], told["points"])
    y = np.linspace(*told["y"], told["points"])
    assert losses[3, 70] == np.float32(formulas.potholes(x[70], y[3])[0])
    assert reply.landscape("bowl")["top"] is None


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("stuck", "homing") else pytest.mark.exhaustive) for name in LESSONS],
)
def test_a_lesson_shows_what_it_says(name):
    """Where its marbles end."""
    told = reply.told(settings.checked(LESSONS[name].settings))["marbles"]
    ends = {
        "stuck": ["stuck"],
        "carried": ["stuck", "basin"],
        "bouncing": ["moving"],
        "homing": ["moving", "basin"],
        "reheated": ["stuck", "basin"],
        "angle": ["basin", "basin", "moving"],
        "dies": ["moving", "moving", "basin"],
        "exploding": ["lost", "basin"],
    }
    assert [each["end"] for each in told] == ends[name]


def test_lessons_have_two_sentences_and_stops():
    """The settings that a lesson begins with are among its sliders' stops, so that the exported page has them."""
    for name, lesson in LESSONS.items():
        assert lesson.text.count(". ") == 1, name
        for slider, stops in lesson.grid.items():
            number, _, of = slider.partition(".")
            value = lesson.settings["marbles"][int(number) - 1][of] if of else lesson.settings[slider]
            assert value in stops, (name, slider)
            assert list(stops) == sorted(stops)
        assert len([*itertools.product(*lesson.grid.values())]) <= 64, "the exported page becomes large"


def test_the_page_of_the_documentation_has_everything():
    """Each lesson and each landscape by its name, and the size of the grid."""
    text = (ROOT / "docs/play.md").read_text(encoding="utf-8")
    rows = {*re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)}
    assert {lesson.title for lesson in LESSONS.values()} <= rows
    assert {each.title for each in LANDSCAPES.values()} <= rows
    assert f"{plane.POINTS} by {plane.POINTS} losses" in text
