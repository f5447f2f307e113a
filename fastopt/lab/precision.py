"""Parameters and states in few bits: what stalls when rounded to nearest, and how far the loss is from float32's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import Count
from ..extras import require
from ..progress import track
from ..schedules import Constant, Cosine, Schedule
from . import look, network
from .digits import BATCH as DIGITS_BATCH
from .digits import LEARNING_RATES as DIGITS_RATES
from .digits import load as load_digits
from .housing import BATCH as HOUSING_BATCH
from .housing import SIZES as HOUSING_SIZES
from .housing import load as load_houses
from .housing import split
from .network import Array
from .storages import BASE, SQUARES, STORAGES, InNumpy, Measured, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RULES = tuple(SQUARES)
SLOW = "momentum"  # the rule that trains at a fraction of its rate as well, where bfloat16 rounds most steps away
FRACTION = 0.1
# The best of a few, by the loss after 15 epochs; momentum's is half of that, at which one start of five is so near to
# diverging that any rounding may decide.
HOUSING_RATES = {"momentum": 0.05, "adagrad": 0.1, "adam": 0.01}
MARKERS = dict(zip(RULES, "os^", strict=True))
WIDE, NARROW = 4.5, 1.6  # float32's line lies below the others, which may cover it; dashes above what is solid
RANGE = 4.0  # a panel whose values differ by more has a logarithmic axis

SLOWLY = "slowly"  # the key of trainings at the low rate

Key = tuple[str, str]  # of a training, and a rule


def lines_of(storages: Iterable[str]) -> dict[str, tuple[str, look.Dash]]:
    """Return a colour and a kind of line for each storage; float32's is pale."""
    others = (name for name in storages if name != BASE)
    return {BASE: ("0.6", "-"), **dict(zip(others, zip(cycle(look.PALETTE), cycle(look.DASHES)), strict=False))}


LINES = lines_of(STORAGES)


def of_digits(csv: str | os.PathLike[str] | None) -> Training:
    """Return the training on handwritten digits, with the rates of `fastopt lab digits`."""
    x, y, _, _ = load_digits()
    return InNumpy(x, y, (64, 32, 10), DIGITS_BATCH, network.cross_entropy, DIGITS_RATES)


def of_houses(csv: str | os.PathLike[str] | None) -> Training:
    """Return the training on house prices; those of the training part."""
    data = split(load_houses(csv))
    return InNumpy(data.x, data.y, HOUSING_SIZES, HOUSING_BATCH, network.squared_error, HOUSING_RATES)


def of_text(csv: str | os.PathLike[str] | None) -> Training:
    """Return the training on Python's own help."""
    require("torch", "torch")
    from .text import text  # imports torch

    return text()


TRAININGS: dict[str, Callable[[str | os.PathLike[str] | None], Training]] = {
    "digits": of_digits,
    "housing": of_houses,
    "text": of_text,
}


def precision(
    trainings: str = "digits",
    storages: str | None = None,
    csv: str | os.PathLike[str] | None = None,
    epochs: int = 30,
    seeds: int = 5,
    seed: int = 0,
) -> tuple[Figure, dict[str, Any]]:
    """Train with parameters and states in several storages, by momentum, AdaGrad and Adam, and compare with float32.

    All trainings of a seed begin with the same parameters and see the same batches. Networks compute in float32,
    whatever the parameters are stored in. The rate falls by a cosine; momentum is trained a second time at a constant
    rate, a tenth as high. States are in the storage whatever their size: ``min_quantized_size`` is 0.

    Parameters
    ----------
    trainings : str, default "digits"
        What to train on, separated by commas: ``"digits"``, ``"housing"`` (a regression on house prices), ``"text"``
        (a GPT of two layers that learns the characters of Python's own help; it needs torch). The first one is drawn by
        epoch.
    storages : str, optional
        Those to compare with float32, separated by commas, as ``"bf16 states,bf16 parameters"``; by default all.
    csv : str or path, optional
        The file of house prices, as of `fastopt lab housing`. Without it, scikit-learn downloads the data.
    epochs : int, default 30
        The number of passes over digits and houses, 1 or more; of the text, an epoch is 12 batches.
    seeds : int, default 5
        The number of trainings by each rule with each storage, 1 or more.
    seed : int, default 0
        The first seed of the start and the batches; each further training has the next one.

    Returns
    -------
    figure : matplotlib.figure.Figure
        The loss by epoch at the low rate, for each dtype of parameters; the mean of AdaGrad's sum and of Adam's average
        of squares by epoch, for each kind of states; for each training the final loss over bytes per parameter.
    numbers : dict
        ``{"slow": {storage: {...}}, "trainings": {training: {rule: {storage: {"loss": [...], "final": [...], "squares":
        [...], "bytes": ...}}}}, ...}``. Loss and squares, the mean of the state that has squares of gradients, have a
        number after each epoch, the mean over the seeds; final has the last loss of each seed. Losses are those of the
        training data: cross-entropy in nats, or mean squared error. Bytes per parameter are all that `memory` counts:
        of parameter, gradient and states. What is not finite is None.

    Raises
    ------
    ImportError
        If matplotlib, ml_dtypes or scikit-learn is not installed, which the extra ``fastopt[lab]`` has; or torch, for
        the text, which ``fastopt[torch]`` has.
    OSError
        If there is no such file, or the house prices cannot be downloaded.
    TypeError, ValueError
        If an argument is out of range, or the file does not fit.
    """
    chosen = words("trainings", trainings, TRAININGS)
    compared = [BASE, *(name for name in words("storages", storages, STORAGES) if name != BASE)]
    epochs = Count(1, 2**20).check("epochs", epochs)
    seeds = Count(1, 2**20).check("seeds", seeds)
    seed = Count().check("seed", seed)
    figure, axes = new_figure(chosen)
    prepared = {name: TRAININGS[name](csv) for name in chosen}

    tasks = {(name, rule): (each, falling(each, rule, epochs)) for name, each in prepared.items() for rule in RULES}
    first = prepared[chosen[0]]
    tasks[SLOWLY, SLOW] = first, Constant(FRACTION * first.rates[SLOW])
    found = results(tasks, compared, epochs, range(seed, seed + seeds))
    numbers = {
        "epochs": epochs, "seed": seed, "seeds": seeds,
        "lr": {name: {rule: each.rates[rule] for rule in RULES} for name, each in prepared.items()},
        "slow": found[SLOWLY, SLOW],
        "trainings": {name: {rule: found[name, rule] for rule in RULES} for name in chosen},
    }  # fmt: skip
    draw(figure, axes, numbers)
    return figure, numbers


def words(name: str, value: str | None, known: Iterable[str]) -> list[str]:
    """Return the names in a list that commas separate, each once; all known ones for None.

    Raises
    ------
    TypeError, ValueError
        If it is no string, or a name is not known.
    """
    if value is None:
        return list(known)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string of names, separated by commas, not {value!r:.40}")
    found = list(dict.fromkeys(word.strip() for word in value.split(",")))
    if unknown := [word for word in found if word not in known]:
        raise ValueError(f"{name}: {unknown[0]!r:.40} is not among {', '.join(known)}")
    return found


def falling(training: Training, rule: str, epochs: int) -> Schedule:
    """Return a rule's rate, which falls by a cosine to 0."""
    return Cosine(training.rates[rule], epochs * training.steps)


def results(
    tasks: Mapping[Key, tuple[Training, Schedule]], storages: Sequence[str], epochs: int, seeds: Sequence[int]
) -> dict[Key, dict[str, Any]]:
    """Train with each storage and seed, and return the numbers of each storage."""
    runs: dict[tuple[Key, str], list[list[Measured]]] = {(key, storage): [] for key in tasks for storage in storages}
    for (key, storage), seed in track([(each, seed) for seed in seeds for each in runs], "training"):
        training, lr = tasks[key]
        runs[key, storage].append([*training.train(key[1], STORAGES[storage], lr, epochs, seed)])
    return {key: {storage: summary(runs[key, storage]) for storage in storages} for key in tasks}


def summary(runs: Sequence[Sequence[Measured]]) -> dict[str, Any]:
    """Return the numbers of one storage, given what was measured with each seed after each epoch."""
    losses = np.array([[epoch.loss for epoch in run] for run in runs])
    squares = None if runs[0][0].squares is None else np.array([[epoch.squares for epoch in run] for run in runs])
    return {
        "loss": plain(losses.mean(axis=0)),
        "final": plain(losses[:, -1]),
        "squares": None if squares is None else plain(squares.mean(axis=0)),
        "bytes": runs[0][-1].bytes,
    }


def plain(values: Array) -> list[float | None]:
    """Return numbers as JSON has them: None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def array(values: Sequence[float | None]) -> Array:
    """Return the numbers again, NaN for None."""
    return np.array(values, np.float64)


def spread(final: Sequence[float | None]) -> tuple[float, float]:
    """Return mean and standard deviation over the seeds; NaN if one of them diverged."""
    return float(np.mean(array(final))), float(np.std(array(final)))


def change(final: Sequence[float | None], base: Sequence[float | None]) -> float:
    """Return by which share the mean differs from float32's; NaN if a training diverged."""
    return spread(final)[0] / spread(base)[0] - 1


def verdict(final: Sequence[float | None], base: Sequence[float | None], within: float) -> str:
    """Say in a word or two how the mean lies to float32's.

    Parameters
    ----------
    final, base : list of float
        The last losses of each seed, with a storage and with float32.
    within : float
        The share by which the mean may differ.
    """
    share = change(final, base)
    mean, deviation = spread(base)
    if math.isnan(share):
        return "diverges"
    if abs(share) <= within:
        return f"within {within:.1%}"
    if abs(share) * mean <= deviation:
        return "within the spread"
    return "lower" if share < 0 else "higher"


def is_near(verdict: str) -> bool:
    """Say whether a verdict is that of a mean near enough to float32's."""
    return verdict.startswith("within")


def new_figure(trainings: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure: three panels by epoch, and one for each training."""
    panels = ["slow", "adagrad", "adam", *trainings]
    panels += ["."] * (len(panels) % 2)
    return look.new_figure([panels[i : i + 2] for i in range(0, len(panels), 2)], height=1 + 1.8 * len(panels))


def draw(figure: Figure, axes: dict[str, Axes], numbers: dict[str, Any]) -> None:
    """Draw all panels."""
    first, trainings = next(iter(numbers["trainings"].items()))
    slow = slowly(numbers)
    draw_curves(axes["slow"], slow, f"training loss, {first}", f"parameters; {SLOW} at a tenth of its rate")
    scale(axes["slow"], array([loss for losses in slow.values() for loss in losses]))
    for rule, label in (("adagrad", "sum of squares, mean"), ("adam", "average of squares, mean")):
        squares = {name: each["squares"] for name, each in of_float32_parameters(trainings[rule]).items()}
        draw_curves(axes[rule], squares, f"{rule}'s {label}", f"states; {rule}, {first}")
        axes[rule].ticklabel_format(axis="y", scilimits=(-2, 3))
        axes[rule].set_ylim(bottom=0)
    for name, each in numbers["trainings"].items():
        draw_bytes(axes[name], each, name)
    look.add_legend(figure, axes[first], in_a_row=3)


def slowly(numbers: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Return the losses at the low rate, by epoch, with float32 and each storage whose parameters are of fewer bits."""
    slow = numbers["slow"]
    return {name: slow[name]["loss"] for name in slow if name == BASE or STORAGES[name].parameters != "float32"}


def of_float32_parameters(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the storages whose parameters are float32."""
    return {name: each for name, each in results.items() if STORAGES[name].parameters == "float32"}


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[float | None]], label: str, title: str) -> None:
    """Draw a curve for each storage, by epoch."""
    for name, values in curves.items():
        marker = "o" if len(values) == 1 else None  # a single point has no line
        axes.plot(range(1, 1 + len(values)), array(values), marker=marker, **line_of(name))
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=look.SMALL)
    look.label_epochs(axes)


def line_of(storage: str) -> dict[str, Any]:
    """Return colour, kind, width and order of a storage's line."""
    colour, dash = LINES[storage]
    if storage == BASE:
        return {"color": colour, "linestyle": dash, "linewidth": WIDE, "zorder": 2}
    return {"color": colour, "linestyle": dash, "linewidth": NARROW, "zorder": 3 + look.DASHES.index(dash)}


def draw_bytes(axes: Axes, results: Mapping[str, Mapping[str, Any]], training: str) -> None:
    """Draw the final loss over bytes per parameter: mean and deviation for each rule and storage."""
    points = [(rule, name, each) for rule, storages in results.items() for name, each in storages.items()]
    for rule, name, each in points:
        mean, deviation = spread(each["final"])
        axes.errorbar(
            each["bytes"], mean, deviation, color=LINES[name][0], marker=MARKERS[rule], markersize=7, capsize=3,
            elinewidth=1, linestyle="",
        )  # fmt: skip
    scale(axes, np.array([spread(each["final"])[0] for _, _, each in points]))
    for name in results[RULES[0]]:
        axes.plot([], [], label=name, **line_of(name))
    marks = [axes.plot([], [], color="0.4", marker=MARKERS[rule], linestyle="", label=rule)[0] for rule in results]
    axes.legend(handles=marks, frameon=False, fontsize=look.SMALL)
    for mark in marks:
        mark.set_label(f"_{mark.get_label()}")  # the figure's legend is of storages
    axes.set(xlabel="bytes per parameter, gradient included", ylabel=f"final training loss, {training}")
    axes.set_title("mean ± deviation of the seeds", fontsize=look.SMALL)
    axes.margins(x=0.06)


def scale(axes: Axes, values: Array) -> None:
    """Make the vertical axis logarithmic if values differ much."""
    seen = values[np.isfinite(values)]
    if seen.size and seen.max() > RANGE * seen.min() > 0:
        look.use_log_scale(axes)


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in a table for each training, and three lines."""
    lines = []
    for name, results in numbers["trainings"].items():
        lines += [f"{name}: final training loss, mean ± deviation of {numbers['seeds']} seeds"]
        lines += [f"{'rule':9} {'storage':24} {'bytes':>6} {'loss':>20} {'change':>8}"]
        lines += [line(rule, storage, results[rule]) for rule in results for storage in results[rule]]
        lines += [""]
    first, results = next(iter(numbers["trainings"].items()))
    ends = ", ".join(f"{written(losses[-1])} ({name})" for name, losses in slowly(numbers).items())
    lines += [
        f"With {first}, at a tenth of {SLOW}'s rate, the loss after {numbers['epochs']} epochs is {ends}.",
        f"Squares after {numbers['epochs']} epochs, as a share of float32's: {stalled(results)}.",
        f"{judged(numbers['trainings'])}.",
    ]
    return "\n".join(lines)


def written(value: float | None) -> str:
    """Write a loss."""
    return "not finite" if value is None else f"{value:.4g}"


def stalled(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how the last squares of AdaGrad and Adam compare with float32's, for each kind of states."""
    shares = []
    for rule in ("adagrad", "adam"):
        squares = {name: array(each["squares"])[-1] for name, each in of_float32_parameters(results[rule]).items()}
        shares += [f"{rule} {value / squares[BASE]:.0%} ({name})" for name, value in squares.items() if name != BASE]
    return ", ".join(shares) or "none compared"


def judged(trainings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Count the means that are as near to float32's as they should be, and name the others."""
    found: dict[str, list[str]] = {}
    for training, results in trainings.items():
        for rule, storages in results.items():
            for name, each in storages.items():
                if name != BASE:
                    how = verdict(each["final"], storages[BASE]["final"], STORAGES[name].within)
                    found.setdefault(how, []).append(f"{training}, {rule}, {name}")
    near = [f"{len(names)} {how}" for how, names in found.items() if is_near(how)]
    others = [f"{how}: {'; '.join(names)}" for how, names in found.items() if not is_near(how)]
    compared = sum(map(len, found.values()))
    return ". ".join([f"Of {compared} means, beside float32's, {', '.join(near) or 'none near'}", *others])


def line(rule: str, storage: str, results: Mapping[str, Any]) -> str:
    """Return a line of a table."""
    final, base = (results[name]["final"] for name in (storage, BASE))
    mean, deviation = spread(final)
    start = f"{rule:9} {storage:24} {results[storage]['bytes']:>6.3g} {f'{mean:.5f} ± {deviation:.5f}':>20}"
    if storage == BASE:
        return start
    return f"{start} {change(final, base):>+8.2%}  {verdict(final, base, STORAGES[storage].within)}"
