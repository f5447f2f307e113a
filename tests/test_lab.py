"""The parts of the lab: the network and its training, descent in a landscape, styles, and animation."""

import copy
import importlib
import inspect
import io
import json
from functools import partial
from itertools import combinations

import matplotlib.image
import numpy as np
import pytest
import tolerances
from lab_cases import FAST, experiment
from PIL import Image

import fastopt
from fastopt import cli, lab
from fastopt.lab import animation, descent, look, network, training
from fastopt.progress import _count, track
from fastopt.schedules import Plateau

FINITE_DIFFERENCE = 1e-6  # a step at which cancelled digits and curvature cost about as much, 1e-9 in all


def test_the_lab_has_a_test_of_every_experiment():
    """And a function of its name, whose arguments all have defaults."""
    assert FAST.keys() == lab.EXPERIMENTS.keys()
    for name, each in lab.EXPERIMENTS.items():
        assert getattr(lab, name) is each.run
        assert all(p.default is not p.empty for p in inspect.signature(each.run).parameters.values())


@pytest.mark.parametrize("name", FAST)
def test_an_experiment_says_three_things_with_numbers(name):
    """After an empty line, each true to numbers that survive JSON; the picture opens, with the size it should have."""
    figure, numbers = experiment(name)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    *_, empty, first, second, third = lab.EXPERIMENTS[name].report(numbers).splitlines()
    assert empty == ""
    for line in (first, second, third):
        assert any(character.isdigit() for character in line), line
        assert line.endswith(".")
    assert figure.get_figwidth() == look.WIDTH
    assert figure.dpi == look.DPI


@pytest.mark.parametrize("name", FAST)
def test_nothing_in_a_picture_is_covered_or_cut_off(name):
    """Labels, legends and texts lie within the picture, and no two of the labels and legends around panels overlap."""
    figure, _ = experiment(name)
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for axes in figure.axes for text in labels(axes)]
    boxes += [("legend", legend.get_window_extent()) for legend in figure.legends]
    texts = [text for axes in figure.axes if axes.name == "rectilinear" for text in axes.texts]
    for i, text in enumerate(texts):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert not any(overlap(box, other.get_window_extent()) for other in texts[:i]), text
    page = figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1, text
        assert [other for other, its_box in boxes[:i] if overlap(box, its_box)] == [], text


def labels(axes):
    """Return the texts around a flat panel that are drawn: title, names of axes, numbers within their limits."""
    if not axes.axison or axes.name != "rectilinear":
        return []
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += [tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_visible() and text.get_text()]


def test_a_notebook_shows_the_figure():
    """As the value of a cell: a PNG as wide as a page."""
    png = experiment("bounce")[0]._repr_png_()
    assert Image.open(io.BytesIO(png)).size[0] == look.WIDTH * look.DPI / 2


def overlap(one, other):
    """Say whether two boxes share more than a pixel."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > 1 and height > 1


def linear(colour):
    """The light of a colour's red, green and blue, as sRGB defines it."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def relative_luminance(colour):
    """How bright a colour is, as WCAG 2 defines it."""
    return np.dot(linear(colour), (0.2126, 0.7152, 0.0722))


def test_rules_and_schedules_have_colours_of_their_own_that_are_seen():
    """Different ones, each dark enough on white for a line."""
    assert len({look.RULE_LINES[rule] for rule in training.OPTIMIZERS}) == len(training.OPTIMIZERS)
    assert len({look.SCHEDULE_COLOURS[name] for name in training.SCHEDULES}) == len(training.SCHEDULES)
    colours = (*look.PALETTE, *look.SCHEDULE_PALETTE)
    assert len(set(colours)) == len(colours)
    assert all(relative_luminance(colour) < 0.5 for colour in colours)


# How linear red, green and blue are seen without cones of one kind: Machado, Oliveira and Fernandes 2009, severity 1.
SEEN = {
    "by all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def in_lab(colour, seen):
    """The CIE L*a*b* of a colour, as it is seen; distances are about as large as they look."""
    light = np.clip(seen @ linear(colour), 0, 1)
    x, y, z = np.cbrt(TO_XYZ @ light / np.sum(TO_XYZ, axis=1))  # dark ones are a little too far apart
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("palette", [look.PALETTE, look.SCHEDULE_PALETTE], ids=["rules", "schedules"])
def test_colour_blind_people_can_tell_the_colours_apart(palette, seen):
    """From each other, and from white: 2 is what a trained eye just sees, side by side."""
    points = [in_lab(colour, np.array(SEEN[seen])) for colour in ("#FFFFFF", *palette)]
    assert min(np.linalg.norm(one - other) for one, other in combinations(points, 2)) > 15


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_of_any_length_are_in_the_picture(epochs):
    """None is cut off, a single point is seen, and both axes have numbers."""
    figure, panels = look.new_figure([["loss", "other"]])
    axes = panels["loss"]
    curves = {rule: list(np.geomspace(0.7, 0.3, epochs)) for rule in look.RULE_LINES}
    for rule, curve in curves.items():
        look.draw_rule(axes, curve, rule)
    look.label_epochs(axes)
    look.use_log_scale(axes)
    look.add_legend(figure, axes)
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    assert low < curves["sgd"][-1] <= curves["sgd"][0] < high
    assert any(low < tick < high for tick in axes.get_yticks())
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == len(curves)
    assert all((line.get_marker() == "o") == (epochs == 1) for line in axes.lines)


def test_a_band_lies_around_its_line():
    """At each epoch."""
    _, panels = look.new_figure([["band"]])
    look.draw_band(panels["band"], np.array([2, 2, 3]), np.array([1, 2, 1]), np.array([3, 2, 5]), "name", "#000000")
    (line,) = panels["band"].lines
    assert line.get_xydata().tolist() == [[1, 2], [2, 2], [3, 3]]
    (band,) = panels["band"].collections
    edge = band.get_paths()[0].vertices
    for epoch, (low, high) in enumerate([(1, 3), (2, 2), (1, 5)], start=1):
        heights = edge[edge[:, 0] == epoch][:, 1]
        assert (heights.min(), heights.max()) == (low, high)


def test_the_deepest_point_of_a_map_is_its_darkest():
    """Where a smooth loss is least; and the points are where they belong."""
    _, panels = look.new_figure([["map"]])
    look.draw_landscape(panels["map"], lambda p: (p[..., 0] - 1) ** 2 + 3 * (p[..., 1] + 0.5) ** 2, (-2, 2), (-1, 1))
    (image,) = panels["map"].images
    brightness = np.asarray(image.get_array())[..., :3].sum(axis=-1)
    row, column = np.unravel_index(brightness.argmin(), brightness.shape)
    assert -2 + 4 * column / (look.GRID - 1) == pytest.approx(1, abs=0.1)
    assert -1 + 2 * row / (look.GRID - 1) == pytest.approx(-0.5, abs=0.1)
    assert tuple(image.get_extent()) == (-2, 2, -1, 1)


def test_a_gif_grows_and_the_figure_stays(tmp_path):
    """The last frame has all of the picture, the first one less; the figure keeps its lines, size and canvas."""
    figure, panels = look.new_figure([["curve", "path"]])
    look.draw_curve(panels["curve"], np.arange(100.0), "sgd", look.PALETTE[1])
    look.draw_path(panels["path"], np.random.default_rng(0).random((100, 2)), "sgd", look.PALETTE[2])
    lines = [line for axes in figure.axes for line in axes.lines]
    before, canvas = [line.get_xydata().copy() for line in lines], figure.canvas
    lab.animate(figure, tmp_path / "curve.gif")
    for line, points in zip(lines, before, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), points)
        assert line.get_visible()
    assert figure.canvas is canvas
    assert figure.dpi == look.DPI
    with Image.open(tmp_path / "curve.gif") as gif:
        assert gif.size == (900, 400)
        assert gif.n_frames == animation.FRAMES
        coloured = []
        for frame in (0, animation.FRAMES // 2, animation.FRAMES - 1):
            gif.seek(frame)
            pixels = np.asarray(gif.convert("RGB"), int)
            coloured.append(int((np.ptp(pixels, axis=-1) > 100).sum()))
    assert 0 < coloured[0] < coloured[1] < coloured[2]


def test_motion_has_one_clock_in_a_panel_and_notes_at_the_end():
    """A short curve is complete when a long one has come as far, and what says how it ends is seen last."""
    figure, panels = look.new_figure([["panel"]])
    (short,) = panels["panel"].plot(np.arange(40.0))
    (long,) = panels["panel"].plot(np.arange(100.0))
    note = panels["panel"].text(0, 0, "thrown out", gid=look.AT_THE_END)
    parts = animation.growing(figure)
    for share, lengths in ((0.2, (20, 20)), (0.5, (40, 50)), (1.0, (40, 100))):
        for part in parts:
            part.grow(share)
        assert (len(short.get_xdata()), len(long.get_xdata())) == lengths
        assert note.get_visible() == (share == 1)


def test_a_gif_that_fails_leaves_the_figure(tmp_path):
    """As it was."""
    figure, panels = look.new_figure([["curve"]])
    look.draw_curve(panels["curve"], [1.0, 2.0, 3.0], "sgd", look.PALETTE[1])
    canvas = figure.canvas
    with pytest.raises(OSError, match="no"):
        lab.animate(figure, tmp_path / "no" / "folder.gif")
    assert figure.canvas is canvas
    assert figure.dpi == look.DPI
    assert len(panels["curve"].lines[0].get_xdata()) == 3


@pytest.mark.parametrize(
    ("momentum", "make"),
    [(0.0, partial(fastopt.SGD, lr=0.1)), (0.9, partial(fastopt.SGD, lr=0.1, momentum=0.9))],
)
def test_descent_is_the_rule(momentum, make):
    """Step by step, and many points at once are so many descents."""
    scale = np.array([1.0, 4.0])
    starts = np.random.default_rng(0).standard_normal((5, 2))
    path = descent.descend(make, lambda p: scale * p, starts, 30)
    assert path.shape == (31, 5, 2)
    for i, start in enumerate(starts):
        np.testing.assert_array_equal(path[:, i], descent.descend(make, lambda p: scale * p, start, 30))
    point, velocity = starts, 0.0
    for step in range(31):
        tolerances.assert_close(path[step], point, tolerances.TRAJECTORY)
        velocity = momentum * velocity + scale * point
        point = point - 0.1 * velocity


@pytest.mark.parametrize("activation", ["RELU", "SIGMOID"])
@pytest.mark.parametrize("objective", ["cross_entropy", "squared_error"])
def test_gradients_are_the_finite_differences_of_the_loss(activation, objective):
    """In float64, for every parameter of a network of three layers."""
    activation, objective = getattr(network, activation), getattr(network, objective)
    rng = np.random.default_rng(0)
    outputs = 4 if objective is network.cross_entropy else 1
    params = network.new_parameters(rng, sizes=(5, 7, 6, outputs), dtype=np.float64)
    x = rng.standard_normal((9, 5))
    y = rng.integers(0, 4, 9) if outputs == 4 else rng.standard_normal(9)
    grads = {name: np.full_like(p, np.nan) for name, p in params.items()}
    loss = partial(network.loss, params, x, y, objective, activation)
    assert network.loss_and_gradients(params, x, y, grads, objective, activation) == pytest.approx(loss(), rel=1e-12)
    for name, p in params.items():
        for index in np.ndindex(p.shape):
            kept = p[index]
            p[index] = kept + FINITE_DIFFERENCE
            above = loss()
            p[index] = kept - FINITE_DIFFERENCE
            below = loss()
            p[index] = kept
            assert grads[name][index] == pytest.approx((above - below) / (2 * FINITE_DIFFERENCE), abs=1e-8)


def test_scores_of_any_size_do_not_overflow():
    """The softmax of large scores is as good as that of small ones, and a sigmoid has no limits."""
    params = {"w1": np.full((2, 3), 1e4, np.float32), "b1": np.zeros(3, np.float32)}
    assert network.loss(params, np.ones((1, 2), np.float32), np.array([1])) == pytest.approx(np.log(3), rel=1e-6)
    np.testing.assert_array_equal(network.SIGMOID.value(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])


def test_training_takes_every_input_once_in_an_epoch():
    """In batches of the size asked for, the last one being what is left; and stops after its epochs."""
    rng = np.random.default_rng(0)
    seen = []

    def objective(outputs, y):
        seen.append(y)
        return network.squared_error(outputs, y)

    params = network.new_parameters(rng, sizes=(3, 1), dtype=np.float64)
    optimizer = fastopt.SGD(params, lr=0.1)
    y = np.arange(10.0)
    epochs = training.train(params, optimizer, rng.random((10, 3)), y, epochs=2, batch=4, rng=rng, objective=objective)
    assert list(epochs) == [1, 2]
    assert [len(batch) for batch in seen] == 2 * [4, 4, 2]
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert sorted(first) == sorted(second) == sorted(y)
    assert list(first) != list(second)


def test_schedules_to_compare_begin_alike_and_end_low():
    """The first rate is lr but for the one that warms up, and the last one lower but for the constant one."""
    for name, make in training.SCHEDULES.items():
        schedule = make(0.5, 30, 45)
        if name == "one-cycle":
            assert max(schedule(np.arange(30 * 45))) == pytest.approx(0.5)
        else:
            assert schedule(0) == 0.5
        if isinstance(schedule, Plateau):
            for _ in range(30):
                schedule.update(1.0)
        end = schedule(30 * 45 - 1)
        assert end == 0.5 if name == "constant" else end <= 0.01


def test_progress_yields_what_it_is_given(capsys):
    """With rich and without, and says how far it came."""
    assert list(track(iter("abc"), "doing", total=3)) == ["a", "b", "c"]
    assert list(_count(iter("abc"), "doing", 3)) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert "doing 3/3" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("landscape", "housing") else pytest.mark.exhaustive) for name in FAST],
)
def test_the_command_writes_picture_numbers_and_motion(name, tmp_path, capsys, monkeypatch):
    """With the options of the function, by whose seed numbers are the same; and prints what the report says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(animation, "FRAMES", 5)
    words = []
    for option, value in FAST[name].items():
        words += [f"--{option.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    assert cli.main(["lab", name, "--out", "new/folder", "--animate", *words]) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "new/folder" / f"{name}.json").read_text())
    _, again = experiment(name)
    assert numbers == again
    assert lab.EXPERIMENTS[name].report(numbers) in printed
    picture = matplotlib.image.imread(tmp_path / "new/folder" / f"{name}.png")
    assert picture.shape[1] == look.WIDTH * look.DPI
    with Image.open(tmp_path / "new/folder" / f"{name}.gif") as gif:
        assert gif.n_frames == 5
        assert gif.size[0] == look.WIDTH * animation.GIF_DPI


def test_all_experiments_in_one_command(tmp_path, capsys, monkeypatch):
    """Each is run with what it takes of seed and csv; one that fails is named, and the others run."""
    taken = {}
    figure, _ = look.new_figure([["panel"]])

    def stand_in(name, each):
        def run(**keywords):
            taken[name] = keywords
            if name == "digits":
                raise OSError("no digits today")
            return figure, {"number": 1}

        run.__signature__, run.__doc__ = inspect.signature(each.run), each.run.__doc__
        return lab.Experiment(each.description, run, lambda numbers: f"{name} says {numbers['number']}")

    experiments = {name: stand_in(name, each) for name, each in lab.EXPERIMENTS.items()}
    monkeypatch.setattr(lab, "EXPERIMENTS", experiments)
    assert cli.main(["lab", "all", "--out", str(tmp_path), "--seed", "7", "--csv", "houses.csv"]) == 1
    captured = capsys.readouterr()
    assert "digits: no digits today" in captured.err
    assert taken.keys() == experiments.keys()
    assert taken["housing"] == {"csv": "houses.csv", "seed": 7}
    assert taken["schedules"] == {}
    assert all(taken[name] == {"seed": 7} for name in ("landscape", "bounce", "sparse", "digits", "gradients"))
    for name in experiments.keys() - {"digits"}:
        assert f"{name} says 1" in captured.out
        assert (tmp_path / f"{name}.png").exists()


WRONG = [
    (name, option, value)
    for name, each in lab.EXPERIMENTS.items()
    for option, parameter in inspect.signature(each.run).parameters.items()
    if isinstance(parameter.default, (int, float))
    for value in (-1, float("nan") if isinstance(parameter.default, float) else 1.5, "many", None)
]
WRONG += [("landscape", "start", value) for value in (None, 1.0, (1.0,), (1.0, 2.0, 3.0), ("a", "b"), (1e9, 0.0))]
WRONG += [("housing", "csv", value) for value in (5, ["houses.csv"])]


@pytest.mark.parametrize(("name", "option", "value"), WRONG)
def test_wrong_arguments_are_named(name, option, value, monkeypatch):
    """Before anything is trained."""
    for function in ("descend", "train"):
        for module in ("descent", "training", "landscape", "bounce", "sparse", "digits", "housing", "gradients"):
            monkeypatch.delattr(importlib.import_module(f"fastopt.lab.{module}"), function, raising=False)
    with pytest.raises((TypeError, ValueError), match=rf"\b{option}(\[\d\])? must be"):
        lab.EXPERIMENTS[name].run(**{option: value})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "landscape" else pytest.mark.exhaustive)
        for name in FAST
        if name != "schedules"
    ],
)
def test_another_seed_makes_other_numbers(name):
    """In all that is said, beside the seed itself; the same seed makes the same numbers, for the command above."""
    ours, other = experiment(name)[1], lab.EXPERIMENTS[name].run(**{**FAST[name], "seed": 12})[1]
    seedless = [{key: value for key, value in copy.deepcopy(each).items() if key != "seed"} for each in (ours, other)]
    for each in seedless:
        each.get("cliff", {}).pop("seed", None)
    assert seedless[0] != seedless[1]


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch, capsys):
    """Before an experiment has taken its time."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.delattr(importlib.import_module("fastopt.lab.bounce"), "paths")
    assert cli.main(["lab", "bounce", "--out", str(tmp_path)]) == 1
    assert "--out: nothing can be written" in capsys.readouterr().err


def test_a_list_is_no_run(capsys):
    """Whatever follows."""
    assert cli.main(["lab", "--list", "bounce"]) == 0
    assert "sparse" in capsys.readouterr().out


def test_options_are_described(capsys):
    """By what the docstring says."""
    with pytest.raises(SystemExit):
        cli.main(["lab", "gradients", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "The norm to which gradients are clipped; above 0. (float, default 0.3)" in printed
    for each in lab.EXPERIMENTS.values():
        for keyword, parameter in inspect.signature(each.run).parameters.items():
            said = cli.described(each.run, keyword)
            assert parameter.default is None or str(parameter.default) in said


def test_what_is_best_is_finite():
    """A loss that is NaN or infinite is the worst, wherever it stands."""
    losses = {"a": float("nan"), "b": 2.0, "c": 1.0, "d": float("inf"), "e": float("-inf")}
    assert training.best(losses, losses.__getitem__) == "c"


def test_the_first_epoch_is_counted_from_1():
    """None where none is reached."""
    assert training.first_epoch([3.0, 2.0, 1.0], lambda value: value < 2.5) == 2
    assert training.first_epoch([3.0, 2.0, 1.0], lambda value: value < 0) is None


def test_a_gif_keeps_its_colours(tmp_path):
    """White is white, and each thin line has a colour of its own."""
    figure, panels = look.new_figure([["panel"]])
    for i, colour in enumerate((*look.PALETTE, *look.SCHEDULE_PALETTE)):
        panels["panel"].plot([0, 0.5, 1], [i, i, i], color=colour, linewidth=1)
    lab.animate(figure, tmp_path / "lines.gif")
    with Image.open(tmp_path / "lines.gif") as gif:
        gif.seek(gif.n_frames - 1)
        colours = {colour: count for count, colour in gif.convert("RGB").getcolors(100_000)}
    assert colours[255, 255, 255] > 0.8 * 900 * 400
    for colour in (*look.PALETTE, *look.SCHEDULE_PALETTE):
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in colours
