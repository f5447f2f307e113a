"""The results of a run on a GPU, as plain data for the JSON file."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from fastopt.info import library

from ..contenders import RULES
from ..report import cpu_model, versions
from ..rounds import Figure, reasons
from .contenders import WORKLOADS, Contender
from .device import Described, Device
from .measure import GRAPH, Both

TRAININGS = {"mlp": "an MLP", "gpt": "a small GPT"}  # whose whole iterations are measured

Entry = TypeVar("Entry", bound=Mapping[str, Any])


class Machine(Described):
    """Where, when and against which baseline a run measured."""

    cpu: str
    versions: dict[str, str]
    date: str
    baseline: str
    quick: bool


class Row(TypedDict):
    """One contender: median seconds of GPU and host, the GPU's speed-up over the baseline (None without a baseline).

    `gbps` in 10^9 bytes a second. An unstable figure is None, here and below, and `unstable` has the reason. Files of
    older versions do not have it.
    """

    workload: str
    rule: str
    implementation: str
    gpu_seconds: float | None
    host_seconds: float | None
    speedup: float | None
    gbps: float | None
    of_copy: float | None
    unstable: dict[str, str]


class Ratio(TypedDict):
    """How many times as long as its subject an implementation takes, on GPU and host: medians over rounds."""

    workload: str
    rule: str
    implementation: str
    subject: str
    gpu: float | None
    host: float | None
    rounds: int
    unstable: dict[str, str]


class Replay(TypedDict):
    """A step without and with a graph: median seconds, and how many times as long the former takes."""

    workload: str
    implementation: str
    eager_gpu: float | None
    eager_host: float | None
    graph_gpu: float | None
    graph_host: float | None
    gpu: float | None
    host: float | None
    unstable: dict[str, str]


class Launch(TypedDict):
    """A launch of an empty kernel, by CuPy or by the extension, with an argument of so many bytes: median seconds."""

    implementation: str
    bytes: int
    gpu_seconds: float | None
    host_seconds: float | None
    unstable: dict[str, str]


class Compilation(TypedDict):
    """Seconds of the first steps of `torch-compiled`, which compile; the first of a run also loads the compiler."""

    workload: str
    rule: str
    seconds: float


class Iteration(TypedDict):
    """A whole training iteration: median seconds, those of the host alone, and how many times as long as fastopt's."""

    workload: str
    implementation: str
    parameters: int
    tensors: int
    seconds: float | None
    host_seconds: float | None
    ratio: float | None
    rounds: int
    unstable: dict[str, str]


class Stage(TypedDict):
    """A step that clips or averages, or a plain one: median seconds, and ratios, on GPU and host.

    `bytes_per_element` counts what it reads and writes, and `of_copy` goes by that. `over_plain_gpu` and
    `over_plain_host`: how many times as long as the plain step of the same implementation; `gpu` and `host`: as its
    subject, fastopt's step with the same stage.
    """

    workload: str
    rule: str
    stage: str
    implementation: str
    subject: str
    bytes_per_element: int
    gpu_seconds: float | None
    host_seconds: float | None
    of_copy: float | None
    over_plain_gpu: float | None
    over_plain_host: float | None
    gpu: float | None
    host: float | None
    rounds: int
    unstable: dict[str, str]


class Report(TypedDict):
    """Everything that a run measured; `checked` counts the checks before it, `notes` say what was left out.

    `missing` names the parts that are still to be measured.
    """

    machine: Machine
    checked: int
    rows: list[Row]
    ratios: list[Ratio]
    compiled: list[Compilation]
    graphs: list[Replay]
    stages: list[Stage]
    launches: list[Launch]
    iterations: list[Iteration]
    notes: list[str]
    missing: list[str]


@dataclass(frozen=True)
class Figures:
    """What one part adds to a report; empty if it was left out."""

    rows: Sequence[Row] = ()
    ratios: Sequence[Ratio] = ()
    compiled: Sequence[Compilation] = ()
    graphs: Sequence[Replay] = ()
    stages: Sequence[Stage] = ()
    launches: Sequence[Launch] = ()
    iterations: Sequence[Iteration] = ()


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
    return [row(both, name, baseline) for both in timings for name in both.gpu.names]


def row(both: Both, name: str, baseline: str) -> Row:
    """Make the row of one contestant."""
    gpu, host = both
    seconds, host_seconds = gpu.rounds.seconds(name), host.rounds.seconds(name)
    speedup = gpu.rounds.ratio(baseline, name) if baseline in gpu.names else Figure(None)
    gbps, of_copy = gpu.gbps(name), gpu.of_limit(name)
    return {
        "workload": gpu.workload,
        "rule": gpu.rule,
        "implementation": name,
        "gpu_seconds": seconds.value,
        "host_seconds": host_seconds.value,
        "speedup": speedup.value,
        "gbps": gbps.value,
        "of_copy": of_copy.value,
        "unstable": reasons(
            gpu_seconds=seconds, host_seconds=host_seconds, speedup=speedup, gbps=gbps, of_copy=of_copy
        ),
    }


def ratios(timings: Sequence[Both], contenders: Mapping[str, Contender]) -> list[Ratio]:
    """Compare each other contestant of each timing with fastopt's contestant of the same library."""
    pairs = ((both, name, contenders[name].subject) for both in timings for name in both.gpu.names)
    return [ratio(both, name, subject) for both, name, subject in pairs if name != subject]


def ratio(both: Both, name: str, subject: str) -> Ratio:
    """Compare one contestant with its subject."""
    gpu, host = (side.rounds.ratio(name, subject) for side in both)
    return {
        "workload": both.gpu.workload,
        "rule": both.gpu.rule,
        "implementation": name,
        "subject": subject,
        "gpu": gpu.value,
        "host": host.value,
        "rounds": len(both.gpu.rounds.ratios(name, subject)),
        "unstable": reasons(gpu=gpu, host=host),
    }


def replays(timings: Sequence[Both]) -> list[Replay]:
    """Compare steps with their graphs."""
    return [replay(both, name) for both in timings for name in both.gpu.names if name + GRAPH in both.gpu.names]


def replay(both: Both, name: str) -> Replay:
    """Compare a step with its graph."""
    eager_gpu, eager_host = (side.rounds.seconds(name) for side in both)
    graph_gpu, graph_host = (side.rounds.seconds(name + GRAPH) for side in both)
    gpu, host = (side.rounds.ratio(name, name + GRAPH) for side in both)
    return {
        "workload": both.gpu.workload,
        "implementation": name,
        "eager_gpu": eager_gpu.value,
        "eager_host": eager_host.value,
        "graph_gpu": graph_gpu.value,
        "graph_host": graph_host.value,
        "gpu": gpu.value,
        "host": host.value,
        "unstable": reasons(
            eager_gpu=eager_gpu,
            eager_host=eager_host,
            graph_gpu=graph_gpu,
            graph_host=graph_host,
            gpu=gpu,
            host=host,
        ),
    }


def empty(machine: Machine, notes: list[str], missing: list[str]) -> Report:
    """Begin a report."""
    return {
        "machine": machine,
        "checked": 0,
        "rows": [],
        "ratios": [],
        "compiled": [],
        "graphs": [],
        "stages": [],
        "launches": [],
        "iterations": [],
        "notes": notes,
        "missing": missing,
    }


def add(report: Report, part: Figures) -> None:
    """Add a part's figures to a report, in the order of the workloads, whichever run measured them."""
    report["rows"] = in_order(report["rows"], part.rows)
    report["ratios"] = in_order(report["ratios"], part.ratios)
    report["compiled"] = in_order(report["compiled"], part.compiled)
    report["graphs"] = in_order(report["graphs"], part.graphs)
    report["stages"] = in_order(report["stages"], part.stages)
    report["launches"] = [*report["launches"], *part.launches]
    report["iterations"] = in_order(report["iterations"], part.iterations)


def in_order(entries: Sequence[Entry], more: Sequence[Entry]) -> list[Entry]:
    """Sort by workload and rule; entries that share both keep their order."""
    workloads, rules = ({name: at for at, name in enumerate(names)} for names in ((*WORKLOADS, *TRAININGS), RULES))

    def position(entry: Entry) -> tuple[int, int]:
        return workloads.get(entry["workload"], len(workloads)), rules.get(entry.get("rule", ""), len(rules))

    return sorted([*entries, *more], key=position)
