"""The chart: how many times as long as fastopt the others take, by rule and workload."""

from __future__ import annotations

from typing import Any

from fastopt.extras import require

from .report import AFTER, Report, compared
from .workloads import WORKLOADS

# Colours that stay apart for colour-blind eyes (Okabe and Ito), and a shape for each besides.
STYLES = {
    "numpy": ("#0072B2", "o"),
    "torch-default": ("#E69F00", "s"),
    "torch-foreach": ("#009E73", "^"),
    "torch-fused": ("#D55E00", "D"),
}
LANE = 0.19  # of a workload's row, which is 1 high


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
