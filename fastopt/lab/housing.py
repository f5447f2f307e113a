"""House prices in California: a regression by a network of three layers, with Nesterov and every schedule."""

from __future__ import annotations

import csv as csv_module
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import Count
from ..extras import require
from ..plateau import Plateau
from ..progress import track
from . import look, network, training
from .network import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = (8, 64, 32, 1)
BATCH = 64
TARGET = "median_house_value"
COLUMNS = (
    "median_income", "housing_median_age", "total_rooms", "total_bedrooms", "population", "households", "latitude",
    "longitude", TARGET,
)  # fmt: skip
FEATURES = (
    "median income", "age of the houses", "rooms per household", "bedrooms per household", "population",
    "people per household", "latitude", "longitude",
)  # fmt: skip
LARGEST = 1e12  # larger numbers in a file are mistakes
TEST = 0.2  # the test part's share of all rows
VALIDATION = 0.1  # the validation part's share of the others
FEWEST = 50  # rows
LIMIT = 4.0  # standard deviations: districts of prisons and ships have hundreds of people in a household
DOLLARS = 100_000  # the unit of prices
LEARNING_RATES = {  # chosen by `tune`
    "constant": 0.03,
    "exponential": 0.03,
    "step": 0.03,
    "cosine": 0.03,
    "plateau": 0.03,
    "linear": 0.03,
    "one-cycle": 0.1,
}


@dataclass(frozen=True)
class Houses:
    """Districts: eight features of each, NaN if missing, and the median price of a house."""

    source: str
    x: Array  # shape (n, 8)
    y: Array  # shape (n,), in units of 100,000 dollars
    missing: int  # missing numbers in the source
    without_price: int = 0  # rows left out


@dataclass(frozen=True)
class Split:
    """The districts in three parts, standardised by the training part, with missing numbers filled in."""

    x: Array
    y: Array
    x_validation: Array
    y_validation: Array
    x_test: Array
    y_test: Array
    scale: float  # of y: one standard deviation, in units of 100,000 dollars


def load(csv: str | os.PathLike[str] | None) -> Houses:
    """Load the districts of the census of 1990 from a file, or let scikit-learn download them.

    Raises
    ------
    OSError
        If there is no such file, or the data cannot be downloaded.
    ValueError
        If the file lacks a column or has too few rows, or a field is not a number.
    """
    return fetched() if csv is None else read(Path(csv))


def fetched() -> Houses:
    """Return scikit-learn's data, which it downloads once."""
    datasets = require("sklearn.datasets", "lab")
    try:
        x, y = datasets.fetch_california_housing(return_X_y=True)
    except OSError as error:
        raise OSError(
            "the housing data are not on this machine and could not be fetched: --csv FILE takes a file with the "
            f"columns {', '.join(COLUMNS)} ({error})"
        ) from error
    return Houses("sklearn.datasets.fetch_california_housing", x, y, int(np.isnan(x).sum()))


def read(path: Path) -> Houses:
    """Read a file whose first line has the names, in any order; an empty field is a missing number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv_module.DictReader(file)
            if absent := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
                raise ValueError(f"{path.name} has no column {absent[0]}; it needs {', '.join(COLUMNS)}")
            rows = [numbers_of(row, path, reader.line_num) for row in reader]
    except (csv_module.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no CSV file in UTF-8: {error}") from error
    table = np.array(rows, np.float64).reshape(-1, len(COLUMNS))
    priced = table[~np.isnan(table[:, -1])]
    if len(priced) < FEWEST:
        raise ValueError(f"{path.name} has {len(priced)} rows with a price; it needs {FEWEST} or more")
    income, age, rooms, bedrooms, population, households, latitude, longitude, price = priced.T
    per_household = (rooms / households, bedrooms / households)
    x = np.stack([income, age, *per_household, population, population / households, latitude, longitude], axis=1)
    return Houses(path.name, x, price / DOLLARS, int(np.isnan(priced).sum()), len(table) - len(priced))


def numbers_of(row: dict[str, Any], path: Path, line: int) -> list[float]:
    """Return the numbers in a line, which must have as many fields as the line of names."""
    if None in row or None in row.values():  # DictReader's key for extra fields, and its value for missing ones
        raise ValueError(f"{path.name}, line {line} has more or fewer fields than the line of names")
    return [number(row[name], path, line, name) for name in COLUMNS]


def number(text: str, path: Path, line: int, name: str) -> float:
    """Return the number in a field, NaN if it is empty."""
    if not text.strip():
        return np.nan
    try:
        value = float(text)
    except ValueError:
        value = np.inf
    if not abs(value) < LARGEST:
        raise ValueError(f"{path.name}, line {line}: {name} is {text!r:.40}, which is no number that it could be")
    if name == "households" and value < 1:
        raise ValueError(f"{path.name}, line {line}: {name} is {text}; it must be 1 or more")
    return value


def split(houses: Houses) -> Split:
    """Split the districts, always in the same way, fill in missing numbers, and standardise.

    Medians for missing numbers, means and deviations are those of the training part. Features are clipped at 4 standard
    deviations.

    Raises
    ------
    ValueError
        If the training part has no value of a feature, or all prices of a part are equal.
    """
    order = np.random.default_rng(0).permutation(len(houses.y))
    test, rest = np.split(order, [round(TEST * len(order))])
    validation, rows = np.split(rest, [round(VALIDATION * len(rest))])
    if absent := [FEATURES[i] for i in np.flatnonzero(np.isnan(houses.x[rows]).all(axis=0))]:
        raise ValueError(f"{houses.source} has no value of {absent[0]} in its training part")
    if min(np.ptp(houses.y[rows]), np.ptp(houses.y[test])) == 0:
        raise ValueError(f"{houses.source} has one price in all rows of a part: there is nothing to learn")
    x = np.where(np.isnan(houses.x), np.nanmedian(houses.x[rows], axis=0), houses.x)
    mean, deviation = x[rows].mean(axis=0), x[rows].std(axis=0)
    x = np.clip((x - mean) / np.where(deviation > 0, deviation, 1), -LIMIT, LIMIT).astype(np.float32)
    scale = float(houses.y[rows].std())
    y = ((houses.y - houses.y[rows].mean()) / scale).astype(np.float32)
    return Split(x[rows], y[rows], x[validation], y[validation], x[test], y[test], scale)


def predict(params: network.Params, x: Array) -> Array:
    """Return the network's prices, standardised."""
    return network.forward(params, x)[-1][:, 0]


def train(name: str, data: Split, *, lr: float, epochs: int, seed: int) -> list[dict[str, Array]]:
    """Train a new network with a schedule, and return copies of its parameters after each epoch."""
    rng = np.random.default_rng(seed)
    params = network.new_parameters(rng, SIZES)
    schedule = training.SCHEDULES[name](lr, epochs, -(-len(data.y) // BATCH))
    optimizer = training.OPTIMIZERS["nesterov"](params, lr=schedule)
    snapshots = []
    for _ in training.train(
        params, optimizer, data.x, data.y, epochs=epochs, batch=BATCH, rng=rng, objective=network.squared_error
    ):
        snapshots.append({key: array.copy() for key, array in params.items()})
        if isinstance(schedule, Plateau):
            schedule.update(validation_loss(params, data))
    return snapshots


def validation_loss(params: network.Params, data: Split) -> float:
    """Return the mean squared error on the validation part."""
    return network.loss(params, data.x_validation, data.y_validation, network.squared_error)


def judge(snapshots: Sequence[network.Params], data: Split) -> dict[str, list[float]]:
    """Return R² and the root mean squared error, in units of 100,000 dollars, of networks on the test part."""
    errors = [float(np.mean((predict(params, data.x_test) - data.y_test) ** 2)) for params in snapshots]
    variance = float(data.y_test.var())
    return {"r2": [1 - error / variance for error in errors], "rmse": [data.scale * error**0.5 for error in errors]}


def housing(
    csv: str | os.PathLike[str] | None = None, epochs: int = 30, seeds: int = 5, seed: int = 0
) -> tuple[Figure, dict[str, Any]]:
    """Train a network of 8, 64, 32 and 1 units on house prices, with Nesterov and every schedule.

    The data are the districts of California in the census of 1990 [1]_, with the eight features of scikit-learn:
    median income and age of the houses, rooms, bedrooms and people per household, people, latitude and longitude. A
    fifth of the districts is the test part. It is used once, after all trainings, to evaluate every network as it was
    after each epoch. Nothing is chosen by it: `tune` chose the learning rates, and a plateau uses the loss on a tenth
    of the other districts.

    Parameters
    ----------
    csv : str or path, optional
        A file with the columns median_income, housing_median_age, total_rooms, total_bedrooms, population, households,
        latitude, longitude and median_house_value, in dollars. Without it, scikit-learn downloads the data.
    epochs : int, default 30
        The number of passes over the training part, 1 or more, in batches of 64.
    seeds : int, default 5
        The number of networks to train with each schedule, 1 or more.
    seed : int, default 0
        The seed of the first network's start and batches; each further network has the next one.

    Returns
    -------
    figure : matplotlib.figure.Figure
        R² on the test part by epoch, as median and quartiles: over all epochs, and closer over the second half.
    numbers : dict
        ``{"schedules": {name: {"lr": ..., "r2": [[...], ...], "rmse": [[...], ...]}}, "rows": {...}, "missing": ...,
        ...}``, with a list for each seed and a number after each epoch; errors are in units of 100,000 dollars.
        Missing counts the missing numbers in the source, which the feature's median replaces.

    Raises
    ------
    ImportError
        If matplotlib, or scikit-learn without a file, is not installed; the extra ``fastopt[lab]`` has them.
    OSError
        If there is no such file, or the data cannot be downloaded.
    TypeError, ValueError
        If an argument is out of range, or the file does not fit.

    References
    ----------
    .. [1] R. K. Pace, R. Barry, "Sparse Spatial Autoregressions", Statistics and Probability Letters 33, 1997.
    """
    epochs = Count(1, 2**20).check("epochs", epochs)
    seeds = Count(1, 2**20).check("seeds", seeds)
    seed = Count().check("seed", seed)
    figure, axes = look.new_figure([["all", "late"]], height=4.6)
    if csv is not None and not isinstance(csv, (str, os.PathLike)):
        raise TypeError(f"csv must be a path, not {csv!r:.40}")
    houses = load(csv)
    data = split(houses)

    runs = [(name, each) for name in training.SCHEDULES for each in range(seed, seed + seeds)]
    trained = [
        (name, train(name, data, lr=LEARNING_RATES[name], epochs=epochs, seed=each))
        for name, each in track(runs, "training")
    ]
    results: dict[str, dict[str, Any]] = {
        name: {"lr": LEARNING_RATES[name], "r2": [], "rmse": []} for name in training.SCHEDULES
    }
    for name, snapshots in trained:
        for quantity, values in judge(snapshots, data).items():
            results[name][quantity].append(values)
    parts = {"training": data.y, "validation": data.y_validation, "test": data.y_test}
    numbers = {
        "source": houses.source, "rows": {name: len(part) for name, part in parts.items()},
        "missing": houses.missing, "without_price": houses.without_price, "epochs": epochs, "seed": seed,
        "schedules": results,
    }  # fmt: skip
    draw(axes, results)
    look.add_legend(figure, axes["all"])
    return figure, numbers


def draw(axes: dict[str, Axes], results: dict[str, dict[str, Any]]) -> None:
    """Draw R² twice: over all epochs, and enlarged over the second half, to show differences late in training."""
    medians = np.array([np.median(result["r2"], axis=0) for result in results.values()])
    epochs = medians.shape[1]
    late = medians[:, epochs // 2 :]
    networks = len(next(iter(results.values()))["r2"])
    titles = {"all": f"all epochs: median, quartiles of {networks} networks", "late": "the second half, closer"}
    for panel, shown in (("all", medians), ("late", late)):
        for name, result in results.items():
            low, median, high = np.quantile(result["r2"], (0.25, 0.5, 0.75), axis=0)
            look.draw_band(axes[panel], median, low, high, name, look.SCHEDULE_COLOURS[name])
        axes[panel].set(ylim=limits(shown), ylabel="test R²")
        axes[panel].set_title(titles[panel], fontsize=look.SMALL)
        look.label_epochs(axes[panel])
    axes["late"].set_xlim(left=max(epochs // 2, 0.5))


def limits(curves: Array) -> look.Limits:
    """Return the limits of an axis that shows all curves completely, with a margin."""
    margin = 0.1 * float(np.ptp(curves)) or 0.01
    return float(curves.min()) - margin, float(curves.max()) + margin


def last(result: dict[str, Any], quantity: str) -> float:
    """Return a quantity after the last epoch, as the median over the seeds."""
    return float(np.median([values[-1] for values in result[quantity]]))


def report(numbers: dict[str, Any]) -> str:
    """Describe the results in a table and three lines."""
    results, rows = numbers["schedules"], numbers["rows"]
    ranking = sorted(results, key=lambda name: last(results[name], "r2"), reverse=True)
    lines = [
        f"{'schedule':12} {'lr':>6} {'test R²':>9} {'test error':>12}   medians of {len(results[ranking[0]]['r2'])}"
    ]
    for name in ranking:
        error = f"${DOLLARS * last(results[name], 'rmse'):,.0f}"
        lines.append(f"{name:12} {results[name]['lr']:>6g} {last(results[name], 'r2'):>9.3f} {error:>12}")
    best, worst = ranking[0], ranking[-1]
    epochs = len(results[best]["r2"][0])
    goal = 0.98 * last(results[best], "r2")
    medians = {name: np.median(results[name]["r2"], axis=0) for name in results}
    reached = {name: training.first_epoch(median, lambda r2: r2 > goal) for name, median in medians.items()}
    counts = ", ".join(f"{name} {count or f'more than {epochs}'}" for name, count in reached.items())
    lines += [
        "",
        f"After {epochs} epochs {best} is best, with an R² of {last(results[best], 'r2'):.3f}, and {worst} last, with "
        f"{last(results[worst], 'r2'):.3f}.",
        f"Epochs until the median R² is above {goal:.3f}: {counts}.",
        f"Of {sum(rows.values()):,} districts {rows['test']:,} are the test part, used once; {numbers['missing']} "
        f"missing numbers were filled in, {numbers['without_price']} districts without a price left out.",
    ]
    return "\n".join(lines)


def tune(
    csv: str | os.PathLike[str] | None = None,
    rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1),
    epochs: int = 30,
    seeds: Sequence[int] = range(3),
) -> dict[str, float]:
    """Find the learning rate for each schedule that ends with the lowest mean loss on the validation part.

    Returns
    -------
    dict
        Schedule -> learning rate.
    """
    data = split(load(csv))

    def mean_loss(name: str, lr: float) -> float:
        ends = [train(name, data, lr=lr, epochs=epochs, seed=seed)[-1] for seed in seeds]
        return float(np.mean([validation_loss(params, data) for params in ends]))

    return {name: training.best(rates, partial(mean_loss, name)) for name in training.SCHEDULES}
