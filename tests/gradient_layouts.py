"""Two-dimensional gradients in another storage order than their parameters; no tests here."""

import numpy as np

STRIDED = {
    "transposed": lambda g: np.asfortranarray(g),
    "transposed tiles": lambda g: np.asfortranarray(np.tile(g, (8, 9))),
    "every other": lambda g: np.repeat(g, 2, axis=1)[:, ::2],
    "backwards": lambda g: g[::-1, ::-1],
    "one for all": lambda g: np.broadcast_to(g[:, :1], g.shape),
    "three axes": lambda g: np.tile(g, (7, 1, 1)).transpose(2, 0, 1),
}
