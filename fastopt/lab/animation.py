"""Animated pictures: curves and paths grow from their first point to their last."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..extras import require
from ..progress import track
from . import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FRAMES = 60
MILLISECONDS = 70  # of each
HOLD = 2500  # milliseconds for which the whole picture stays
GIF_DPI = 100
GIF_COLOURS = 256
BLENDS = (1.0, 0.75, 0.5, 0.25)  # of a line's colour with white, at its edges
GREYS = 18  # from black to white: letters, axes and their edges


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
    figure.dpi = GIF_DPI
    try:
        images = list(track(frames(figure), "drawing", total=FRAMES))
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)
    palette = palette_of(images[-1])  # one for all frames: unmoving parts are then equal, and the file small
    first, *rest = (reduced(image, palette) for image in images)
    durations = [MILLISECONDS] * (FRAMES - 1) + [HOLD]
    first.save(path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def palette_of(image: Any) -> Any:
    """Return a picture's palette; the colours of thin lines and letters are too rare to be chosen, and are added."""
    to_rgb = require("matplotlib.colors", "lab").to_rgb
    there = {colour for _, colour in image.getcolors(image.width * image.height)}
    lines = [rgb for rgb in map(to_rgb, (*look.PALETTE, *look.SCHEDULE_PALETTE)) if as_bytes(rgb) in there]
    blends = [tuple(1 - blend * (1 - part) for part in rgb) for rgb in lines for blend in BLENDS]
    greys = [(level / (GREYS - 1),) * 3 for level in range(GREYS)]
    kept = list(dict.fromkeys(map(as_bytes, [to_rgb("white"), *greys, *blends])))
    common = image.quantize(GIF_COLOURS - len(kept)).getpalette()
    palette = require("PIL.Image", "lab").new("P", (1, 1))
    palette.putpalette([part for colour in kept for part in colour] + common[: 3 * (GIF_COLOURS - len(kept))])
    return palette


def as_bytes(colour: Sequence[float]) -> tuple[int, ...]:
    """Return a colour as bytes, as pictures store it."""
    return tuple(round(255 * part) for part in colour)


def reduced(image: Any, palette: Any) -> Any:
    """Return a picture reduced to a palette whose first colour is white."""
    small = image.quantize(palette=palette, dither=0)
    small.paste(0, mask=image.convert("L").point(lambda grey: 255 * (grey == 255)))  # Pillow may pick a near white
    return small


def frames(figure: Figure) -> Iterator[Any]:
    """Draw the unmoving parts once, and yield a picture for each frame of the growing ones."""
    canvas = require("matplotlib.backends.backend_agg", "lab").FigureCanvasAgg(figure)
    image = require("PIL.Image", "lab")
    moving = sorted(growing(figure), key=lambda part: part.artist.get_zorder())
    seen = [part.artist.get_visible() for part in moving]
    try:
        for part in moving:
            part.artist.set_visible(False)
        canvas.draw()
        still = canvas.copy_from_bbox(figure.bbox)
        for part, visible in zip(moving, seen, strict=True):
            part.artist.set_visible(visible)
        for frame in range(1, FRAMES + 1):
            canvas.restore_region(still)
            for part in moving:
                part.grow(frame / FRAMES)
                part.axes.draw_artist(part.artist)
            yield image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    finally:
        for part, visible in zip(moving, seen, strict=True):
            part.grow(1.0)
            part.artist.set_visible(visible)


def growing(figure: Figure) -> list[Curve | Band | Note]:
    """Return the growing parts of a figure: curves (not straight lines across a panel), bands, and notes at the end."""
    parts: list[Curve | Band | Note] = []
    for axes in figure.axes:
        parts += [*curves(axes), *bands(axes), *notes(axes)]
    return parts


def curves(axes: Axes) -> list[Curve]:
    """Return the curves of a panel, which grow at one pace: the longest takes the whole time."""
    lines: list[Any] = [line for line in axes.lines if not is_across(axes, line)]
    longest = max((len(line.get_data()[0]) for line in lines), default=0)
    return [Curve(axes, line, longest) for line in lines]


def bands(axes: Axes) -> list[Band]:
    """Return the bands of a panel."""
    return [Band(axes, each) for each in axes.collections if each.get_gid() == look.BAND]


def notes(axes: Axes) -> list[Note]:
    """Return a panel's notes, which say how it ends."""
    return [Note(axes, each) for each in (*axes.texts, axes.xaxis.label) if each.get_gid() == look.AT_THE_END]


def is_across(axes: Axes, line: Line2D) -> bool:
    """Say whether a line was drawn by axhline: it crosses the panel and has no end in the data."""
    return axes.name == "rectilinear" and line.get_transform() != axes.transData


class Curve:
    """A line that grows from its first point; the panel's longest line has that many steps at the end."""

    def __init__(self, axes: Axes, line: Any, steps: int) -> None:
        self.axes = axes
        self.artist = line
        self.steps = steps
        self.points = line.get_data_3d() if hasattr(line, "get_data_3d") else line.get_data()

    def grow(self, share: float) -> None:
        """Show the first of its points."""
        shown = [values[: max(1, round(share * self.steps))] for values in self.points]
        if hasattr(self.artist, "set_data_3d"):
            self.artist.set_data_3d(shown)
        else:
            self.artist.set_data(*shown)


class Band:
    """A band around a line, which grows from the left."""

    def __init__(self, axes: Axes, band: Any) -> None:
        self.axes = axes
        self.artist = band

    def grow(self, share: float) -> None:
        """Show it up to a share of its panel."""
        transforms = require("matplotlib.transforms", "lab")
        part = transforms.TransformedBbox(transforms.Bbox([[0, 0], [share, 1]]), self.axes.transAxes)
        self.artist.set_clip_box(part)


class Note:
    """A text that says how a panel ends; shown in the last frame."""

    def __init__(self, axes: Axes, text: Any) -> None:
        self.axes = axes
        self.artist = text

    def grow(self, share: float) -> None:
        """Show it when everything else is complete."""
        self.artist.set_visible(share == 1)
