"""The lab: the network's gradients, and what the experiments say of themselves."""

import importlib

import matplotlib.image
import numpy as np
import pytest

from fastopt import schedules
from fastopt.lab import look, network
from fastopt.progress import _count, track

module = importlib.import_module("fastopt.lab.digits")  # fastopt.lab.digits is the experiment itself
gallery = importlib.import_module("fastopt.lab.schedules")


def test_gradients_are_the_finite_differences_of_the_loss():
    """In float64, for every parameter of a network of three layers."""
    rng = np.random.default_rng(0)
    params = network.new_parameters(rng, sizes=(5, 7, 6, 4), dtype=np.float64)
    x, y = rng.standard_normal((9, 5)), rng.integers(0, 4, 9)
    grads = {name: np.full_like(p, np.nan) for name, p in params.items()}
    assert network.loss_and_gradients(params, x, y, grads) == pytest.approx(network.loss(params, x, y), rel=1e-12)
    for name, p in params.items():
        for index in np.ndindex(p.shape):
            kept, step = p[index], 1e-6
            p[index] = kept + step
            above = network.loss(params, x, y)
            p[index] = kept - step
            below = network.loss(params, x, y)
            p[index] = kept
            assert grads[name][index] == pytest.approx((above - below) / (2 * step), abs=1e-8)


def test_scores_of_any_size_do_not_overflow():
    """The softmax of large scores is as good as that of small ones."""
    params = {"w1": np.full((2, 3), 1e4, np.float32), "b1": np.zeros(3, np.float32)}
    assert network.loss(params, np.ones((1, 2), np.float32), np.array([1])) == pytest.approx(np.log(3), rel=1e-6)


def test_digits_are_split_once_and_for_all():
    """1,797 images in two parts that share none, each digit in both."""
    x_train, y_train, x_test, y_test = module.load()
    assert x_train.shape == (1437, 64)
    assert x_test.shape == (360, 64)
    assert x_train.dtype == np.float32
    assert (x_train.min(), x_train.max()) == (0, 1)
    assert set(y_train) == set(y_test) == set(range(10))
    np.testing.assert_array_equal(module.load()[0], x_train)


def test_digits_shows_what_it_claims(tmp_path):
    """Losses fall, the network learns, the numbers are the network's own, and the picture has the size it should."""
    figure, curves = module.digits(epochs=4)
    assert list(curves) == ["sgd", "momentum", "nesterov", "adagrad"]
    x_train, y_train, x_test, y_test = module.load()
    for rule, curve in curves.items():
        assert curve["loss"][-1] < curve["loss"][0]
        assert curve["accuracy"][-1] > 0.9
        *_, params = module.train(rule, x_train, y_train, lr=module.LEARNING_RATES[rule], epochs=4, seed=0)
        assert network.accuracy(params, x_test, y_test) == curve["accuracy"][-1]
    figure.savefig(tmp_path / "digits.png")
    assert matplotlib.image.imread(tmp_path / "digits.png").shape[:2] == (800, 1800)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_of_any_length_are_in_the_picture(epochs):
    """None is cut off, a single point is seen, and both axes have numbers."""
    figure, axes = look.new_figure(panels=2)
    curves = {rule: {"loss": list(np.geomspace(0.7, 0.3, epochs))} for rule in module.OPTIMIZERS}
    look.draw(axes[0], curves, "loss")
    look.use_log_scale(axes[0])
    look.add_legend(figure, axes[0])
    figure.canvas.draw()
    low, high = axes[0].get_ylim()
    assert low < curves["sgd"]["loss"][-1] <= curves["sgd"]["loss"][0] < high
    assert any(low < tick < high for tick in axes[0].get_yticks())
    assert len({line.get_color() for line in axes[0].lines}) == len(curves)
    assert all((line.get_marker() == "o") == (epochs == 1) for line in axes[0].lines)


def test_the_report_computes_its_words():
    """Other numbers, other words."""
    curves = {rule: {"loss": [0.5, 0.2], "accuracy": [0.8, 0.9]} for rule in module.OPTIMIZERS}
    curves["momentum"] = {"loss": [0.6, 0.05], "accuracy": [0.8, 1.0]}
    text = module.report(curves)
    assert "sgd more than 2, momentum 2" in text
    assert "after the last, 2: momentum, 0.0500" in text
    assert "36 images of 360 apart, from 0.900 (sgd) to 1.000 (momentum)" in text


def test_rates_are_tuned_on_what_is_given():
    """The best of two rates, one of which cannot learn."""
    assert module.tune(rates=(1e-9, 0.1), epochs=1, seeds=[0]) == dict.fromkeys(module.OPTIMIZERS, 0.1)


def test_progress_yields_what_it_is_given(capsys):
    """With rich and without, and says how far it came."""
    assert list(track(iter("abc"), "doing", total=3)) == ["a", "b", "c"]
    assert list(_count(iter("abc"), "doing", 3)) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert "doing 3/3" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("steps", [20, 1000, 12_345_678])
def test_schedules_draws_what_the_schedules_are(steps):
    """The values are those of the objects that the numbers name, the lines are the values, and none is cut off."""
    figure, numbers = gallery.schedules(steps)
    t = np.array(numbers["steps"])
    assert (t[0], t[-1]) == (0, steps)
    assert len(t) == min(steps + 1, 1001)
    for axes, (title, curves) in zip(figure.axes, numbers["panels"].items(), strict=True):
        assert axes.get_title() == title
        low, high = axes.get_ylim()
        for line, (label, curve) in zip(axes.lines, curves.items(), strict=True):
            np.testing.assert_array_equal(line.get_xydata(), np.transpose([t, curve["values"]]))
            assert low < min(curve["values"]) <= max(curve["values"]) < high
            if title != "Plateau":
                schedule = eval(curve["schedule"], vars(schedules))
                assert type(schedule).__name__ == title.split()[0].strip(",")
                np.testing.assert_array_equal(curve["values"], schedule(t), err_msg=f"{title}, {label}")


def test_every_schedule_is_in_the_picture(tmp_path):
    """A panel for each class at least, in a picture of the size that it should have."""
    figure, numbers = gallery.schedules()
    assert {title.split()[0].strip(",") for title in numbers["panels"]} == {*schedules.SCHEDULES, "Plateau"}
    assert numbers["panels"]["OneCycle"].keys() == {"lr", "momentum"}
    assert numbers["panels"]["WarmupStableDecay"].keys() == {"linear", "cosine", "1-sqrt"}
    figure.savefig(tmp_path / "schedules.png")
    assert matplotlib.image.imread(tmp_path / "schedules.png").shape[:2] == (1680, 1800)


def test_the_plateau_in_the_picture_follows_its_metric():
    """A new one that is told the same metrics, after epochs of 25 steps, takes the same rates, several of them."""
    curves = gallery.schedules(steps=1000)[1]["panels"]["Plateau"]
    plateau = eval(curves["lr"]["schedule"], vars(schedules))
    for rate, metric in zip(curves["lr"]["values"][:1000:25], curves["metric"]["values"][:1000:25], strict=True):
        assert plateau(0) == rate
        plateau.update(metric)
    assert len({*curves["lr"]["values"]}) > 3


def test_the_report_names_schedules_and_values():
    """At the quarters, in a row for each that has a schedule."""
    curve = {"schedule": "Linear(...)", "values": [1.0, 0.75, 0.5, 0.25, 0.125]}
    numbers = {"steps": [0, 25, 50, 75, 100], "panels": {"Linear": {"lr": curve, "metric": {"values": [1.0] * 5}}}}
    lines = gallery.report(numbers).splitlines()
    assert [line.split() for line in lines] == [
        ["0", "25", "50", "75", "100", "schedule"],
        ["1.000", "0.750", "0.500", "0.250", "0.125", "Linear(...)"],
    ]
    assert len({line.index(word) for line, word in zip(lines, ("schedule", "Linear"), strict=True)}) == 1


@pytest.mark.parametrize(
    ("steps", "error"), [(19, ValueError), (-1, ValueError), (2**40, ValueError), (1e3, TypeError)]
)
def test_schedules_wants_steps_that_it_can_draw(steps, error):
    """And says so."""
    with pytest.raises(error, match="steps must be"):
        gallery.schedules(steps)
