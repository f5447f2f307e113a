"""What came out: plain data, which goes into the JSON file, and its tables, for the terminal and for the pages."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import fastopt
from fastopt.extras import require

from . import torch_report
from .embedding import Embedded
from .iteration import Iterations
from .measure import MODES, Timing
from .schedules import Evaluations
from .text import Lines, duration, markdown_table, table, times

SUBJECT = "fastopt"
LIBRARIES = ("fastopt", "numpy", "numba", "torch", "deepspeed")
AFTER = list(MODES)[1]


class Machine(TypedDict):
    """Where, when and against what it was measured."""

    cpu: str
    cores: int
    threads: int
    platform: str
    versions: dict[str, str]
    date: str
    baseline: str
    quick: bool


class Row(TypedDict):
    """One contender: median seconds of a step, speed-up over the baseline, 10^9 bytes a second, share of the limit."""

    workload: str
    rule: str
    implementation: str
    seconds: float
    speedup: float
    gbps: float
    of_limit: float


class Ratio(TypedDict):
    """How many times as long as fastopt another implementation takes, as the median over so many rounds."""

    workload: str
    rule: str
    implementation: str
    ratio: float
    rounds: int


class Report(TypedDict):
    """All that was measured; `iteration` is None where the lab's data are not installed.

    `torch` is None without torch. Files of older versions have no entry `schedules`, `torch` or `embedded`.
    """

    machine: Machine
    rows: list[Row]
    ratios: list[Ratio]
    iteration: Iterations | None
    schedules: Evaluations | None
    embedded: Embedded | None
    torch: torch_report.InTorch | None


def cpu_model() -> str:
    """Name the processor, as the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Name the libraries that are installed, and Python."""
    installed = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in installed}


def machine(baseline: str, quick: bool) -> Machine:
    """Describe this machine and run."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": fastopt.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "baseline": baseline,
        "quick": quick,
    }


def rows(timings: Sequence[Timing], baseline: str) -> list[Row]:
    """Make a row for each contestant of each timing."""
    return [
        {
            "workload": timing.workload,
            "rule": timing.rule,
            "implementation": name,
            "seconds": timing.typical(name),
            "speedup": timing.ratio(baseline, name),
            "gbps": timing.gbps(name),
            "of_limit": timing.of_limit(name),
        }
        for timing in timings
        for name in timing.seconds
    ]


def ratios(timings: Sequence[Timing]) -> list[Ratio]:
    """Compare fastopt with each other contestant of each timing."""
    return [
        {
            "workload": timing.workload,
            "rule": timing.rule,
            "implementation": name,
            "ratio": timing.ratio(name, SUBJECT),
            "rounds": len(timing.seconds[name]),
        }
        for timing in timings
        for name in timing.seconds
        if name != SUBJECT
    ]


def compared(report: Report) -> dict[tuple[str, str], dict[str, float]]:
    """Arrange fastopt's ratios: (workload, rule) -> implementation -> ratio."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for entry in report["ratios"]:
        found.setdefault((entry["workload"], entry["rule"]), {})[entry["implementation"]] = entry["ratio"]
    return found


def comparison(report: Report) -> Lines:
    """Make the compact table, its headings first: a workload and rule per line, both modes in each cell."""
    found = compared(report)
    own = {(row["workload"], row["rule"]): row["seconds"] for row in report["rows"] if row["implementation"] == SUBJECT}
    names = list(dict.fromkeys(entry["implementation"] for entry in report["ratios"]))
    lines = [["workload", "rule", SUBJECT, *names]]
    for workload, rule in found:
        if not workload.endswith(AFTER):
            modes = [key for key in ((workload, rule), (workload + AFTER, rule)) if key in found]
            cells = [" / ".join(times(found[mode][name]) for mode in modes) for name in names]
            lines.append([workload, rule, " / ".join(duration(own[mode]) for mode in modes), *cells])
    return lines


def iteration_lines(report: Report) -> Iterator[str]:
    """Say what a whole training iteration gains, rule by rule."""
    measured = report["iteration"]
    if measured is None:
        return
    yield (
        f"A whole training iteration (the lab's network on the digits, {measured['parameters']:,} parameters, "
        f"batches of {measured['batch']}), with NumPy's update and with fastopt's:"
    )
    for entry in measured["rules"]:
        yield (
            f"  {entry['rule']:8}  {duration(entry['seconds_before'])} -> {duration(entry['seconds_after'])}: "
            f"{times(entry['gain'])}; the update's share {entry['share_before']:.0%} -> {entry['share_after']:.0%}"
        )


def evaluated(measured: Evaluations) -> Lines:
    """Make the table of schedules, its headings first."""
    lines = [["schedule", f"{measured['steps']:,} steps", "against np.cos", "one step"]]
    for entry in measured["rows"]:
        numbers = duration(entry["seconds"]), times(entry["ratio"]), duration(entry["call_seconds"])
        lines.append([entry["schedule"], *numbers])
    return lines


def spread(measured: Evaluations) -> str:
    """Say how fast schedules are, from the fastest to the slowest."""
    rows = sorted(measured["rows"], key=lambda row: row["ratio"])
    ends = " to ".join(f"{times(row['ratio'])} ({row['schedule']})" for row in (rows[0], rows[-1]))
    slowest = max(row["call_seconds"] for row in rows)
    return (
        f"A schedule over {measured['steps']:,} steps takes {ends} the time of np.cos over the same array; "
        f"one step by itself takes {duration(slowest)} at most."
    )


def added(measured: Evaluations) -> str:
    """Say what a schedule adds to a step of an optimizer."""
    text = f"Cosine in the place of a number adds {duration(measured['added_seconds'])} to {SUBJECT}'s momentum step"
    if measured["torch_seconds"] is not None:
        text += f"; the step of torch's CosineAnnealingLR takes {duration(measured['torch_seconds'])}"
    return text + "."


def in_loops(measured: Embedded) -> Lines:
    """Make the table of embedded updates, its headings first: a rule and loop per line."""
    lines = [["rule", "loop", "a step", "opt.step", "numpy"]]
    for row in measured["rows"]:
        ratios = times(row["of_step"]), times(row["of_numpy"])
        lines.append([row["rule"], row["loop"], duration(row["seconds"]), *ratios])
    return lines


def about_loops(measured: Embedded) -> str:
    """Say what the table of embedded updates is about."""
    return (
        f"Embedded in loops of Numba, C++ and C: a step of the MLP's {measured['parameters']:,} parameters, and how "
        f"many times as long {SUBJECT}'s opt.step and NumPy take, back to back."
    )


def single_call(measured: Embedded) -> str:
    """Say what one call through a pointer takes, where that was measured."""
    if measured["call_seconds"] is None:
        return ""
    call = f"One call through the pointer on {measured['elements']} elements"
    return f"{call} takes {1e9 * measured['call_seconds']:.0f} ns from C."


def show(report: Report) -> None:
    """Print the tables, and what a training iteration gains."""
    console_type = require("rich.console", "bench").Console
    console = console_type(highlight=False)
    if not console.is_terminal:
        console = console_type(highlight=False, width=128)

    console.print(full_table(report))
    console.print(
        "time: median of a step. against ...: median of the ratios within each round. GB/s: 10^9 bytes that the rule\n"
        "reads and writes. limit: a plain compiled loop with the same traffic, in the same rounds.\n"
    )
    title = f"{SUBJECT}, and how many times as long others take: back to back / after other work"
    console.print(table(comparison(report), 2, title))
    for line in iteration_lines(report):
        console.print(line)
    if measured := report.get("schedules"):
        console.print()
        console.print(table(evaluated(measured), 1, "Schedules: a vector of steps, and one step by itself"))
        console.print(added(measured))
    if loops := report.get("embedded"):
        console.print()
        console.print(table(in_loops(loops), 2, "Embedded, and how many times as long others take"))
        console.print(single_call(loops))
    if steps := report.get("torch"):
        torch_report.show(steps, console)


def full_table(report: Report) -> Any:
    """Make the table of everything, a section for each workload and rule."""
    made = require("rich.table", "bench").Table("workload", "rule", "implementation")
    made.title = f"Optimizer steps on {report['machine']['cpu']}"
    for heading in ("time", f"against {report['machine']['baseline']}", "GB/s", "of the limit"):
        made.add_column(heading, justify="right")
    last = None
    for row in report["rows"]:
        group = row["workload"], row["rule"]
        if group != last:
            made.add_section()
        made.add_row(
            *(group if group != last else ("", "")),
            row["implementation"],
            duration(row["seconds"]),
            times(row["speedup"]),
            f"{row['gbps']:.3g}",
            f"{row['of_limit']:.0%}",
        )
        last = group
    return made


def markdown(report: Report) -> str:
    """Write the tables of docs/benchmarks.md from a report, or from what `json.load` makes of its file.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it.

    Returns
    -------
    str
    """
    lines = [
        f"{circumstances(report)} The time of a step of {SUBJECT}, and how many times as long the others take: "
        "back to back / after a millisecond of other work.",
        "",
        *markdown_table(comparison(report), 2),
        *iteration_markdown(report),
    ]
    if costs := report.get("schedules"):
        lines += ["", f"{spread(costs)} {added(costs)}"]
    if loops := report.get("embedded"):
        lines += ["", *loops_lines(loops)]
    if steps := report.get("torch"):
        lines += ["", *torch_report.markdown(steps)]
    return "\n".join(lines) + "\n"


def circumstances(report: Report) -> str:
    """Say where, by what and when it was measured."""
    where = report["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads; {libraries}; {where['date']}."


def iteration_markdown(report: Report) -> Iterator[str]:
    """Write the table of training iterations, line by line."""
    measured = report["iteration"]
    if measured is None:
        return
    yield ""
    yield (
        f"A whole training iteration, gradients included, of a network of {measured['parameters']:,} parameters "
        f"on batches of {measured['batch']} digits, with NumPy's update and with fastopt's:"
    )
    yield ""
    lines = [["rule", "with NumPy", "update's share", "with fastopt", "update's share", "the iteration gains"]]
    for entry in measured["rules"]:
        before = duration(entry["seconds_before"]), f"{entry['share_before']:.0%}"
        after = duration(entry["seconds_after"]), f"{entry['share_after']:.0%}"
        lines.append([entry["rule"], *before, *after, times(entry["gain"])])
    yield from markdown_table(lines, 1)


def loops_lines(measured: Embedded) -> Iterator[str]:
    """Write the table of embedded updates, line by line."""
    yield from (about_loops(measured), "", *markdown_table(in_loops(measured), 2))
    if call := single_call(measured):
        yield from ("", call)


def loops_markdown(report: Report) -> str:
    """Write the table of embedded updates for their page, where the benchmark has measured them."""
    measured = report.get("embedded")
    return "\n".join([circumstances(report), "", *loops_lines(measured)]) + "\n" if measured else ""


def schedules_markdown(report: Report) -> str:
    """Write the table of schedules for their page, where the benchmark has measured them."""
    measured = report.get("schedules")
    return "\n".join(markdown_table(evaluated(measured), 1)) + "\n" if measured else ""


def torch_markdown(report: Report) -> str:
    """Write the tables of steps in torch for the page about it, where the benchmark has measured them."""
    measured = report.get("torch")
    return "\n".join([circumstances(report), "", *torch_report.markdown(measured)]) + "\n" if measured else ""
