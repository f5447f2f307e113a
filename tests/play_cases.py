"""Settings of the page in which marbles roll; no tests here."""

import base64

import numpy as np

from fastopt.lab.play import settings
from fastopt.lab.play.walk import WITHOUT_ROOT

QUICK = ["sgd", "momentum", "adam", WITHOUT_ROOT]  # the rules whose updates tests compile by default
STEPS = 40


def of_one_marble(steps=STEPS, noise=0, seed=0, **marble):
    """Settings with one marble in the bowl."""
    given = {"landscape": "bowl", "steps": steps, "noise": noise, "seed": seed, "marbles": [marble]}
    return settings.checked(given)


def unpacked(packed):
    """What `reply.packed` has packed."""
    if isinstance(packed, dict):
        return np.full(packed["count"], packed["value"], np.float32)
    return np.frombuffer(base64.b64decode(packed), "<f4")
