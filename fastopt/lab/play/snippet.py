"""The lines of Python that do with fastopt what the page shows."""

from __future__ import annotations

import re

from ... import schedules
from .marbles import Marble, option_of
from .settings import Settings
from .walk import WITHOUT_ROOT


def snippet(settings: Settings) -> str:
    """Return a program that lets the marbles of these settings roll, and prints where each ends."""
    made = [made_by(marble, settings.steps) for marble in settings.marbles]
    noise, noisy = [], ""
    if settings.noise:
        drawn = f"np.random.default_rng({settings.seed}).standard_normal(({settings.steps}, 2))"
        noise, noisy = [f"noise = {settings.noise!r} * {drawn}"], " + noise[step]"
    titles = [f"{number}, {marble.kind.title}" for number, marble in enumerate(settings.marbles, start=1)]
    lines = [
        *imports(settings, " ".join(made)),
        "",
        f'gradient = LANDSCAPES["{settings.name}"].gradient',
        *noise,
        "marbles = {",
        *(f'    "{title}": lambda p: {each},' for title, each in zip(titles, made, strict=True)),
        "}",
        "for name, make in marbles.items():",
        f"    p = np.array({[*settings.start]!r})",
        "    opt = make(p)",
        f"    for step in range({settings.steps}):",
        f"        opt.step(gradient(p){noisy})",
        "    print(name, p)",
    ]
    return "\n".join(lines) + "\n"


def imports(settings: Settings, made: str) -> list[str]:
    """Return the lines that import what the optimizers are made with."""
    kinds = [marble.kind for marble in settings.marbles]
    classes = sorted({kind.optimizer for kind in kinds if kind.rule != WITHOUT_ROOT})
    used = sorted({*re.findall(r"\b[A-Z]\w+(?=\()", made)} & {*schedules.__all__})
    return [
        "import numpy as np",
        *([f"from fastopt import {', '.join(classes)}"] if classes else []),
        "from fastopt.lab.play.landscapes import LANDSCAPES",
        *(
            ["from fastopt.lab.play.without_root import AdagradWithoutRoot"]
            if any(kind.rule == WITHOUT_ROOT for kind in kinds)
            else []
        ),
        *([f"from fastopt.schedules import {', '.join(used)}"] if used else []),
    ]


def made_by(marble: Marble, steps: int) -> str:
    """Return the call that makes a marble's optimizer for p."""
    options = marble.options({name: option_of(each) for name, each in marble.scheduled(steps).items()})
    name = "AdagradWithoutRoot" if marble.kind.rule == WITHOUT_ROOT else marble.kind.optimizer
    return f"{name}(p, {', '.join(f'{option}={value!r}' for option, value in options.items())})"
