"""The page, one file of HTML: the same for the server and for the export, but for where its paths come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

from .. import look
from ..landscape import ENDS as COLOURS_OF_ENDS
from .fields import Field, Options
from .landscapes import LANDSCAPES
from .lessons import LESSONS
from .marbles import KINDS, MARBLE
from .reply import STARTS
from .settings import MOST_MARBLES, PAGE
from .shapes import SHAPES

SCRIPTS = ("settings.js", "fields.js", "plots.js", "marbles.js", "motion.js")  # before these the source, then play.js
COLOURS = (look.PALETTE[1], look.PALETTE[2], look.PALETTE[3], look.PALETTE[4])  # of the marbles
HINT = (
    "Click into the map, or drag: the start is there. Space plays and pauses, arrow keys step, 1 to 4 choose a marble."
)
FIXED = (
    "The start stays: this page has only paths that were computed ahead, from the starts of its lessons. "
    "Where fastopt is installed, the command fastopt lab play opens a page on which a click moves the start."
)
ENDS = {
    "basin": ("in the basin", COLOURS_OF_ENDS["settled"]),
    "stuck": ("stuck", COLOURS_OF_ENDS["stuck"]),
    "moving": ("moving", "#B9C0C7"),
    "lost": ("thrown out", look.SCHEDULE_PALETTE[6]),
}


def described(fields: Mapping[str, Field | Options]) -> dict[str, Any]:
    """Return fields as the page reads them."""
    return {name: asdict(field) for name, field in fields.items()}


def contents(live: bool) -> dict[str, Any]:
    """Return what the page has to know: whether paths can be computed, fields, rules, lessons and colours."""
    return {
        "live": live,
        "page": described(PAGE),
        "marble": described(MARBLE),
        "kinds": {name: {"fields": kind.fields, "momentum": kind.momentum} for name, kind in KINDS.items()},
        "shapes": {name: shape.numbers for name, shape in SHAPES.items()},
        "starts": {name: each.start for name, each in LANDSCAPES.items()},
        "lessons": {
            name: {"title": each.title, "text": each.text, "settings": each.settings, "grid": each.grid}
            for name, each in LESSONS.items()
        },
        "ends": {name: {"said": said, "colour": colour} for name, (said, colour) in ENDS.items()},
        "randomStarts": STARTS,
        "colours": COLOURS[:MOST_MARBLES],
        "heights": look.HEIGHTS,
        "hint": HINT,
        "fixed": FIXED,
    }


def asset(name: str) -> str:
    """Return a file of the page."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def constant(name: str, value: Any) -> str:
    """Return a line of JavaScript that names a value; no text in it can end the script."""
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return f"const {name} = {text};"


def page(live: bool, plotly: str, source: Iterable[str]) -> str:
    """Return the page.

    Parameters
    ----------
    live : bool
        Whether a server computes its paths.
    plotly : str
        The element that brings plotly.js.
    source : iterable of str
        The scripts that define where paths come from.
    """
    scripts = [constant("PAGE", contents(live)), *map(asset, SCRIPTS), *source, asset("play.js")]
    text = asset("page.html").replace("/*STYLE*/", asset("page.css"))
    before, after = text.replace("/*SCRIPT*/", "\n".join(scripts), 1).split("<!--PLOTLY-->")
    return f"{before}{plotly}{after}"
