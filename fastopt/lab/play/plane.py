"""A plane through the parameters of the digits' network, and the loss on a grid of it, which ``plane.npz`` has.

The network is trained; the plane goes through its parameters, along two random directions that are filter-normalised:
the part of a direction that belongs to a unit is as long as the unit's own weights, so that a step of 1 means the same
for all of them (Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018).

``python -m fastopt.lab.play.plane`` makes the file anew, in some seconds; it needs scikit-learn.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from ...files import replacing
from ...progress import track
from .. import network
from ..digits import load, train
from ..network import Array, Params
from ..training import OPTIMIZERS

FILE = "plane.npz"
REACH = 1.5  # of the grid, from the trained network to its edge, along both directions
POINTS = 49  # of the grid along each direction
EPOCHS = 30
SEED = 1


def grid() -> Array:
    """Return the losses of the committed grid, shape (POINTS, POINTS), the second direction along the first axis."""
    with resources.as_file(resources.files(__package__) / FILE) as path, np.load(path) as kept:
        losses: Array = kept["loss"].astype(np.float64)
    return losses


def direction(params: Params, rng: np.random.Generator) -> dict[str, Array]:
    """Return a random direction, in which each unit's weights are as long as its own; biases do not change."""
    found = {}
    for name, array in params.items():
        drawn = rng.standard_normal(array.shape)
        if array.ndim == 1:
            drawn[:] = 0
        else:
            drawn *= np.linalg.norm(array, axis=0) / np.linalg.norm(drawn, axis=0)  # a column for each unit
        found[name] = drawn
    return found


def measured(epochs: int = EPOCHS, points: int = POINTS, seed: int = SEED) -> Array:
    """Train the network, and return its training loss on a grid of the plane, shape (points, points)."""
    x, y, _, _ = load()
    *_, (trained, _) = train(OPTIMIZERS["momentum"], x, y, epochs=epochs, seed=seed, lr=0.1)
    params = {name: array.astype(np.float64) for name, array in trained.items()}
    rng = np.random.default_rng(seed)
    first, second = direction(params, rng), direction(params, rng)
    shares = np.linspace(-REACH, REACH, points)
    losses = np.empty((points, points))
    for j, b in enumerate(track(shares, "measuring")):
        for i, a in enumerate(shares):
            moved = {name: array + a * first[name] + b * second[name] for name, array in params.items()}
            losses[j, i] = network.loss(moved, x, y)
    return losses


def write(path: Path) -> None:
    """Measure, and write the file."""
    losses = measured()
    with replacing(path) as beside:
        np.savez_compressed(beside, loss=losses.astype(np.float32))


if __name__ == "__main__":
    write(Path(__file__).with_name(FILE))
