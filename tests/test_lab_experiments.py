"""The claims of each experiment of the lab, and its picture."""

import importlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from lab_cases import HEADER, HOUSES, assert_gradient, experiment
from matplotlib.text import Text
from pairs import usually

import fastopt
from fastopt import lab, schedules
from fastopt.lab import look, network, training
from fastopt.lab.descent import descend

# fastopt.lab.digits is the experiment itself, fastopt.lab's other names likewise: these are their modules
landscape, bounce, gallery, digits, housing, gradients = (
    importlib.import_module(f"fastopt.lab.{name}")
    for name in ("landscape", "bounce", "schedules", "digits", "housing", "gradients")
)


def test_the_slope_of_the_landscape():
    """Is that of its formula, near and far."""
    points = np.random.default_rng(0).uniform(-6, 6, (50, 2))
    assert_gradient(landscape.loss, landscape.gradient, points)
    deepest = landscape.loss(np.array(landscape.BASIN[:2]))
    assert (landscape.loss(points) > deepest).all()


@pytest.fixture(scope="module")
def ways():
    """The landscape, with fewer starts than by default."""
    return lab.landscape(starts=40, seed=5)[1]


def test_the_marble_does_what_the_lecture_says(ways):
    """Stuck by plain descent, through by momentum, not at rest by a huge rate or a tiny one, out again by reheating."""
    ends = {way: each["end"] for way, each in ways["ways"].items()}
    assert ends["plain"] == "stuck"
    assert ends["huge rate"] == ends["tiny rate"] == "moving"
    assert all(ends[way] == "settled" for way in ends if "momentum" in way)
    assert ends["reheating"] == "settled"
    plain, reheated = (np.array(ways["ways"][way]["path"]) for way in ("plain", "reheating"))
    quarter = ways["steps"] // 4
    np.testing.assert_array_equal(plain[: quarter + 1], reheated[: quarter + 1])
    np.testing.assert_allclose(reheated[quarter], plain[-1], atol=1e-2)  # it sat in the same pothole
    assert np.ptp(ways["ways"]["tiny rate"]["loss"]) < 0.1
    assert np.ptp(ways["ways"]["huge rate"]["loss"][-50:]) > 1


def test_random_starts_end_as_counted(ways):
    """Shares sum to 1, momentum passes more potholes than plain descent, and few leave the basin by reheating."""
    shares = {way: each["ends"] for way, each in ways["ways"].items()}
    assert all(sum(each.values()) == pytest.approx(1) for each in shares.values())
    assert shares["momentum"]["settled"] > shares["plain"]["settled"] > shares["tiny rate"]["settled"]
    assert shares["reheating"]["settled"] > shares["plain"]["settled"]
    for each in ways["reheating"].values():
        assert each["outside"] + each["in_basin"] == 2 * ways["starts"]
        assert each["escaped"] <= each["outside"]
        assert each["left"] <= 0.1 * each["in_basin"]
    coldest, *_, hottest = ways["reheating"].values()
    assert coldest["escaped"] / coldest["outside"] < 0.5 < hottest["escaped"] / hottest["outside"]


def test_each_way_has_its_rate_and_momentum():
    """At the first step and at the last."""
    made = landscape.strategies(lr=0.05, momentum=0.9, steps=300)
    found = {}
    for way, make in made.items():
        optimizer = make(np.zeros(2))
        options = []
        for _ in range(300):
            optimizer.step(np.zeros(2))
            options.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        found[way] = options
    first, last = ({way: options[i] for way, options in found.items()} for i in (0, -1))
    assert first["plain"] == last["plain"] == (0.05, 0)
    assert first["huge rate"] == last["huge rate"] == (pytest.approx(3), 0)
    assert first["tiny rate"] == last["tiny rate"] == (pytest.approx(0.001), 0)
    assert first["momentum"] == last["momentum"] == (0.05, 0.9)
    assert first["falling momentum"] == (0.05, 0.9)
    assert last["falling momentum"] == (0.05, pytest.approx(0.9 / 300))
    assert first["momentum, decaying rate"] == (0.05, 0.9)
    assert last["momentum, decaying rate"] == (pytest.approx(0, abs=1e-5), 0.9)
    rates = [lr for lr, _ in found["reheating"]]
    assert set(rates[:75]) == {0.05}
    assert rates[75] == pytest.approx(1) == max(rates)
    _, between, _ = landscape.lowest_rates(300)
    assert rates[between] == pytest.approx(0, abs=1e-9)
    assert max(rates[between:]) == pytest.approx(1)


def test_the_bars_are_the_shares(ways):
    """Of each way, stacked, in the colour of each end."""
    _, axes = landscape.new_figure(landscape.strategies(0.05, 0.9, 300))
    landscape.draw(axes, ways["ways"])
    bars = axes["ends"].patches
    widths = np.reshape([bar.get_width() for bar in bars], (len(landscape.ENDS), -1)).T
    want = [[100 * each["ends"][end] for end in landscape.ENDS] for each in ways["ways"].values()]
    np.testing.assert_allclose(widths, want)
    assert [text.get_text() for text in axes["ends"].texts] == [*ways["ways"]]


def test_a_point_that_flies_through_the_bottom_has_not_settled():
    """A low loss is not enough: the slope must be low too."""
    near = np.array([[0.12, 0.0], [0.0, 0.0]])
    assert (landscape.loss(near) < landscape.loss(np.zeros(2)) + landscape.SETTLED).all()
    assert landscape.endings(near).tolist() == ["moving", "settled"]


def test_endings_are_told_apart():
    """At the bottom, in a pothole, and on a slope."""
    roll = landscape.ROLL[0]
    pothole = descend(roll, landscape.gradient, np.array(landscape.POTHOLES[0]), 500)[-1]
    points = np.array([landscape.BASIN[:2], pothole, (-4.0, 0.0)])
    assert landscape.endings(points).tolist() == ["settled", "stuck", "moving"]
    assert landscape.in_basin(points).tolist() == [True, False, True]


def test_reheatings_are_counted():
    """Between the coldest steps, those that cross the basin's edge, either way."""
    inside, outside = landscape.BASIN[:2], landscape.POTHOLES[0]
    path = np.zeros((9, 3, 2))
    path[landscape.lowest_rates(8)] = [
        [outside, inside, outside],
        [inside, inside, outside],
        [inside, outside, outside],
    ]
    assert landscape.reheated(path) == {"outside": 3, "escaped": 1, "in_basin": 3, "left": 1}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_constant_rate_rattles_where_theory_says(seed):
    """And a decaying one comes closer."""
    numbers = lab.bounce(steps=200, runs=200, seed=seed)[1]
    assert bounce.late(numbers["constant"]["mean_distance"]) == pytest.approx(numbers["expected"], rel=0.1)
    assert numbers["decaying"]["mean_distance"][-1] < 0.5 * numbers["expected"]
    schedule = eval(numbers["decaying"]["schedule"], vars(schedules))
    assert (schedule(0), schedule(200)) == (pytest.approx(0.2), pytest.approx(0.002))
    first = [numbers[name]["path"][1] for name in ("constant", "decaying")]
    np.testing.assert_array_equal(*first)  # the same rate and the same noise


def test_the_theory_of_rattling():
    """Along one axis the mean square is a fixed point of a step."""
    lr, noise = 0.3, 2.0
    squares = np.zeros(2)
    for _ in range(1000):
        squares = (1 - lr * bounce.CURVATURES) ** 2 * squares + (lr * noise) ** 2
    assert bounce.rattling(lr, noise) == pytest.approx(np.sqrt(squares.sum()), rel=1e-12)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_theory_of_an_average(decay):
    """The mean squares of point and average, and of their product, are a fixed point of a step."""
    lr, noise = 0.3, 2.0
    kept = 1 - lr * bounce.CURVATURES
    points, products, averages = np.zeros((3, 2))
    for _ in range(1000):
        points = kept**2 * points + (lr * noise) ** 2
        between = kept * products  # of the new point and the old average
        products = decay * between + (1 - decay) * points
        averages = decay**2 * averages + 2 * decay * (1 - decay) * between + (1 - decay) ** 2 * points
    assert bounce.rattling(lr, noise, decay) == pytest.approx(np.sqrt(averages.sum()), rel=1e-12)


def test_the_average_comes_closer_than_the_point():
    """As close as theory says; it is the optimizer's own, of the path at the constant rate."""
    numbers = lab.bounce(runs=200)[1]
    assert bounce.late(numbers["average"]["mean_distance"]) == pytest.approx(numbers["expected_average"], rel=0.1)
    assert numbers["expected_average"] < 0.3 * numbers["expected"]
    average = np.array(bounce.START)
    for point, got in zip(numbers["constant"]["path"][1:], numbers["average"]["path"][1:], strict=True):
        average = 0.98 * average + 0.02 * np.array(point)
        np.testing.assert_allclose(got, average, rtol=1e-9, atol=1e-12)


def test_digits_are_split_once_and_for_all():
    """1,797 images in two parts that share none, each digit in both."""
    x_train, y_train, x_test, y_test = digits.load()
    assert x_train.shape == (1437, 64)
    assert x_test.shape == (360, 64)
    assert x_train.dtype == np.float32
    assert (x_train.min(), x_train.max()) == (0, 1)
    assert set(y_train) == set(y_test) == set(range(10))
    np.testing.assert_array_equal(digits.load()[0], x_train)
    x_rest, y_rest, x_aside, y_aside = digits.held_out(x_train, y_train)
    assert (len(x_rest), len(x_aside)) == (1150, 287)
    np.testing.assert_array_equal(np.sort(np.concatenate([y_rest, y_aside])), np.sort(y_train))


def test_digits_shows_what_it_claims():
    """Losses fall, the network learns, and the numbers are the network's own."""
    numbers = lab.digits(epochs=4, seeds=1)[1]
    assert list(numbers["rules"]) == list(training.OPTIMIZERS) == list(digits.LEARNING_RATES)
    assert tuple(numbers["schedules"]) == digits.SCHEDULES
    x_train, y_train, x_test, y_test = digits.load()
    for rule, curve in numbers["rules"].items():
        assert curve["loss"][-1] < curve["loss"][0]
        assert curve["accuracy"][-1] > 0.9
        trained = digits.train(
            training.OPTIMIZERS[rule], x_train, y_train, epochs=4, seed=0, lr=digits.LEARNING_RATES[rule]
        )
        *_, (params, optimizer) = trained
        assert network.accuracy(params, x_test, y_test) == curve["accuracy"][-1]
        if rule == "adagrad":
            accumulator = optimizer.state["w1"]["sum"].reshape(8, 8, 32)
    rates = np.array(numbers["effective_lr"], float)
    row, column = 3, 4
    want = 0.1 / np.sqrt(accumulator[row, column].mean(dtype=np.float64))
    assert rates[row, column] == pytest.approx(want, rel=1e-6)
    dark = (x_train == 0).all(axis=0).reshape(8, 8)
    np.testing.assert_array_equal(np.isnan(rates), dark)


def test_edges_keep_higher_rates_than_the_centre():
    """The pixels there are dark in nearly all images: the lecture's sparse weight, in real data; for every seed."""
    for seed in range(3):
        x_train, y_train, _, _ = digits.load()
        *_, (_, optimizer) = digits.train(fastopt.Adagrad, x_train, y_train, epochs=2, seed=seed, lr=0.1)
        edges, centre = digits.edges_and_centre(digits.rates_by_pixel(optimizer.state["w1"]["sum"], 0.1))
        assert min(edges) > 2 * max(centre)


def assert_bands(axes, bands):
    """Assert that a panel's lines and bands are those given: (low, middle, high), each by epoch."""
    for line, band, (low, middle, high) in zip(axes.lines, axes.collections, bands, strict=True):
        np.testing.assert_allclose(line.get_ydata(), middle)
        edges = band.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose((edges.min(), edges.max()), (low.min(), high.max()))


def test_bands_are_what_the_runs_come_to():
    """Mean and standard deviation of the digits' accuracies, median and quartiles of the housing's R²."""
    figure, numbers = experiment("digits")
    panels = {axes.get_label(): axes for axes in figure.axes}
    runs = [np.array(each["accuracy"]) for each in numbers["schedules"].values()]
    bands = [[each.mean(axis=0) + side * each.std(axis=0) for side in (-1, 0, 1)] for each in runs]
    assert_bands(panels["schedules"], bands)
    figure, numbers = experiment("housing")
    panels = {axes.get_label(): axes for axes in figure.axes}
    for panel in ("all", "late"):
        runs = [each["r2"] for each in numbers["schedules"].values()]
        assert_bands(panels[panel], [np.quantile(each, (0.25, 0.5, 0.75), axis=0) for each in runs])


def test_the_report_of_digits_computes_its_words():
    """Other numbers, other words."""
    rules = {rule: {"loss": [0.5, 0.2], "accuracy": [0.8, 0.9]} for rule in training.OPTIMIZERS}
    rules["momentum"] = {"loss": [0.6, 0.05], "accuracy": [0.8, 1.0]}
    compared = {
        name: {"accuracy": [[0.8, 0.9 + i / 100]], "roughness": 0.01 * (i + 1)}
        for i, name in enumerate(digits.SCHEDULES)
    }
    rates = [[1.0] * 8 for _ in range(8)]
    rates[0][0] = None
    text = digits.report({"rules": rules, "schedules": compared, "lr": digits.LEARNING_RATES, "effective_lr": rates})
    assert "sgd more than 2, momentum 2" in text
    assert "after epoch 2: plateau, cosine, step, exponential, constant" in text
    assert "changes by 1.00 points (constant) to 5.00 (plateau)" in text


def test_roughness_is_the_mean_change_of_the_second_half():
    """Up or down; the first epochs, which all curves begin with, do not count."""
    assert digits.roughness([[0.0, 0.5, 0.9, 0.8, 0.9], [0.0, 0.5, 0.9, 0.9, 0.9]]) == pytest.approx(0.05)
    assert digits.roughness([[0.5]]) == 0


def test_schedules_are_compared_on_other_images_than_they_go_by(monkeypatch):
    """A fifth of the training images is what the plateau sees, and nothing else of what is not trained on."""
    trained, seen = [], []
    train, loss = training.train, network.loss
    monkeypatch.setattr(
        training, "train", lambda p, o, x, y, **options: trained.append(x) or train(p, o, x, y, **options)
    )
    monkeypatch.setattr(network, "loss", lambda params, x, y: seen.append(x) or loss(params, x, y))
    x_train, y_train, x_test, y_test = digits.load()
    curves = digits.by_schedule(x_train, y_train, x_test, y_test, 2, range(3, 5))
    x_rest, _, x_aside, _ = digits.held_out(x_train, y_train)
    assert len(trained) == 10
    assert len(seen) == 4
    assert all(np.array_equal(x, x_rest) for x in trained)
    assert all(np.array_equal(x, x_aside) for x in seen)
    for curve in curves.values():
        assert curve["roughness"] == digits.roughness(curve["accuracy"])
        assert curve["accuracy"][0] != curve["accuracy"][1]
    again = digits.by_schedule(x_train, y_train, x_test, y_test, 2, [4])
    assert all(again[name]["accuracy"][0] == curves[name]["accuracy"][1] for name in curves)


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_schedule_is_on_the_scale(epochs):
    """Where it ends, at least."""
    figure, numbers = lab.digits(epochs=epochs, seeds=1)
    axes = next(each for each in figure.axes if each.get_label() == "schedules")
    low, high = axes.get_ylim()
    assert all(low < curve["accuracy"][0][-1] < high for curve in numbers["schedules"].values())
    best = max(curve["accuracy"][0][-1] for curve in numbers["schedules"].values())
    assert high - low > digits.ZOOM / 2 > 0.03
    assert best - low >= digits.ZOOM / 2


def test_each_seed_is_a_run_of_its_own():
    """From the first one on, in the experiments that compare several."""
    for run, options, key in (
        (lab.digits, {"epochs": 1}, "accuracy"),
        (lab.housing, {"csv": HOUSES, "epochs": 1}, "r2"),
    ):
        both = run(seeds=2, seed=3, **options)[1]["schedules"]["cosine"][key]
        second = run(seeds=1, seed=4, **options)[1]["schedules"]["cosine"][key]
        assert both[1:] == second
        assert both[0] != both[1]


def test_rates_are_tuned_without_the_test_images(monkeypatch):
    """Which are not there."""
    x, y, _, _ = digits.load()
    monkeypatch.setattr(digits, "load", lambda: (x, y, None, None))
    assert digits.tune(rates=(0.1,), epochs=1, seeds=[0]) == dict.fromkeys(training.OPTIMIZERS, 0.1)


def test_rates_are_tuned_on_what_is_given():
    """The best of two rates, one of which cannot learn."""
    assert digits.tune(rates=(1e-9, 0.1), epochs=1, seeds=[0]) == dict.fromkeys(training.OPTIMIZERS, 0.1)


@pytest.mark.parametrize("steps", [20, 1000, 12_345_678])
def test_schedules_draws_what_the_schedules_are(steps):
    """The values are those of the objects that the numbers name, the lines are the values, and none is cut off."""
    figure, numbers = gallery.schedules(steps)
    t = np.array(numbers["steps"])
    assert (t[0], t[-1]) == (0, steps)
    assert len(t) == min(steps + 1, 1001)
    for axes, (title, curves) in zip(figure.axes, numbers["panels"].items(), strict=True):
        assert axes.get_title() == title.replace(": ", "\n")
        low, high = axes.get_ylim()
        for line, (label, curve) in zip(axes.lines, curves.items(), strict=True):
            np.testing.assert_array_equal(line.get_xydata(), np.transpose([t, curve["values"]]))
            assert low < min(curve["values"]) <= max(curve["values"]) < high
            if not title.startswith("Plateau"):
                schedule = eval(curve["schedule"], vars(schedules))
                assert type(schedule).__name__ == title.split()[0].strip(",:")
                np.testing.assert_array_equal(curve["values"], schedule(t), err_msg=f"{title}, {label}")


def test_every_schedule_is_in_the_picture():
    """A panel for each class at least."""
    _, numbers = gallery.schedules()
    assert {title.split()[0].strip(",:") for title in numbers["panels"]} == {*schedules.SCHEDULES, "Plateau"}
    assert numbers["panels"]["OneCycle"].keys() == {"lr", "momentum"}
    assert numbers["panels"]["WarmupStableDecay"].keys() == {"linear", "cosine", "1-sqrt"}


def test_the_plateau_in_the_picture_follows_its_metric():
    """A new Plateau with the same metrics, after epochs of 25 steps, takes the same learning rates, several of them."""
    curves = gallery.schedules(steps=1000)[1]["panels"]["Plateau: by a metric"]
    plateau = eval(curves["lr"]["schedule"], vars(schedules))
    for rate, metric in zip(curves["lr"]["values"][:1000:25], curves["metric"]["values"][:1000:25], strict=True):
        assert plateau(0) == rate
        plateau.update(metric)
    assert len({*curves["lr"]["values"]}) > 3


def test_the_report_of_schedules_names_them_and_their_values():
    """At the quarters, in a row for each that has a schedule; and the lines below are computed."""
    numbers = gallery.schedules(steps=100)[1]
    numbers["panels"]["Linear"]["lr"] = {"schedule": "Linear(...)", "values": [1.0] + 49 * [0.9] + 51 * [0.8]}
    text = gallery.report(numbers)
    head, *rows = text.partition("\n\n")[0].splitlines()
    assert head.split() == ["0", "25", "50", "75", "100", "schedule"]
    linear = next(row for row in rows if "Linear(...)" in row)
    assert linear.split() == ["1.000", "0.900", "0.800", "0.800", "0.800", "Linear(...)"]
    assert head.index("schedule") == linear.index("Linear")
    assert "Linear has the highest mean, 0.85, and Product the lowest" in text


@pytest.mark.parametrize(
    ("steps", "error"), [(19, ValueError), (-1, ValueError), (2**40, ValueError), (1e3, TypeError)]
)
def test_schedules_wants_steps_that_it_can_draw(steps, error):
    """And says so."""
    with pytest.raises(error, match="steps must be"):
        gallery.schedules(steps)


def test_houses_are_read_as_they_are_written(tmp_path):
    """Features per household, prices in units of 100,000 dollars; columns in any order, others left out."""
    houses = housing.load(HOUSES)
    table = np.genfromtxt(HOUSES, delimiter=",", names=True, usecols=range(9))
    assert houses.x.shape == (400, 8)
    np.testing.assert_allclose(houses.y, table["median_house_value"] / 1e5)
    want = [
        table["median_income"], table["housing_median_age"], table["total_rooms"] / table["households"],
        table["total_bedrooms"] / table["households"], table["population"],
        table["population"] / table["households"], table["latitude"], table["longitude"],
    ]  # fmt: skip
    np.testing.assert_allclose(houses.x, np.transpose(want))
    lines = [line.split(",") for line in HOUSES.read_text().splitlines()]
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join(",".join(reversed(line)) for line in lines))
    np.testing.assert_array_equal(housing.load(turned).x, houses.x)


def test_houses_are_split_once_and_standardised_by_the_training_part():
    """Three parts that share none; what is missing is filled in and counted; far values are cut off."""
    houses = housing.load(HOUSES)
    data = housing.split(houses)
    assert [len(part) for part in (data.y, data.y_validation, data.y_test)] == [288, 32, 80]
    prices = np.concatenate([data.y, data.y_validation, data.y_test])
    np.testing.assert_allclose(np.sort(prices * data.scale + houses.y.mean()), np.sort(houses.y), atol=0.3)
    assert houses.missing == np.isnan(houses.x).sum() == 7
    assert not np.isnan(np.concatenate([data.x, data.x_validation, data.x_test])).any()
    assert data.y.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=0.05)
    far = housing.split(replace(houses, x=houses.x * np.where(np.arange(400) % 50, 1, 100)[:, np.newaxis]))
    assert abs(far.x).max() == housing.LIMIT
    np.testing.assert_array_equal(data.x_test, housing.split(houses).x_test)


def test_nothing_of_the_test_part_is_in_the_others():
    """Not in medians, means or deviations."""
    houses = housing.load(HOUSES)
    data = housing.split(houses)
    order = np.random.default_rng(0).permutation(400)
    hidden = replace(houses, x=houses.x.copy(), y=houses.y.copy())
    hidden.x[order[:80]] *= 3
    hidden.y[order[:80]] += 7
    other = housing.split(hidden)
    for part in ("x", "y", "x_validation", "y_validation", "scale"):
        np.testing.assert_array_equal(getattr(other, part), getattr(data, part))
    assert not np.array_equal(other.x_test, data.x_test)


def test_housing_rates_are_tuned_without_the_test_part(monkeypatch):
    """Which is not there."""
    data = replace(housing.split(housing.load(HOUSES)), x_test=None, y_test=None)
    monkeypatch.setattr(housing, "split", lambda houses: data)
    assert housing.tune(HOUSES, rates=(0.01,), epochs=1, seeds=[0]) == dict.fromkeys(training.SCHEDULES, 0.01)


def test_a_number_that_is_missing_is_counted_once(tmp_path):
    """Whatever follows from it, households included."""
    lines = HOUSES.read_text().splitlines()
    fields = lines[5].split(",")
    for name in ("households", "population"):
        fields[HEADER.index(name)] = ""
    path = tmp_path / "houses.csv"
    path.write_text("\n".join([*lines[:5], ",".join(fields), *lines[6:]]))
    before, after = housing.load(HOUSES), housing.load(path)
    assert after.missing == before.missing + 2
    assert not np.isnan(housing.split(after).x).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("households", "homes", 1), "houses.csv has no column households"),
        (
            lambda text: text.replace("INLAND\n", "INLAND\nx,y,z,0,0,0,0,0,0,0\n", 1),
            "line 3: housing_median_age is 'z'",
        ),
        (lambda text: "\n".join(text.splitlines()[:20]), "19 rows with a price; it needs 50"),
        (lambda text: ",".join(HEADER), "0 rows with a price"),
        (lambda text: "", "no column median_income"),
        (lambda text: text + "1,1,1,1,1,1,0,1,1,INLAND\n", "line 402: households is 0; it must be 1 or more"),
        (lambda text: text + "1,1,1,1,1,1,inf,1,1,INLAND\n", "households is 'inf'"),
        (lambda text: text + "1,1,1,1,1,1,1,1,1e300,INLAND\n", "median_house_value is '1e300'"),
        (lambda text: text + '1,"' + 200_000 * "1", "houses.csv is no CSV file"),
        (lambda text: text + "1,1,1\n", "line 402 has more or fewer fields"),
        (lambda text: text + "1,1,1,1,1,1,1,1,1,INLAND,1\n", "line 402 has more or fewer fields"),
        (lambda text: with_column(text, "median_house_value", "250000"), "one price in all rows of a part"),
        (lambda text: with_column(text, "total_bedrooms", ""), "no value of bedrooms per household"),
    ],
)
def test_files_of_houses_that_do_not_fit(change, message, tmp_path):
    """What is wrong is named, with its line where it has one, before anything is trained."""
    path = tmp_path / "houses.csv"
    path.write_text(change(HOUSES.read_text()))
    with pytest.raises(ValueError, match=message):
        housing.split(housing.load(path))


def with_column(text, name, value):
    """Return the file with one value in all rows of a column."""
    head, *lines = (line.split(",") for line in text.splitlines())
    for fields in lines:
        fields[HEADER.index(name)] = value
    return "\n".join(",".join(fields) for fields in [head, *lines])


def test_a_file_in_another_encoding_is_named(tmp_path):
    """And the one that it should have."""
    path = tmp_path / "houses.csv"
    path.write_bytes(HOUSES.read_text().encode("utf-16"))
    with pytest.raises(ValueError, match=r"houses\.csv is no CSV file in UTF-8"):
        housing.load(path)
    path.write_bytes(b"\xef\xbb\xbf" + HOUSES.read_bytes().replace(b"\n", b"\r\n"))  # as spreadsheets write
    np.testing.assert_array_equal(housing.load(path).y, housing.load(HOUSES).y)


def test_districts_without_a_price_are_left_out(tmp_path):
    """And counted."""
    path = tmp_path / "houses.csv"
    path.write_text(HOUSES.read_text() + "1,1,1,1,1,1,1,1,,INLAND\n")
    houses = housing.load(path)
    assert (len(houses.y), houses.without_price) == (400, 1)


def test_without_a_network_the_way_out_is_named(monkeypatch):
    """A file does as well."""
    datasets = importlib.import_module("sklearn.datasets")

    def refused(**options):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "fetch_california_housing", refused)
    with pytest.raises(OSError, match=r"--csv FILE takes a file with the columns median_income.*no network"):
        lab.housing()
    with pytest.raises(FileNotFoundError):
        lab.housing(csv="no/such/file.csv")


def test_with_a_network_scikit_learns_data_are_taken(monkeypatch):
    """As they are."""
    datasets = importlib.import_module("sklearn.datasets")
    x, y = np.random.default_rng(0).random((60, 8)), np.random.default_rng(1).random(60)
    monkeypatch.setattr(datasets, "fetch_california_housing", lambda **options: (x, y))
    numbers = lab.housing(epochs=1, seeds=1)[1]
    assert numbers["source"] == "sklearn.datasets.fetch_california_housing"
    assert sum(numbers["rows"].values()) == 60
    assert numbers["missing"] == 0


def test_the_test_part_is_judged_after_all_trainings(monkeypatch):
    """Never before the last one has ended, and never by a training."""
    order = []
    train, judge = housing.train, housing.judge
    monkeypatch.setattr(housing, "train", lambda *args, **options: order.append("train") or train(*args, **options))
    monkeypatch.setattr(housing, "judge", lambda *args: order.append("judge") or judge(*args))
    lab.housing(csv=HOUSES, epochs=1, seeds=2)
    trainings = 2 * len(training.SCHEDULES)
    assert order == trainings * ["train"] + trainings * ["judge"]
    data = housing.split(housing.load(HOUSES))
    hidden = replace(data, x_test=None, y_test=None)
    for seen, unseen in zip(
        *(train("plateau", each, lr=0.03, epochs=3, seed=0) for each in (data, hidden)), strict=True
    ):
        assert all((seen[name] == unseen[name]).all() for name in seen)


def test_housing_trains_with_nesterov(monkeypatch):
    """On the schedule of its name."""
    made = []
    nesterov = training.OPTIMIZERS["nesterov"]
    monkeypatch.setitem(
        training.OPTIMIZERS, "nesterov", lambda *args, **options: made.append(nesterov(*args, **options)) or made[-1]
    )
    data = housing.split(housing.load(HOUSES))
    for name, make in training.SCHEDULES.items():
        housing.train(name, data, lr=0.01, epochs=2, seed=0)
        group = made.pop().param_groups[0]
        assert (group["momentum"], group["nesterov"]) == (0.9, True)
        if name != "plateau":
            assert group["lr"] == make(0.01, 2, 5)(9)


def test_housing_learns():
    """R² and error by the networks' own predictions, in the table as medians; prices that can be learnt are learnt."""
    numbers = lab.housing(csv=HOUSES, epochs=20, seeds=3)[1]
    data = housing.split(housing.load(HOUSES))
    *_, params = housing.train("cosine", data, lr=housing.LEARNING_RATES["cosine"], epochs=20, seed=1)
    found = numbers["schedules"]["cosine"]
    squares = (housing.predict(params, data.x_test).astype(float) - data.y_test) ** 2
    assert found["rmse"][1][-1] == pytest.approx(data.scale * np.sqrt(squares.mean()), rel=1e-5)
    spread = ((data.y_test - data.y_test.mean()) ** 2).sum()
    assert found["r2"][1][-1] == pytest.approx(1 - squares.sum() / spread, rel=1e-5)
    assert all(len(values) == 20 for each in numbers["schedules"].values() for values in each["r2"])
    assert housing.last(found, "r2") == np.median([values[-1] for values in found["r2"]]) > 0.75
    text = housing.report(numbers)
    ranking = sorted(numbers["schedules"], key=lambda name: -housing.last(numbers["schedules"][name], "r2"))
    assert [line.split()[0] for line in text.splitlines()[1:8]] == ranking
    assert f"{ranking[0]} is best" in text
    assert "7 missing numbers" in text


def test_housing_rates_are_tuned_on_the_validation_part():
    """The best of two rates, one of which cannot learn."""
    assert housing.tune(HOUSES, rates=(1e-9, 0.01), epochs=1, seeds=[0]) == dict.fromkeys(training.SCHEDULES, 0.01)


def test_the_slope_of_the_cliff():
    """Backpropagation through time is the derivative of the loss, where finite differences can tell."""
    points = np.random.default_rng(0).uniform((3.6, -2.0), (4.4, -1.0), (30, 2))
    assert_gradient(gradients.loss, gradients.gradient, points)


def test_each_point_is_clipped_by_its_own_norm():
    """As if it were alone."""
    vectors = np.array([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    points = np.zeros((3, 2))
    gradients.OneForEach(partial(fastopt.SGD, lr=1.0, max_grad_norm=1.0), points).step(vectors)
    np.testing.assert_allclose(points, [[-0.6, -0.8], [-0.03, -0.04], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("seed", usually([0], range(3)))
def test_plain_descent_is_thrown_off_the_cliff_and_clipped_descent_is_not(seed):
    """From the picture's start, and from most around it."""
    cliff = gradients.descents(lr=0.2, max_norm=0.3, max_value=0.3, steps=300, starts=40, seed=seed)
    plain, clipped, by_value = (cliff["ways"][name] for name in ("plain", "by norm", "by value"))
    step = plain["thrown_at"]
    assert step is not None
    assert plain["gradient_norm"][step - 1] > 10 * cliff["max_norm"]
    assert not gradients.inside(np.array(plain["path"][step]))
    assert clipped["thrown_at"] is None
    assert clipped["thrown_share"] == 0 < 0.5 < plain["thrown_share"]
    assert clipped["low_share"] > plain["low_share"]
    assert clipped["loss"][-1] < gradients.LOW == 0.01 < clipped["loss"][0]
    assert plain["low_share"] + plain["thrown_share"] <= 1
    jumps = np.linalg.norm(np.diff(clipped["path"], axis=0), axis=1)
    assert jumps.max() <= 0.2 * 0.3 * (1 + 1e-12)
    assert by_value["thrown_share"] == 0
    assert plain["low_share"] < by_value["low_share"] < clipped["low_share"]
    moved = np.diff(by_value["path"], axis=0)
    assert np.abs(moved).max() <= 0.2 * 0.3 * (1 + 1e-12)
    assert np.linalg.norm(moved, axis=1).max() > 0.2 * 0.3 * 1.3  # in another direction than the gradient


def test_an_infinite_gradient_is_skipped_or_clipped_by_value_and_lost_by_norm():
    """Both go on; the skipped step goes nowhere, and the one that is clipped by value as far as it may."""
    infinite = gradients.infinite_step(lr=0.2, max_norm=0.3, max_value=0.3, steps=40)
    at = infinite["step"]
    paths = {name: np.array(way["path"], float) for name, way in infinite["ways"].items()}
    np.testing.assert_array_equal(paths["by norm"][:at], paths["skipped"][:at])
    assert np.isnan(paths["by norm"][at:]).all()
    np.testing.assert_array_equal(paths["skipped"][at], paths["skipped"][at - 1])
    np.testing.assert_allclose(np.abs(np.diff(paths["by value"], axis=0)[at - 1]), 0.2 * 0.3)
    assert [way["skipped_steps"] for way in infinite["ways"].values()] == [0, 0, 1]
    assert len(gradients.finite(infinite["ways"]["by norm"]["path"])) == at


def test_sigmoids_lose_the_gradient_layer_by_layer_and_relus_do_not():
    """By factors, at the start; AdaGrad's first step has one length in all layers of one size."""
    runs = experiment("gradients")[1]["network"]["runs"]
    sigmoid, relu, adagrad = (
        np.array(runs[name]["gradient_norm"]) for name in ("sigmoid, sgd", "relu, sgd", "sigmoid, adagrad")
    )
    assert (sigmoid[:-1] < 0.5 * sigmoid[1:]).all()
    assert sigmoid[0] < 1e-3 * sigmoid[-1]
    assert relu.max() < 10 * relu.min()
    np.testing.assert_array_equal(sigmoid, adagrad)  # one start
    np.testing.assert_allclose(runs["sigmoid, sgd"]["first_step"], sigmoid, rtol=1e-5)
    between = np.array(runs["sigmoid, adagrad"]["first_step"])[1:-1]  # lr * g / |g| for each of 32 x 32 weights
    np.testing.assert_allclose(between, 32, rtol=0.01)
    assert runs["sigmoid, sgd"]["loss"][-1] == pytest.approx(np.log(10), abs=0.02)
    assert runs["relu, sgd"]["loss"][-1] < runs["relu, sgd"]["loss"][0]


@pytest.mark.parametrize(("name", "gain"), [("sigmoid, sgd", 1), ("sigmoid, adagrad", 1), ("relu, sgd", 2)])
def test_deep_networks_begin_as_they_should(name, gain):
    """Weights have the variance gain / inputs."""
    run = gradients.settings(0.1, 0.03)[name]
    x, y, _, _ = digits.load()
    params = next(gradients.train(run, x, y, layers=3, epochs=1, seed=0))
    assert params["w2"].var() == pytest.approx(gain / 32, rel=0.2)
    other = next(gradients.train(run, x, y, layers=3, epochs=1, seed=1))
    assert not np.array_equal(params["w2"], other["w2"])


def test_descents_that_both_leave_are_both_told():
    """In rows of their own, and in words."""
    numbers = {**experiment("gradients")[1], "cliff": gradients.descents(2.0, 0.5, 0.5, 300, 5, seed=0)}
    assert [way["thrown_at"] is None for way in numbers["cliff"]["ways"].values()] == [False, False, False]
    figure, axes = look.new_figure([["map", "norm"]])
    gradients.draw_cliff(axes, numbers["cliff"])
    figure.draw_without_rendering()
    plain, *clipped = (Text.get_window_extent(text) for text in axes["map"].texts[1:])  # without their arrows
    assert clipped[1].y1 <= clipped[0].y0 < clipped[0].y1 <= plain.y0
    assert gradients.report(numbers).count("is thrown off the map by step") == 3


def test_dead_units_are_counted():
    """Those whose output is nearly the same for all images."""
    run = gradients.Run(network.SIGMOID, 1.0, fastopt.SGD, 0.1)
    params = {"w1": np.array([[0.0, 1.0, 0.01]]), "b1": np.zeros(3), "w2": np.zeros((3, 10)), "b2": np.zeros(10)}
    assert gradients.dead_units(run, params, np.array([[0.0], [1.0]])) == [2]


def test_descent_that_overflows_is_told_and_fits_json():
    """A rate far too high."""
    numbers = gradients.descents(lr=1000.0, max_norm=1e9, max_value=1e9, steps=50, starts=2, seed=0)
    for way in numbers["ways"].values():
        assert way["thrown_at"] is not None
        assert all(value is None or np.isfinite(value) for value in way["loss"] + way["gradient_norm"])
