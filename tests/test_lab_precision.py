"""The lab's experiment on storages: its trainings, its numbers and what it says of them."""

import importlib
import sys

import numpy as np
import pytest
from lab_cases import HOUSES, experiment
from pairs import usually

from fastopt import lab
from fastopt.lab import network, storages, training
from fastopt.lab.storages import BASE, STORAGES
from fastopt.schedules import Constant, Cosine

# fastopt.lab.precision and the others are the experiments themselves: these are their modules
precision, digits = (importlib.import_module(f"fastopt.lab.{name}") for name in ("precision", "digits"))
BYTES = {  # of parameter, gradient and states
    "float32": {"momentum": 12, "adagrad": 12, "adam": 16},
    "bf16 states": {"momentum": 10, "adagrad": 10, "adam": 12},
    "bf16 parameters": {"momentum": 8, "adagrad": 8, "adam": 12},
}


@pytest.fixture(scope="module")
def on_digits():
    """The training of the digits."""
    return precision.of_digits(None)


def test_with_float32_it_is_the_training_of_digits(on_digits):
    """To the bit: copies and options of storages change nothing."""
    lr = 0.1
    measured = [*on_digits.train("momentum", STORAGES[BASE], Constant(lr), 2, seed=3)]
    x, y, _, _ = digits.load()
    trained = digits.train(training.OPTIMIZERS["momentum"], x, y, epochs=2, seed=3, lr=lr)
    assert [epoch.loss for epoch in measured] == [network.loss(params, x, y) for params, _ in trained]


def test_the_network_sees_what_is_stored():
    """Gradients are rounded for the optimizer, and the copies have the parameter's values after each step."""
    values = {"w": np.array([1.0, 1.001], np.float32)}
    stored = storages.Stored(values, STORAGES["bf16 parameters"], training.OPTIMIZERS["sgd"], Constant(1.0))
    assert values["w"].tolist() == [1, 1]
    grads = {"w": np.array([0.25, 0.001], np.float32)}
    stored.bind(grads)
    stored.step()
    assert stored.params["w"].dtype.name == stored.grads["w"].dtype.name == "bfloat16"
    assert values["w"].tolist() == [0.75, 1]  # the second step is less than half of the last of 8 bits


def test_bytes_are_those_of_the_dtypes():
    """Each parameter with its gradient and states, however small it is."""
    _, numbers = experiment("precision")
    for rule, found in numbers["trainings"]["digits"].items():
        assert {name: each["bytes"] for name, each in found.items()} == {name: BYTES[name][rule] for name in BYTES}


def test_means_are_over_the_seeds(on_digits):
    """Of the loss by epoch, of the final losses and of the squares."""
    _, numbers = experiment("precision")
    assert numbers["seeds"] == 2
    for rule, found in numbers["trainings"]["digits"].items():
        lr = Cosine(on_digits.rates[rule], numbers["epochs"] * on_digits.steps)
        runs = [[*on_digits.train(rule, STORAGES["bf16 states"], lr, numbers["epochs"], seed)] for seed in (0, 1)]
        each = found["bf16 states"]
        assert each["final"] == [run[-1].loss for run in runs]
        assert each["loss"] == pytest.approx(np.mean([[epoch.loss for epoch in run] for run in runs], axis=0))
        if rule == "momentum":
            assert each["squares"] is None
        else:
            assert each["squares"] == pytest.approx(np.mean([[epoch.squares for epoch in run] for run in runs], axis=0))


@pytest.mark.parametrize("seed", usually([0], [0, 1, 2]))
def test_what_rounding_to_nearest_stalls(on_digits, seed):
    """Parameters in bfloat16 at a low rate; AdaGrad's sum; Adam's average, which does not shrink."""
    low = Constant(precision.FRACTION * on_digits.rates["momentum"])
    losses, squares = {}, {}
    for name in ("float32", "bf16 parameters"):
        losses[name] = [epoch.loss for epoch in on_digits.train("momentum", STORAGES[name], low, 15, seed)]
    assert losses["bf16 parameters"][-1] > 1.4 * losses["float32"][-1]
    for rule in ("adagrad", "adam"):
        for name in ("float32", "bf16 states to nearest"):
            lr = Cosine(on_digits.rates[rule], 15 * on_digits.steps)
            squares[rule, name] = [*on_digits.train(rule, STORAGES[name], lr, 15, seed)][-1].squares
    assert squares["adagrad", "bf16 states to nearest"] < 0.95 * squares["adagrad", "float32"]
    assert squares["adam", "bf16 states to nearest"] > 1.1 * squares["adam", "float32"]


@pytest.mark.parametrize(
    ("final", "within", "said"),
    [
        ([1.0005, 3.0005], 0.001, "within 0.1%"),
        ([1.02, 3.0], 0.005, "within 0.5%"),
        ([1.02, 3.0], 0.001, "within the spread"),
        ([0.5, 1.51], 0.001, "within the spread"),
        ([0.5, 1.49], 0.001, "lower"),
        ([3.0, 3.1], 0.001, "higher"),
        ([1.0, None], 0.001, "diverges"),
    ],
)
def test_verdicts(final, within, said):
    """Of a mean beside one of 2 with a deviation of 1."""
    assert precision.verdict(final, [1.0, 3.0], within) == said


def test_the_report_counts_verdicts():
    """Those that are near, and the names of the others."""
    storage = {"float32": {"final": [1.0, 3.0]}, "bf16 states": {"final": [2.5]}, "bf16 parameters": {"final": [9.0]}}
    assert precision.judged({"digits": {"adam": storage}}) == (
        "Of 2 means, beside float32's, 1 within the spread. higher: digits, adam, bf16 parameters"
    )


def test_what_diverges_is_told_and_drawn():
    """As None, which JSON has, without a warning."""
    runs = [[storages.Measured(1.0, 0.5, 12.0), storages.Measured(loss, loss, 12.0)] for loss in (1.0, np.nan)]
    diverged = precision.summary(runs)
    assert diverged == {"loss": [1.0, None], "final": [1.0, None], "squares": [0.5, None], "bytes": 12.0}
    fine = precision.summary(runs[:1])
    results = {rule: {"float32": fine, "bf16 parameters": diverged} for rule in precision.RULES}
    numbers = {"epochs": 2, "seeds": 2, "slow": results["momentum"], "trainings": {"digits": results}}
    figure, axes = precision.new_figure(["digits"])
    precision.draw(figure, axes, numbers)
    figure.draw_without_rendering()
    assert "diverges" in precision.report(numbers)
    assert "not finite (bf16 parameters)" in precision.report(numbers)


def test_there_is_room_for_more_storages(monkeypatch):
    """Nine with long names: each has a line of its own, and the legend is in the picture."""
    added = {f"bf16 states, stochastic {k}": storages.Storage(parameters="bfloat16") for k in range(8)}
    monkeypatch.setattr(precision, "STORAGES", {BASE: STORAGES[BASE], **added})
    monkeypatch.setattr(precision, "LINES", precision.lines_of(precision.STORAGES))
    assert len(set(precision.LINES.values())) == 9
    each = precision.summary([[storages.Measured(loss, loss, 12.0) for loss in (0.5, 0.4)]])
    results = {rule: dict.fromkeys(precision.STORAGES, each) for rule in precision.RULES}
    figure, axes = precision.new_figure(["digits"])
    precision.draw(
        figure, axes, {"epochs": 2, "seeds": 1, "slow": results["momentum"], "trainings": {"digits": results}}
    )
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


@pytest.fixture
def text(monkeypatch):
    """The module of the GPT, which is smaller here."""
    text = importlib.import_module("fastopt.lab.text")
    for name, value in {"WIDTH": 8, "HEADS": 2, "CONTEXT": 6, "BATCH": 2, "JUDGED": 3}.items():
        monkeypatch.setattr(text, name, value)
    return text


def test_the_gpt_sees_what_came_before_alone(text):
    """A character changes the scores at its own place and after it, not before."""
    torch = pytest.importorskip("torch")
    params = text.new_parameters(np.random.default_rng(0), characters=5)
    seen = torch.tensor([[0, 1, 2, 3, 4, 0]])
    changed = seen.clone()
    changed[0, 3] = 1
    same = (text.scores(params, seen) == text.scores(params, changed)).all(dim=-1)[0]
    assert same.tolist() == [True] * 3 + [False] * 3


def test_the_gpt_learns(text):
    """A text that repeats itself, with each dtype of parameters; the same seed gives the same losses."""
    numbers, characters = text.tokens("abcabd" * 50)
    assert characters == 4
    trained = text.Text(numbers, characters, text.LEARNING_RATES)
    losses = {}
    for name in ("float32", "bf16 parameters"):
        runs = [[*trained.train("adam", STORAGES[name], Constant(0.03), 4, seed)] for seed in (0, 0, 1)]
        same, again, other = ([epoch.loss for epoch in run] for run in runs)
        assert same == again != other
        assert same[-1] < 0.6 * np.log(characters)
        assert runs[0][-1].bytes == BYTES[name]["adam"]
        losses[name] = same
    assert losses["float32"] != losses["bf16 parameters"]


def test_the_text_is_english(text):
    """Half a million characters, of which few are different."""
    loaded = text.load()
    assert len(loaded) > 300_000
    assert " the " in loaded
    numbers, characters = text.tokens(loaded)
    assert len(numbers) == len(loaded)
    assert 60 < characters < 300


def test_all_trainings_are_drawn(text):
    """In a panel for each; the first one by epoch."""
    figure, numbers = lab.precision("housing, text", "bf16 states", csv=HOUSES, epochs=1, seeds=1)
    assert [*numbers["trainings"]] == ["housing", "text"]
    titles = [axes.get_title() for axes in figure.axes]
    assert sum("housing" in title for title in titles) == 2
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[3:] == ["final training loss, housing", "final training loss, text"]
    assert precision.report(numbers).count("final training loss") == 2


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"trainings": "digits,nothing"}, ValueError, "trainings: 'nothing' is not among digits, housing, text"),
        ({"trainings": 3}, TypeError, "trainings must be a string of names, separated by commas, not 3"),
        ({"storages": "int4"}, ValueError, "storages: 'int4' is not among float32, bf16 states"),
        ({"seeds": 0}, ValueError, "seeds"),
        ({"trainings": "housing", "csv": "no.csv"}, OSError, "no.csv"),
    ],
)
def test_bad_arguments(keywords, error, message):
    with pytest.raises(error, match=message):
        lab.precision(**keywords)


@pytest.mark.parametrize(("module", "trainings", "extra"), [("torch", "text", "torch"), ("ml_dtypes", "digits", "lab")])
def test_missing_packages_are_named(module, trainings, extra, monkeypatch):
    """With the extra that brings them."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fastopt.lab.text", raising=False)
    with pytest.raises(ImportError, match=rf"{module} is not installed: pip install 'fastopt\[{extra}\]'"):
        lab.precision(trainings, "bf16 parameters", epochs=1, seeds=1)
