"""The command ``fastopt bench --gpu``: check, measure, print, write."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

from fastopt.progress import track

from ..command import check_files, say
from ..contenders import RULES
from . import plot as chart
from . import report
from .check import checks, count
from .contenders import WORKLOADS, Contender, contenders
from .device import open_device
from .measure import GRAPH_WORKLOADS, Budget, comparisons, graphs, parts

SECONDS, ROUNDS = 400.0, (7, 200)  # with what a first run compiles, and a last part that takes longer, below 480
QUICK_SECONDS, QUICK_ROUNDS = 90.0, (3, 50)


def run(quick: bool, json: str | None, plot: str | None, baseline: str | None = None) -> None:
    """Check that updates on the GPU are right, then measure everyone there, print the tables, and write files.

    Parameters
    ----------
    quick : bool
        Whether fewer rounds will do.
    json, plot : str or None
        Files to write, of the data and of the chart.
    baseline : str, optional
        The contender that speed-ups are over: torch's fused step, else CuPy's expressions.

    Raises
    ------
    ValueError, OSError
        If there is no such baseline or no GPU here, a file cannot be written, or an update is wrong; before anything is
        measured.
    ImportError
        If something is not installed that this needs.
    """
    notes: list[str] = []

    def note(message: str) -> None:
        if message not in notes:
            notes.append(message)
            say(message)

    device = open_device(note)
    everyone = contenders(device)
    baseline = chosen(baseline, everyone)
    check_files(json, plot)
    fewest, most = QUICK_ROUNDS if quick else ROUNDS
    budget = Budget(QUICK_SECONDS if quick else SECONDS, parts(), fewest, most)
    right = track(checks(device, everyone, note), "Checking", total=count(device, everyone))
    checked = sum(1 for _ in right)
    steps = track(comparisons(device, everyone, budget, note), "Measuring", total=len(WORKLOADS) * len(RULES))
    timings = [timing for timing in steps if timing is not None]
    steps = track(graphs(device, everyone, budget, note), "Measuring graphs", total=len(GRAPH_WORKLOADS))
    replays = [timing for timing in steps if timing is not None]
    found: report.Report = {
        "machine": report.machine(device, baseline, quick),
        "checked": checked,
        "rows": report.rows(timings, baseline),
        "ratios": report.ratios(timings, everyone),
        "graphs": report.replays(replays),
        "notes": notes,
    }
    report.show(found)
    if json is not None:
        Path(json).write_text(jsonlib.dumps(found, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        chart.draw(found, plot)


def chosen(baseline: str | None, everyone: dict[str, Contender]) -> str:
    """Return the baseline, or raise where there is none of that name."""
    if baseline is None:
        baseline = "torch-fused" if "torch-fused" in everyone else "cupy"
    if baseline not in everyone:
        raise ValueError(f"baseline {baseline!r} is not among {', '.join(everyone)}")
    return baseline
