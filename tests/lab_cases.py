"""The lab's experiments, each in a mode that takes about a second; no tests here."""

import csv
import functools
import tempfile
from pathlib import Path

import numpy as np

from fastopt import lab

HEADER = (
    "longitude", "latitude", "housing_median_age", "total_rooms", "total_bedrooms", "population", "households",
    "median_income", "median_house_value", "ocean_proximity",
)  # fmt: skip


def write_houses(path, rows=400, missing=7, seed=0):
    """Write a file like the one of the California housing data: invented districts, whose prices can be learnt."""
    rng = np.random.default_rng(seed)
    households = rng.integers(50, 900, rows)
    rooms = households * rng.uniform(3, 8, rows)
    bedrooms = np.round(rooms / 5).astype(int).astype(object)
    bedrooms[rng.permutation(rows)[:missing]] = ""
    income = rng.uniform(1, 10, rows)
    latitude, longitude = rng.uniform(33, 41, rows), rng.uniform(-124, -115, rows)
    price = 40_000 * income + 20_000 * (latitude - 33) + 5_000 * rng.standard_normal(rows)
    columns = (
        longitude.round(2), latitude.round(2), rng.integers(1, 52, rows), rooms.round(), bedrooms,
        (households * rng.uniform(2, 4, rows)).round(), households, income.round(4), price.round(), ["INLAND"] * rows,
    )  # fmt: skip
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(zip(*columns, strict=True))


FOLDER = tempfile.TemporaryDirectory()  # removed when the tests' process ends
HOUSES = Path(FOLDER.name) / "houses.csv"
write_houses(HOUSES)

FINITE_DIFFERENCE = 1e-6

FAST = {
    "landscape": {"steps": 40, "starts": 10, "start": (-2.0, 3.0)},
    "bounce": {"steps": 50, "runs": 5},
    "schedules": {"steps": 100},
    "sparse": {"steps": 30},
    "words": {"epochs": 1, "topics": 3},
    "digits": {"epochs": 3, "seeds": 2, "seed": 3},
    "housing": {"csv": str(HOUSES), "epochs": 3, "seeds": 2},
    "gradients": {"steps": 50, "starts": 10, "epochs": 3},
    "precision": {"storages": "bf16 states,bf16 parameters", "epochs": 6, "seeds": 2},
}


@functools.cache
def experiment(name):
    """Return figure and numbers of an experiment in its fast mode."""
    return lab.EXPERIMENTS[name].run(**FAST[name])


def assert_gradient(loss, gradient, points):
    """Assert that a gradient is that of a loss, by finite differences, within what these lose of float64's digits."""
    got = gradient(points)
    assert got.shape == points.shape
    for axis in range(2):
        step = FINITE_DIFFERENCE * np.eye(2)[axis]
        want = (loss(points + step) - loss(points - step)) / (2 * FINITE_DIFFERENCE)
        np.testing.assert_allclose(got[..., axis], want, atol=1e-7 * max(1, np.abs(want).max()))
