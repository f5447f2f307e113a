"""A picture in motion: its curves and paths grow from their first point to their last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..extras import require
from ..progress import track
from .look import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FRAMES = 60
MILLISECONDS = 70  # of each
LAST = 2500  # milliseconds for which the whole picture stays
DPI = 100
COLOURS = 256  # of a GIF


def animate(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a GIF in which every curve of a figure grows from its first step to its last; the figure stays as it is.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        As an experiment returns it.
    path : str or path
        The file to write.

    Raises
    ------
    ImportError
        If matplotlib is not installed; the extra ``fastopt[lab]`` has it.
    """
    canvas, dpi = figure.canvas, figure.dpi
    figure.dpi = DPI
    try:
        images = list(track(frames(figure), "drawing", total=FRAMES))
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)
    palette = palette_of(images[-1])  # one for all: where nothing moves, frames are equal, and the file stays small
    first, *rest = (image.quantize(palette=palette, dither=0) for image in images)
    durations = [MILLISECONDS] * (FRAMES - 1) + [LAST]
    first.save(path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def palette_of(image: Any) -> Any:
    """Return the colours of a picture, and all those of thin lines, which are too rare to be chosen among them."""
    colors = require("matplotlib.colors", "lab")
    lines = [round(255 * part) for colour in PALETTE for part in colors.to_rgb(colour)]
    common = image.quantize(COLOURS - len(PALETTE)).getpalette()
    palette = require("PIL.Image", "lab").new("P", (1, 1))
    palette.putpalette(common[: 3 * (COLOURS - len(PALETTE))] + lines)
    return palette


def frames(figure: Figure) -> Iterator[Any]:
    """Draw what stays once, and yield a picture for each share of the lines."""
    canvas = require("matplotlib.backends.backend_agg", "lab").FigureCanvasAgg(figure)
    image = require("PIL.Image", "lab")
    lines = [(axes, line) for axes in figure.axes for line in axes.lines]
    lines.sort(key=lambda pair: pair[1].get_zorder())
    data = [line.get_data_3d() if hasattr(line, "get_data_3d") else line.get_data() for _, line in lines]
    for _, line in lines:
        line.set_visible(False)
    canvas.draw()
    for _, line in lines:
        line.set_visible(True)
    still = canvas.copy_from_bbox(figure.bbox)
    try:
        for frame in range(1, FRAMES + 1):
            canvas.restore_region(still)
            for (axes, line), points in zip(lines, data, strict=True):
                grow(line, points, frame / FRAMES)
                axes.draw_artist(line)
            yield image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    finally:
        for (_, line), points in zip(lines, data, strict=True):
            grow(line, points, 1.0)


def grow(line: Line2D, points: Any, share: float) -> None:
    """Show the first points of a line; a single point, and a straight line between two, are there from the start."""
    count = len(points[0])
    shown = [values[: max(1, round(share * count)) if count > 2 else count] for values in points]
    if hasattr(line, "set_data_3d"):
        line.set_data_3d(shown)
    else:
        line.set_data(*shown)
