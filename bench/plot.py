"""The charts: how many times as long as fastopt the others take, and what a step in torch takes by tensor count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.extras import require

from .contenders import FASTOPT_TORCH
from .report import AFTER, Report, compared
from .text import duration
from .workloads import WORKLOADS

# Colours that stay apart for colour-blind eyes (Okabe and Ito), and a shape for each besides.
STYLES = {
    "numpy": ("#0072B2", "o"),
    "torch-default": ("#E69F00", "s"),
    "torch-foreach": ("#009E73", "^"),
    "torch-fused": ("#D55E00", "D"),
}
LANE = 0.19  # of a workload's row, which is 1 high

CURVES = {FASTOPT_TORCH: ("#000000", "o")} | {name: STYLES[name] for name in STYLES if name.startswith("torch")}
APART = 1.25  # the least factor between the heights of two labels


def draw(report: Report, path: str) -> None:
    """Write the chart as an image.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it.
    path : str
        Of the file; its suffix says which format.
    """
    figure_type = require("matplotlib.figure", "bench").Figure
    found = compared(report)
    workloads = list(dict.fromkeys(workload for workload, _ in found if not workload.endswith(AFTER)))
    rules = list(dict.fromkeys(rule for _, rule in found))

    figure = figure_type(figsize=(9, 1.7 + 0.68 * len(workloads)), dpi=200, layout="constrained")
    panels = figure.subplots(1, len(rules), sharex=True, sharey=True, squeeze=False)[0]
    for panel, rule in zip(panels, rules, strict=True):
        for row, workload in enumerate(workloads):
            for lane, name in enumerate(STYLES):
                warm = found[workload, rule].get(name)
                rested = found.get((workload + AFTER, rule), {}).get(name)
                mark(panel, row + (lane - 1.5) * LANE, warm, rested, *STYLES[name])
        dress(panel, rule, workloads)
    panels[0].set_yticks(range(len(workloads)), [title(workload) for workload in workloads])
    panels[0].set_ylim(len(workloads) - 0.5, -0.5)
    where = report["machine"]
    axis = "time of a step as a multiple of fastopt's, log scale; right of the line, fastopt is faster"
    figure.supxlabel(f"{axis}\n{where['cpu']}, {where['threads']} threads, {where['date']}", fontsize=9)
    names = [name for name in STYLES if any(name in ratios for ratios in found.values())]
    figure.legend(handles=legend(names), loc="outside upper center", ncols=len(names) + 2, frameon=False, fontsize=8.5)
    figure.savefig(path)


def title(workload: str) -> str:
    """Name a workload for people, in two lines where it is long."""
    name = WORKLOADS[workload].title if workload in WORKLOADS else workload
    return name.replace(" of ", "\nof ")


def mark(panel: Any, y: float, warm: float | None, rested: float | None, colour: str, marker: str) -> None:
    """Mark one implementation: filled back to back, hollow after other work, and a line between the two."""
    if warm is not None and rested is not None:
        panel.plot([warm, rested], [y, y], color=colour, linewidth=1, alpha=0.6, zorder=2)
    if warm is not None:
        panel.plot(warm, y, marker, color=colour, markersize=4.5, zorder=4)
    if rested is not None:
        panel.plot(rested, y, marker, color=colour, markersize=4.5, markerfacecolor="white", zorder=3)


def dress(panel: Any, rule: str, workloads: list[str]) -> None:
    """Draw what stands around the marks."""
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


def legend(names: list[str]) -> list[Any]:
    """Explain the colours and shapes, and filled and hollow."""
    line = require("matplotlib.lines", "bench").Line2D
    handles = [
        line([], [], color=STYLES[name][0], marker=STYLES[name][1], linestyle="", markersize=5, label=name)
        for name in names
    ]
    grey = {"color": "0.3", "marker": "o", "linestyle": "", "markersize": 5}
    handles.append(line([], [], label="back to back", **grey))
    handles.append(line([], [], label="after 1 ms of other work", markerfacecolor="white", **grey))
    return handles


def draw_curve(report: Report, path: str) -> None:
    """Write the chart of steps in torch by the number of tensors, as an image.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it where torch is installed.
    path : str
        Of the file; its suffix says which format.
    """
    measured = report["torch"]
    if measured is None:
        raise ValueError("there is no curve without torch")
    figure = require("matplotlib.figure", "bench").Figure(figsize=(9, 4.6), dpi=200, layout="constrained")
    panel = figure.subplots()
    ends = {}
    for name, (colour, marker) in CURVES.items():
        points = [
            (point["tensors"], point["seconds"]) for point in measured["curve"] if point["implementation"] == name
        ]
        width = 2.2 if name == FASTOPT_TORCH else 1.4
        panel.plot(*zip(*points, strict=True), marker=marker, color=colour, linewidth=width, markersize=4.5)
        ends[name] = points[-1]
    dress_curve(panel)
    label(panel, ends)
    where = report["machine"]
    axis = "tensors of 64 elements, each with a gradient that backward has just allocated; both axes log"
    circumstances = f"{where['cpu']}, {measured['threads']} threads, {where['date']}"
    panel.set_xlabel(f"{axis}\n{circumstances}", fontsize=9, labelpad=8)
    figure.savefig(path)


def dress_curve(panel: Any) -> None:
    """Draw what stands around the curves."""
    ticker = require("matplotlib.ticker", "bench")
    panel.set_title("Time of a momentum step in PyTorch", fontsize=10, loc="left")
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


def label(panel: Any, ends: Mapping[str, tuple[int, float]]) -> None:
    """Name each curve at its right end, from the lowest up, none on top of another."""
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
            color=CURVES[name][0],
            annotation_clip=False,
        )
