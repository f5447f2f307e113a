"""The lessons as one file that needs no server and no network: paths are computed ahead, for all stops of sliders."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...extras import require
from ...files import replacing
from ...progress import track
from . import reply
from .lessons import LESSONS, Lesson
from .page import asset, constant, page
from .settings import checked


def combinations(lesson: Lesson) -> Iterator[dict[str, Any]]:
    """Yield the settings of a lesson for every combination of its sliders' stops; the last slider's change fastest."""
    for values in itertools.product(*lesson.grid.values()):
        settings = {**lesson.settings, "marbles": [dict(each) for each in lesson.settings["marbles"]]}
        for name, value in zip(lesson.grid, values, strict=True):
            number, _, of = name.partition(".")
            if of:
                settings["marbles"][int(number) - 1][of] = value
            else:
                settings[name] = value
        yield settings


class Table:
    """Paths by lesson and by the place of a combination; marbles that are told alike are kept once."""

    def __init__(self) -> None:
        self.marbles: dict[str, int] = {}  # as JSON -> their places
        self.lessons: dict[str, list[list[int]]] = {}
        self.landscapes: dict[str, Any] = {}

    def add(self, name: str, settings: dict[str, Any]) -> None:
        """Compute the paths of a combination, the next one of a lesson."""
        told = reply.told(checked(settings))["marbles"]
        texts = [json.dumps(each, allow_nan=False) for each in told]
        places = [self.marbles.setdefault(text, len(self.marbles)) for text in texts]
        self.lessons.setdefault(name, []).append(places)
        landscape = settings["landscape"]
        if landscape not in self.landscapes:
            self.landscapes[landscape] = reply.landscape(landscape)

    def script(self) -> str:
        """Return the table as JavaScript."""
        marbles = [json.loads(text) for text in self.marbles]
        return constant("TABLE", {"marbles": marbles, "lessons": self.lessons, "landscapes": self.landscapes})


def export(path: Path) -> None:
    """Write the file, or leave what was there if that fails.

    Raises
    ------
    ImportError
        If Plotly is not installed; the extra ``fastopt[play]`` has it.
    OSError
        If the file cannot be written.
    """
    plotly = require("plotly.offline", "play").get_plotlyjs()
    with replacing(path) as beside:
        table = Table()
        work = [(name, settings) for name, lesson in LESSONS.items() for settings in combinations(lesson)]
        for name, settings in track(work, "Computing"):
            table.add(name, settings)
        beside.write_text(page(False, inlined(plotly), [table.script(), asset("table.js")]), encoding="utf-8")


def inlined(plotly: str) -> str:
    """Return the element that brings plotly.js with it."""
    return f"<script>{plotly}</script>"
