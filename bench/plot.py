"""The charts: how many times as long as fastopt others take, steps in torch by number of tensors, others by rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastopt.extras import require

from .contenders import FASTOPT_TORCH
from .report import AFTER, MODE_NAMES, Report, compared
from .sparse_report import WHOLE
from .text import UNSTABLE, duration
from .workloads import WORKLOADS, Workload, title

# Colours that colour-blind people can tell apart (Okabe and Ito), each with its own marker.
STYLES = {
    "numpy": ("#0072B2", "o"),
    "fastopt-fresh": ("#999999", "P"),
    "numba-by-hand": ("#CC79A7", "v"),
    "torch-default": ("#E69F00", "s"),
    "torch-foreach": ("#009E73", "^"),
    "torch-fused": ("#D55E00", "D"),
    "optax-jit": ("#56B4E9", "X"),
}
FAR = 20.0  # beyond this ratio there is no room for text to the right
SHORT = 300  # an axis whose end is less than this times its beginning gets labels between powers of ten
LANES = 0.76  # the height of all implementations in a workload's row, which is 1 high
FILLED_AND_HOLLOW: tuple[dict[str, str], ...] = ({}, {"markerfacecolor": "white"})

# (workload, rule) -> implementation -> its ratios, or why they are unstable
Ratios = Mapping[tuple[str, str], Mapping[str, Sequence[float | str]]]

CURVES = {FASTOPT_TORCH: ("#000000", "o")} | {name: STYLES[name] for name in STYLES if name.startswith("torch")}
APART = 1.5  # the factor between neighbouring lines of text on the curves' axis
COLOURS = ("#56B4E9", "#0072B2", "#000000")  # of tables, the smallest first


def draw(report: Report, path: str) -> None:
    """Write the chart as an image.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it.
    path : str
        The file's name; its suffix selects the type of image.
    """
    found = compared(report)
    pairs: dict[tuple[str, str], dict[str, list[float | str]]] = {}
    for (workload, rule), ratios in found.items():
        if not workload.endswith(AFTER):
            modes = ratios, found.get((workload + AFTER, rule), {})
            pairs[workload, rule] = {name: [value_of(mode[name]) for mode in modes if name in mode] for name in ratios}
    where = report["machine"]
    axis = "time of a step as a multiple of fastopt's, log scale; right of the line, fastopt is faster"
    caption = f"{axis}\n{where['cpu']}, {where['threads']} threads, {where['date']}"
    styles = {name: style for name, style in STYLES.items() if any(name in of for of in pairs.values())}
    draw_ratios({"": pairs}, styles, WORKLOADS, MODE_NAMES, caption, path)


def value_of(entry: Mapping[str, Any], figure: str = "ratio") -> float | str:
    """Return a figure, or the reason why it is unstable."""
    value: float | None = entry[figure]
    return str(entry["unstable"][figure]) if value is None else value


def draw_ratios(
    blocks: Mapping[str, Ratios],
    styles: Mapping[str, tuple[str, str]],
    workloads: Mapping[str, Workload],
    kinds: Sequence[str],
    caption: str,
    path: str,
) -> None:
    """Write a chart of ratios as an image: each block has a panel per rule, with a row per workload.

    Parameters
    ----------
    blocks : dict
        Title -> (workload, rule) -> implementation -> its ratios, one or two, or why they are unstable.
    styles : dict
        Implementation -> colour and marker, in the order of the legend.
    workloads : dict
        Name -> workload, for its title.
    kinds : sequence of str
        What the first ratio of each pair is, and the second; empty if there is only one.
    caption, path : str
    """
    measured = [of for ratios in blocks.values() for of in ratios.values()]
    names = [name for name in styles if any(name in of for of in measured)]
    rows = max(len(rows_of(ratios)) for ratios in blocks.values())
    figure_type = require("matplotlib.figure", "bench").Figure
    height = (0.13 if kinds else 0.095) * len(styles) * rows + (0.7 if len(blocks) > 1 else 0.0)
    figure = figure_type(figsize=(9, 1.7 + height * len(blocks)), dpi=200)
    figure.set_layout_engine("constrained", wspace=0.08)  # keeps the labels at the ends of axes apart
    parts = figure.subfigures(len(blocks), 1, squeeze=False)[:, 0]
    for part, (about, ratios) in zip(parts, blocks.items(), strict=True):
        if about:
            part.suptitle(about, fontsize=11, fontweight="bold")
        draw_block(part, ratios, styles, workloads)
    figure.supxlabel(caption, fontsize=9)
    handles = legend({name: styles[name] for name in names}, kinds)
    columns = math.ceil(len(handles) / math.ceil(len(handles) / 6))  # rows of equal length
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8.5)
    figure.savefig(path)


def rows_of(ratios: Ratios) -> list[str]:
    """List the workloads."""
    return list(dict.fromkeys(workload for workload, _ in ratios))


def draw_block(
    figure: Any, ratios: Ratios, styles: Mapping[str, tuple[str, str]], workloads: Mapping[str, Workload]
) -> None:
    """Draw the panels of one block."""
    rows, rules = rows_of(ratios), list(dict.fromkeys(rule for _, rule in ratios))
    panels = figure.subplots(1, len(rules), sharex=True, sharey=True, squeeze=False)[0]
    for panel, rule in zip(panels, rules, strict=True):
        for row, workload in enumerate(rows):
            for lane, name in enumerate(styles):
                values = ratios.get((workload, rule), {}).get(name, ())
                mark(panel, row + (lane - (len(styles) - 1) / 2) * LANES / len(styles), values, *styles[name])
        dress(panel, rule, rows)
    panels[0].set_yticks(range(len(rows)), [title(workload, workloads).replace(" of ", "\nof ") for workload in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    low, high = panels[0].get_xlim()
    if high < SHORT * low:
        panels[0].xaxis.set_major_locator(require("matplotlib.ticker", "bench").LogLocator(subs=(1.0, 3.0)))


def mark(panel: Any, y: float, found: Sequence[float | str], colour: str, marker: str) -> None:
    """Draw one implementation: first ratio filled, second hollow, a line between, or to 1 from a single one.

    An unstable ratio is replaced by the word and a short reason.
    """
    ratios = [ratio for ratio in found if not isinstance(ratio, str)]
    for ratio, how in zip(found, FILLED_AND_HOLLOW, strict=False):
        if not isinstance(ratio, str):
            panel.plot(ratio, y, marker, color=colour, markersize=4.5, zorder=4 if not how else 3, **how)
    if ratios:
        panel.plot([ratios[0], ratios[1] if len(ratios) > 1 else 1.0], [y, y], color=colour, lw=1, alpha=0.6, zorder=2)
    for reason in [reason for reason in found if isinstance(reason, str)][:1]:
        x = max(ratios, default=1.0)
        before = x > FAR  # no room to the right
        panel.annotate(
            f"{UNSTABLE}: {reason.partition(', ')[0]}",
            (x, y),
            xytext=(-5 if before else 5, 0),
            textcoords="offset points",
            color=colour,
            fontsize=5,
            ha="right" if before else "left",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            zorder=5,
        )


def dress(panel: Any, rule: str, workloads: list[str]) -> None:
    """Set a panel's title, axes and grid."""
    panel.set_title({"adagrad": "AdaGrad"}.get(rule, rule.capitalize()), fontsize=10)
    panel.set_xscale("log")
    panel.axvline(1, color="black", linewidth=1, zorder=1)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}x")
    panel.xaxis.set_minor_locator(require("matplotlib.ticker", "bench").NullLocator())
    panel.tick_params(labelsize=8.5, length=0)
    panel.grid(axis="x", color="0.88", linewidth=0.7)
    panel.set_axisbelow(True)
    for row in range(1, len(workloads)):
        panel.axhline(row - 0.5, color="0.8", linewidth=0.7, zorder=1)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def legend(styles: Mapping[str, tuple[str, str]], kinds: Sequence[str]) -> list[Any]:
    """Explain the colours and markers, and filled and hollow if there are both."""
    line = require("matplotlib.lines", "bench").Line2D
    handles = [
        line([], [], color=colour, marker=marker, linestyle="", markersize=5, label=name)
        for name, (colour, marker) in styles.items()
    ]
    grey = {"color": "0.3", "marker": "o", "linestyle": "", "markersize": 5}
    handles += [line([], [], label=kind, **grey, **how) for kind, how in zip(kinds, FILLED_AND_HOLLOW, strict=False)]
    return handles


def draw_curve(report: Report, path: str) -> None:
    """Write the chart of steps in torch by the number of tensors, as an image.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it if torch is installed.
    path : str
        The file's name; its suffix selects the type of image.
    """
    measured = report["torch"]
    if measured is None:
        raise ValueError("there is no curve without torch")
    figure = require("matplotlib.figure", "bench").Figure(figsize=(9, 4.6), dpi=200, layout="constrained")
    panel = figure.subplots()
    ends, missing = {}, list[str]()
    for name, (colour, marker) in CURVES.items():
        of_name = [point for point in measured["curve"] if point["implementation"] == name]
        points = [(point["tensors"], point["seconds"]) for point in of_name if point["seconds"] is not None]
        width = 2.2 if name == FASTOPT_TORCH else 1.4
        if points:
            panel.plot(*zip(*points, strict=True), marker=marker, color=colour, linewidth=width, markersize=4.5)
            ends[name] = points[-1]
        gaps = [(point["tensors"], value_of(point, "seconds")) for point in of_name if point["seconds"] is None]
        missing += [f"{name}, {tensors} tensors ({reason})" for tensors, reason in gaps]
    dress_curve(panel, "Time of a momentum step in PyTorch")
    label(panel, ends, {name: colour for name, (colour, _) in CURVES.items()})
    where = report["machine"]
    axis = "tensors of 64 elements, each with a gradient that backward has just allocated; both axes log"
    if missing:
        axis += f"\n{UNSTABLE}, and left out: {'; '.join(missing)}"
    circumstances = f"{where['cpu']}, {measured['threads']} threads, {where['date']}"
    panel.set_xlabel(f"{axis}\n{circumstances}", fontsize=9, labelpad=8)
    figure.savefig(path)


def draw_touched(report: Report, path: str) -> None:
    """Write the chart of steps by the number of rows in a sparse gradient, as an image.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it, unless the run was quick.
    path : str
        The file's name; its suffix selects the type of image.
    """
    found, missing = report["touched"] or [], list[str]()
    figure = require("matplotlib.figure", "bench").Figure(figsize=(9, 4.6), dpi=200, layout="constrained")
    panel = figure.subplots()
    ends, colours = dict[str, tuple[int, float]](), dict[str, str]()
    touched = [row["touched"] for row in found if row["implementation"] != WHOLE]
    ends_of_axis = min(touched), max(touched)
    for rows, colour in zip(dict.fromkeys(row["rows"] for row in found), COLOURS, strict=True):
        points, lines = list[tuple[int, float]](), dict[str, float]()
        for row in (row for row in found if row["rows"] == rows):
            seconds = row["seconds"]
            if seconds is None:
                missing.append(f"{row['implementation']} of {rows:,} ({value_of(row, 'seconds')})")
            elif row["implementation"] == WHOLE:
                panel.plot(ends_of_axis, [seconds] * 2, "--", color=colour, linewidth=1.2, zorder=1)
                lines[f"{rows:,} rows, dense"] = seconds
            else:
                points.append((row["touched"], seconds))
                lines[f"{rows:,} rows"] = seconds  # the last one stays
        panel.plot(*zip(*points, strict=True), marker="o", color=colour, linewidth=1.8, markersize=4.5)
        ends |= {name: (ends_of_axis[1], seconds) for name, seconds in lines.items()}
        colours |= dict.fromkeys(lines, colour)
    dress_curve(panel, "Time of AdaGrad's step over tables of 64 columns")
    label(panel, ends, colours)
    where = report["machine"]
    axis = "rows that a sparse gradient names, some of them more than once; dashed: dense gradients; both axes log"
    if missing:
        axis += f"\n{UNSTABLE}, and left out: {'; '.join(missing)}"
    panel.set_xlabel(f"{axis}\n{where['cpu']}, {where['threads']} threads", fontsize=9, labelpad=8)
    figure.savefig(path)


def dress_curve(panel: Any, title: str) -> None:
    """Set the title, axes and grid of a chart of curves."""
    ticker = require("matplotlib.ticker", "bench")
    panel.set_title(title, fontsize=10, loc="left")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.yaxis.set_major_formatter(lambda value, _: duration(value).replace(".00", "").replace(".0", ""))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(ticker.NullLocator())
    panel.tick_params(labelsize=8.5, length=0)
    panel.grid(color="0.88", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def label(panel: Any, ends: Mapping[str, tuple[int, float]], colours: Mapping[str, str]) -> None:
    """Label each curve at its right end, from the lowest up, without overlaps."""
    lowest = 0.0
    for name, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
        lowest = max(y, lowest * APART)
        panel.annotate(
            f"{name}, {duration(y)}",
            (x, lowest),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colours[name],
            annotation_clip=False,
        )
