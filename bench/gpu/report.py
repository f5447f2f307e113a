"""What came out of a run on a GPU: plain data, which goes into the JSON file, and its tables."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from fastopt.extras import require
from fastopt.info import library

from ..report import cpu_model, versions
from ..text import Lines, duration, markdown_table, table, times
from .contenders import FASTOPT, SUBJECTS, WORKLOADS, Contender
from .device import Described, Device
from .measure import GRAPH, Both

UNMEASURED = "The figures on GPUs are still to be measured: no run of `fastopt bench --gpu` is committed yet.\n"

EXPLAINED = (
    "In each cell the GPU's time, between events around steps that were enqueued before it began, and the host's, for "
    "enqueueing them without waiting. Of a copy: the rule's bytes per second as a share of what a copy within the "
    "device's memory reads and writes, of as many bytes, in the same rounds; what fits into the caches can exceed it."
)


class Machine(Described):
    """Where, when and against what it was measured."""

    cpu: str
    versions: dict[str, str]
    date: str
    baseline: str
    quick: bool


class Row(TypedDict):
    """One contender: median seconds of GPU and host, the GPU's speed-up over the baseline (None where that is not).

    `gbps` in 10^9 bytes a second.
    """

    workload: str
    rule: str
    implementation: str
    gpu_seconds: float
    host_seconds: float
    speedup: float | None
    gbps: float
    of_copy: float


class Ratio(TypedDict):
    """How many times as long as its subject's an implementation's GPU and host take: medians over so many rounds."""

    workload: str
    rule: str
    implementation: str
    subject: str
    gpu: float
    host: float
    rounds: int


class Replay(TypedDict):
    """A step as it is and as a graph replays it: median seconds, and how many times as long the former takes."""

    workload: str
    implementation: str
    eager_gpu: float
    eager_host: float
    graph_gpu: float
    graph_host: float
    gpu: float
    host: float


class Report(TypedDict):
    """All that was measured; `checked` counts the checks that came before, `notes` say what was left out."""

    machine: Machine
    checked: int
    rows: list[Row]
    ratios: list[Ratio]
    graphs: list[Replay]
    notes: list[str]


def machine(device: Device, baseline: str, quick: bool) -> Machine:
    """Describe the device and the run."""
    return {
        **device.described(),
        "cpu": cpu_model(),
        "versions": versions() | {"cupy": library("cupy")},
        "date": datetime.date.today().isoformat(),
        "baseline": baseline,
        "quick": quick,
    }


def rows(timings: Sequence[Both], baseline: str) -> list[Row]:
    """Make a row for each contestant of each timing."""
    return [
        {
            "workload": gpu.workload,
            "rule": gpu.rule,
            "implementation": name,
            "gpu_seconds": gpu.typical(name),
            "host_seconds": host.typical(name),
            "speedup": gpu.ratio(baseline, name) if baseline in gpu.seconds else None,
            "gbps": gpu.gbps(name),
            "of_copy": gpu.of_limit(name),
        }
        for gpu, host in timings
        for name in gpu.seconds
    ]


def ratios(timings: Sequence[Both], contenders: Mapping[str, Contender]) -> list[Ratio]:
    """Compare each other contestant of each timing with fastopt's of the same library."""
    return [
        {
            "workload": gpu.workload,
            "rule": gpu.rule,
            "implementation": name,
            "subject": subject,
            "gpu": gpu.ratio(name, subject),
            "host": host.ratio(name, subject),
            "rounds": len(gpu.seconds[name]),
        }
        for gpu, host in timings
        for name, subject in ((name, contenders[name].subject) for name in gpu.seconds)
        if name != subject
    ]


def replays(timings: Sequence[Both]) -> list[Replay]:
    """Compare steps with their graphs."""
    return [
        {
            "workload": gpu.workload,
            "implementation": name,
            "eager_gpu": gpu.typical(name),
            "eager_host": host.typical(name),
            "graph_gpu": gpu.typical(name + GRAPH),
            "graph_host": host.typical(name + GRAPH),
            "gpu": gpu.ratio(name, name + GRAPH),
            "host": host.ratio(name, name + GRAPH),
        }
        for gpu, host in timings
        for name in gpu.seconds
        if name + GRAPH in gpu.seconds
    ]


def compared(report: Report) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """Arrange the ratios: (workload, rule) -> implementation -> (GPU's, host's)."""
    found: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for entry in report["ratios"]:
        ratios = entry["gpu"], entry["host"]
        found.setdefault((entry["workload"], entry["rule"]), {})[entry["implementation"]] = ratios
    return found


def comparison(report: Report, subject: str) -> Lines:
    """Make the table of one of fastopt's, its headings first: a workload and rule per line, both times in each cell."""
    own = {(row["workload"], row["rule"]): row for row in report["rows"] if row["implementation"] == subject}
    names = list(dict.fromkeys(entry["implementation"] for entry in report["ratios"] if entry["subject"] == subject))
    found = compared(report)
    lines = [["workload", "rule", subject, "of a copy", *names]]
    for key, row in own.items():
        others = [found[key].get(name) for name in names]
        cells = ["" if other is None else " / ".join(map(times, other)) for other in others]
        both = f"{duration(row['gpu_seconds'])} / {duration(row['host_seconds'])}"
        lines.append([*key, both, f"{row['of_copy']:.0%}", *cells])
    return lines


def replayed(report: Report) -> Lines:
    """Make the table of graphs, its headings first."""
    lines = [["workload", "implementation", "step by step", "replayed", "the graph gains"]]
    for entry in report["graphs"]:
        eager = f"{duration(entry['eager_gpu'])} / {duration(entry['eager_host'])}"
        graph = f"{duration(entry['graph_gpu'])} / {duration(entry['graph_host'])}"
        gain = f"{times(entry['gpu'])} / {times(entry['host'])}"
        lines.append([entry["workload"], entry["implementation"], eager, graph, gain])
    return lines


def tables(report: Report) -> Iterator[tuple[str, Lines]]:
    """Yield the tables that have lines, each after what it is about."""
    for subject in SUBJECTS:
        lines = comparison(report, subject)
        if len(lines) > 1:
            yield f"A step of {subject}, and how many times as long others take: GPU / host.", lines
    if report["graphs"]:
        yield "A momentum step, enqueued anew each time and replayed as a CUDA graph: GPU / host.", replayed(report)


def bound(report: Report) -> Iterator[str]:
    """Say what the host spends on a step over many arrays."""
    for row in report["rows"]:
        if (row["workload"], row["rule"], row["implementation"]) == ("resnet50", "momentum", FASTOPT):
            tensors = len(WORKLOADS["resnet50"].shapes)
            yield (
                f"For a momentum step over {tensors} bound arrays of CuPy the host takes "
                f"{duration(row['host_seconds'])}."
            )


def circumstances(report: Report) -> str:
    """Say where, by what and when it was measured."""
    where = report["machine"]
    libraries = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    cuda = f"driver for CUDA {where['driver']}, CUDA {where['runtime']} in CuPy"
    if where["torch_runtime"] is not None:
        cuda += f", {where['torch_runtime']} in torch"
    return f"{where['gpu']} ({where['cpu']}); {cuda}; {libraries}; {where['date']}."


def show(report: Report) -> None:
    """Print the tables."""
    console_type = require("rich.console", "bench").Console
    console = console_type(highlight=False)
    if not console.is_terminal:
        console = console_type(highlight=False, width=140)
    console.print(full_table(report))
    for title, lines in tables(report):
        console.print(table(lines, 2, title))
    for line in (EXPLAINED, *bound(report), f"{report['checked']} checks against the formulas came first."):
        console.print(line)


def full_table(report: Report) -> Any:
    """Make the table of everything."""
    headings = ["GPU", "host", f"against {report['machine']['baseline']}", "GB/s", "of a copy"]
    lines = [["workload", "rule", "implementation", *headings]]
    for row in report["rows"]:
        seconds = duration(row["gpu_seconds"]), duration(row["host_seconds"])
        speedup = "" if row["speedup"] is None else times(row["speedup"])
        rates = f"{row['gbps']:.4g}", f"{row['of_copy']:.0%}"
        lines.append([row["workload"], row["rule"], row["implementation"], *seconds, speedup, *rates])
    return table(lines, 3, f"Optimizer steps on {report['machine']['gpu']}")


def markdown(report: Report) -> str:
    """Write the README's tables from a report, or from what `json.load` makes of its file."""
    lines = [f"On a GPU: {circumstances(report)} {EXPLAINED}"]
    for title, found in tables(report):
        lines += ["", title, "", *markdown_table(found, 2)]
    remarks = [*bound(report), *(f"{note[:1].upper()}{note[1:]}." for note in report["notes"])]
    if remarks:
        lines += ["", " ".join(remarks)]
    return "\n".join(lines) + "\n"


def markdown_of(run: Path) -> str:
    """Write the README's tables of a committed run, or that there is none."""
    return markdown(json.loads(run.read_text(encoding="utf-8"))) if run.exists() else UNMEASURED
