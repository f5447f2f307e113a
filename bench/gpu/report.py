"""The tables of a run on a GPU, for the terminal and for the pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastopt.progress import console

from ..contenders import FASTOPT_TORCH, FRESH
from ..stages import CALLED
from ..text import UNSTABLE, Lines, duration, markdown_table, percent, table, times, unstable
from ..torch_report import least
from ..workloads import title as title_of
from .contenders import FASTOPT, SUBJECTS, WORKLOADS
from .figures import TRAININGS, Ratio, Report, Row, Stage
from .launches import CUPY, EXTENSION
from .saved import read
from .stages import PLAIN

UNMEASURED = "The figures on GPUs are still to be measured: no run of `fastopt bench --gpu` is committed yet.\n"

EXPLAINED = (
    "In each cell the GPU's time, between events around steps that were enqueued before it began, and the host's, for "
    "enqueueing them without waiting. Of a copy: the rule's bytes per second as a share of what a copy within the "
    "device's memory reads and writes, of as many bytes, in the same rounds; what fits into the caches can exceed it."
)
FUSED = "torch-fused"
WIDTH = 150  # of the output if it is not a terminal
LAUNCHED_BY = {CUPY: "CuPy", EXTENSION: "fastopt's extension"}
STAGES = (
    "Steps that clip gradients by their norm (max_grad_norm) or average parameters (ema_decay), and plain ones: GPU / "
    "host. Of a copy: by the bytes of the step with its stage. By bytes: how many times as many as the plain step's, "
    "which is how many times as long a step takes at the memory's limit. Then how many times as long others take: "
    f"{FUSED}, after clip_grad_norm_ or before AveragedModel, or {CALLED} called before a plain step. "
    "AveragedModel waits for the GPU, so that each of its times includes the other."
)
FASTEST = {FASTOPT_TORCH: "torch's fastest", FASTOPT: "CuPy's fastest"}


def compared(report: Report) -> dict[tuple[str, str], dict[str, Ratio]]:
    """Arrange the ratios: (workload, rule) -> implementation -> GPU's and host's."""
    found: dict[tuple[str, str], dict[str, Ratio]] = {}
    for entry in report["ratios"]:
        found.setdefault((entry["workload"], entry["rule"]), {})[entry["implementation"]] = entry
    return found


def sides(entry: Ratio | Stage) -> tuple[float | None, float | None]:
    """Return the GPU's ratio and the host's."""
    return entry["gpu"], entry["host"]


def named(workload: str) -> str:
    """Return a workload's title."""
    return title_of(workload, WORKLOADS)


def comparison(report: Report, subject: str) -> Lines:
    """Make the table of one subject, its headings first: a workload and rule per line, both times in each cell."""
    names = list(dict.fromkeys(entry["implementation"] for entry in report["ratios"] if entry["subject"] == subject))
    found = compared(report)
    lines = [["workload", "rule", subject, "of a copy", *names]]
    for key, row in own_rows(report, subject).items():
        entries = [found.get(key, {}).get(name) for name in names]
        cells = ["" if entry is None else " / ".join(map(times, sides(entry))) for entry in entries]
        lines.append([named(key[0]), key[1], *own_cells(row), *cells])
    return lines


def summary(report: Report) -> Lines:
    """Make the summary's table, its headings first: a workload and rule per line, and each library's fastest other.

    The fastest on the GPU and on the host may be two different ones.
    """
    found = compared(report)
    keys = list(dict.fromkeys((row["workload"], row["rule"]) for row in report["rows"]))
    headings, lines = ["workload", "rule"], [[named(workload), rule] for workload, rule in keys]
    for subject, fastest in FASTEST.items():
        own = own_rows(report, subject)
        others = {entry["implementation"] for entry in report["ratios"] if entry["subject"] == subject} - {FRESH}
        headings += [subject, "of a copy", fastest] if own else []
        for line, key in zip(lines, keys, strict=True):
            if key in own:
                ratios = [sides(entry) for name, entry in found.get(key, {}).items() if name in others]
                line += [*own_cells(own[key]), " / ".join(times(least(side)) for side in zip(*ratios, strict=True))]
    return [headings, *lines]


def own_rows(report: Report, subject: str) -> dict[tuple[str, str], Row]:
    """Return the rows of one subject: (workload, rule) -> row."""
    return {(row["workload"], row["rule"]): row for row in report["rows"] if row["implementation"] == subject}


def own_cells(row: Row) -> tuple[str, str]:
    """Write a subject's times, and its share of a copy's bandwidth."""
    return both(row["gpu_seconds"], row["host_seconds"]), percent(row["of_copy"])


def both(gpu: float | None, host: float | None) -> str:
    """Write the GPU's seconds and the host's."""
    return f"{duration(gpu)} / {duration(host)}"


def replayed(report: Report) -> Lines:
    """Make the table of graphs, its headings first."""
    lines = [["workload", "implementation", "step by step", "replayed", "the graph gains"]]
    for entry in report["graphs"]:
        eager, graph = both(entry["eager_gpu"], entry["eager_host"]), both(entry["graph_gpu"], entry["graph_host"])
        speedup = f"{times(entry['gpu'])} / {times(entry['host'])}"
        lines.append([named(entry["workload"]), entry["implementation"], eager, graph, speedup])
    return lines


def staged(report: Report) -> Lines:
    """Make the table of stages, its headings first: a workload, rule, stage and step of fastopt's per line."""
    steps = {
        (entry["workload"], entry["rule"], entry["implementation"], entry["stage"]): entry for entry in report["stages"]
    }
    headings = ["its time", "of a copy", "over plain", "by bytes", FUSED, "called"]
    lines = [["workload", "rule", "stage", "step of", *headings]]
    for (workload, rule, subject, stage), own in steps.items():
        if subject not in SUBJECTS or stage == CALLED:
            continue
        measured = both(own["gpu_seconds"], own["host_seconds"]), percent(own["of_copy"])
        over_plain = f"{times(own['over_plain_gpu'])} / {times(own['over_plain_host'])}"
        by_bytes = times(own["bytes_per_element"] / steps[workload, rule, subject, PLAIN]["bytes_per_element"])
        others = (steps.get((workload, rule, *which)) for which in ((FUSED, stage), (FASTOPT_TORCH, CALLED)))
        cells = [
            "" if entry is None or entry["subject"] != own["subject"] else " / ".join(map(times, sides(entry)))
            for entry in others
        ]
        lines.append([title_of(workload), rule, stage, subject, *measured, over_plain, by_bytes, *cells])
    return lines


def launched(report: Report) -> Lines:
    """Make the table of launches, its headings first: a size and what launches per line."""
    lines = [["argument", "launched by", "GPU", "host"]]
    for entry in report["launches"]:
        seconds = duration(entry["gpu_seconds"]), duration(entry["host_seconds"])
        lines.append([f"{entry['bytes']:,} bytes", LAUNCHED_BY[entry["implementation"]], *seconds])
    return lines


def trained(report: Report) -> Lines:
    """Make the table of whole iterations, its headings first: a model and an optimizer per line."""
    lines = [
        [
            "model",
            "AdamW of",
            "tensors",
            "parameters",
            "an iteration",
            "the host's part",
            f"times as long as {FASTOPT_TORCH}",
        ]
    ]
    for entry in report["iterations"]:
        sizes = f"{entry['tensors']}", f"{entry['parameters']:,}"
        spent = duration(entry["seconds"]), duration(entry["host_seconds"]), times(entry["ratio"])
        lines.append([TRAININGS[entry["workload"]], entry["implementation"], *sizes, *spent])
    return lines


def other_tables(report: Report) -> Iterator[tuple[str, Lines]]:
    """Yield the tables of graphs, stages, launches and iterations, each after its introduction."""
    if report["graphs"]:
        yield "A momentum step, enqueued anew each time and replayed as a CUDA graph: GPU / host.", replayed(report)
    if report["stages"]:
        yield STAGES, staged(report)
    if report["launches"]:
        yield "A launch of an empty kernel, by the size of its argument.", launched(report)
    if report["iterations"]:
        about = "Whole training iterations in torch, in bfloat16 (autocast) and with clipping, with either AdamW."
        yield about, trained(report)


def remarks(report: Report) -> Iterator[str]:
    """Yield sentences on what tables do not show: the host's time for many arrays, compilation, what is missing."""
    for row in report["rows"]:
        how = {FASTOPT: "bound", FRESH: "new"}.get(row["implementation"])
        if (row["workload"], row["rule"]) == ("resnet50", "momentum") and how is not None:
            tensors, spent = len(WORKLOADS["resnet50"].shapes), duration(row["host_seconds"])
            yield f"For a momentum step over {tensors} {how} arrays of CuPy the host takes {spent}."
    for rule in unfused(report):
        yield f"On CUDA torch has no fused {title(rule)}: its fastest there is another of its modes."
    if took := sorted(report["compiled"], key=lambda entry: entry["seconds"]):
        ends = " to ".join(
            f"{duration(entry['seconds'])} ({entry['rule']} on {named(entry['workload'])})"
            for entry in (took[0], took[-1])
        )
        yield f"Before its rounds torch-compiled took {ends} to compile; the first time it loads the compiler as well."
    if report["missing"]:
        yield f"Still to be measured: {', '.join(report['missing'])}."


def title(rule: str) -> str:
    """Write a rule's name as people do."""
    return {"adagrad": "AdaGrad"}.get(rule, rule.capitalize())


def unfused(report: Report) -> list[str]:
    """Name the rules that torch has no fused kernel for on this device."""
    found: dict[str, set[str]] = {}
    for row in report["rows"]:
        found.setdefault(row["rule"], set()).add(row["implementation"])
    if not any(FUSED in names for names in found.values()):
        return []
    return [rule for rule, names in found.items() if FASTOPT_TORCH in names and FUSED not in names]


def notes(report: Report) -> Iterator[str]:
    """Yield the run's notes, except those that `remarks` covers."""
    known = tuple(f"{FUSED} is left out of {rule}:" for rule in unfused(report))
    for note in report["notes"]:
        if not note.startswith(known):
            yield f"{note[:1].upper()}{note[1:]}."


def circumstances(report: Report) -> str:
    """Write where, with which libraries and when a run measured."""
    where = report["machine"]
    libraries = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    cuda = f"driver for CUDA {where['driver']}, CUDA {where['runtime']} in CuPy"
    if where["torch_runtime"] is not None:
        cuda += f", {where['torch_runtime']} in torch"
    return f"{where['gpu']} ({where['cpu']}); {cuda}; {libraries}; {where['date']}."


def show(report: Report, tables: bool) -> None:
    """Print the summary, after all tables if requested."""
    output = console(highlight=False)
    if not output.is_terminal:
        output = console(highlight=False, width=WIDTH)
    if tables:
        show_tables(report, output)
    for line in unstable(report, called):
        output.print(f"{UNSTABLE}: {line}")
    for line in (EXPLAINED, *remarks(report), f"{report['checked']} checks against the formulas came first."):
        output.print(line)
    output.print(table(summary(report), 2, steps_of(report)))


def called(key: str, value: str) -> str:
    """Return what people call an entry of the JSON file."""
    return named(value) if key == "workload" else value


def show_tables(report: Report, console: Any) -> None:
    """Print all tables."""
    console.print(full_table(report))
    for subject in SUBJECTS:
        lines = comparison(report, subject)
        if len(lines) > 1:
            about = f"A step of {subject}, and how many times as long others take: GPU / host."
            console.print(table(lines, 2, about))
    for about, lines in other_tables(report):
        console.print(table(lines, 2, about))


def steps_of(report: Report) -> str:
    """Write the introduction to the summary."""
    subjects = " and of ".join(name for name in SUBJECTS if own_rows(report, name))
    return f"A step of {subjects}, and how many times as long the fastest of others takes, on the GPU / on the host."


def full_table(report: Report) -> Any:
    """Make the table of all steps."""
    headings = ["GPU", "host", f"against {report['machine']['baseline']}", "GB/s", "of a copy"]
    lines = [["workload", "rule", "implementation", *headings]]
    for row in report["rows"]:
        seconds = duration(row["gpu_seconds"]), duration(row["host_seconds"])
        measured = row["speedup"] is not None or "speedup" in row.get("unstable", {})
        speedup = times(row["speedup"]) if measured else ""
        rates = UNSTABLE if row["gbps"] is None else f"{row['gbps']:.4g}", percent(row["of_copy"])
        lines.append([named(row["workload"]), row["rule"], row["implementation"], *seconds, speedup, *rates])
    return table(lines, 3, f"Optimizer steps on {report['machine']['gpu']}")


def markdown(report: Report) -> str:
    """Write the tables of docs/benchmarks.md from a report: only the fastest others, since the chart has all."""
    lines = [f"On a GPU: {circumstances(report)} {EXPLAINED}"]
    for about, cells in ((steps_of(report), summary(report)), *other_tables(report)):
        lines += ["", about, "", *markdown_table(cells, 2)]
    if said := [*remarks(report), *notes(report)]:
        lines += ["", " ".join(said)]
    return "\n".join(lines) + "\n"


def markdown_of(run: Path) -> str:
    """Write the tables of a committed run, or a sentence that there is none."""
    return markdown(read(run)) if run.exists() else UNMEASURED
