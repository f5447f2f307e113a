"""The results: plain data for the JSON file, and its tables for the terminal and for the pages."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from fastopt.kernels import limits

import fastopt
from fastopt.extras import require
from fastopt.progress import console

from . import masters_report, sparse_report, stages_report, storages_report, torch_report
from .contenders import BY_HAND, FASTOPT, FRESH, NUMPY, OPTAX, TORCH_MODES
from .embedding import Embedded
from .gpu_host import NEW, STAYING, Host
from .iteration import Iterations
from .masters_report import Master
from .measure import MODES, Timing
from .rounds import reasons
from .schedules import Evaluations
from .sparse_report import Sparse, Touched
from .stages import Stage
from .storages_report import Storage
from .text import UNSTABLE, Lines, arranged, duration, markdown_table, percent, table, times, unstable
from .workloads import title

# Those that have one table each, in this order.
PARTS: dict[str, Any] = {
    "stages": stages_report,
    "storages": storages_report,
    "masters": masters_report,
    "sparse": sparse_report,
}

SUBJECT = FASTOPT
LIBRARIES = ("fastopt", "numpy", "numba", "torch", "deepspeed", "bitsandbytes", "jax", "optax")
AFTER = list(MODES)[1]
MODE_NAMES = ("back to back", AFTER.removeprefix(", "))
WIDTH = 150  # of the output if it is not a terminal

# The summary's columns, and the contenders of each: it shows the fastest of several.
OTHERS = {
    NUMPY: (NUMPY,),
    BY_HAND: (BY_HAND,),
    "torch-default": ("torch-default",),
    "torch's fastest": tuple(TORCH_MODES),
    OPTAX: (OPTAX,),
}
ABOUT = (
    f"How many times as long as {SUBJECT} others take for an optimizer step of these models, back to back: from the "
    "least to the most over the rules. Below 1.00x others are faster."
)

HOSTS = "Host of a GPU step, driver that does nothing"
ABOUT_HOSTS = (
    "a step that repeats the last one is one call of the extension, which takes this long, without what the driver "
    "takes for the launch, and Python to find out where the gradients lie."
)


class Machine(TypedDict):
    """Where, when and against which baseline a run measured; `cores` are those that the process may use."""

    cpu: str
    cores: int
    threads: int
    platform: str
    versions: dict[str, str]
    date: str
    baseline: str
    quick: bool


class Row(TypedDict):
    """One contender: median seconds of a step, speed-up over the baseline, 10^9 bytes a second, share of the limit.

    An unstable figure is None, and `unstable` has the reason.
    """

    workload: str
    rule: str
    implementation: str
    seconds: float | None
    speedup: float | None
    gbps: float | None
    of_limit: float | None
    unstable: dict[str, str]


class Ratio(TypedDict):
    """How many times as long as fastopt another implementation takes: the median over `rounds` rounds.

    An unstable figure is None, and `unstable` has the reason.
    """

    workload: str
    rule: str
    implementation: str
    ratio: float | None
    rounds: int
    unstable: dict[str, str]


class Report(TypedDict):
    """Everything that a run measured.

    `iteration` is None if the lab's data are not installed, `torch` if torch is not, `gpu_host` without the extension;
    a quick run has None for these and all others below `ratios`, but for `storages`: that has its small workloads, or
    is None if torch is not installed.
    """

    machine: Machine
    rows: list[Row]
    ratios: list[Ratio]
    iteration: Iterations | None
    schedules: Evaluations | None
    embedded: Embedded | None
    gpu_host: list[Host] | None
    torch: torch_report.InTorch | None
    stages: list[Stage] | None
    storages: list[Storage] | None
    masters: list[Master] | None
    sparse: list[Sparse] | None
    touched: list[Touched] | None


def cpu_model() -> str:
    """Return the processor's name, as the system has it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed."""
    installed = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in installed}


def machine(baseline: str, quick: bool) -> Machine:
    """Describe this machine and run."""
    return {
        "cpu": cpu_model(),
        "cores": limits.processors(),
        "threads": fastopt.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "baseline": baseline,
        "quick": quick,
    }


def rows(timings: Sequence[Timing], baseline: str) -> list[Row]:
    """Make a row for each contestant of each timing."""
    return [row(timing, name, baseline) for timing in timings for name in timing.names]


def row(timing: Timing, name: str, baseline: str) -> Row:
    """Make the row of one contestant."""
    seconds, speedup = timing.rounds.seconds(name), timing.rounds.ratio(baseline, name)
    gbps, of_limit = timing.gbps(name), timing.of_limit(name)
    return {
        "workload": timing.workload,
        "rule": timing.rule,
        "implementation": name,
        "seconds": seconds.value,
        "speedup": speedup.value,
        "gbps": gbps.value,
        "of_limit": of_limit.value,
        "unstable": reasons(seconds=seconds, speedup=speedup, gbps=gbps, of_limit=of_limit),
    }


def ratios(timings: Sequence[Timing]) -> list[Ratio]:
    """Compare fastopt with each other contestant of each timing."""
    return [ratio(timing, name) for timing in timings for name in timing.names if name != SUBJECT]


def ratio(timing: Timing, name: str) -> Ratio:
    """Compare fastopt with one contestant."""
    found = timing.rounds.ratio(name, SUBJECT)
    return {
        "workload": timing.workload,
        "rule": timing.rule,
        "implementation": name,
        "ratio": found.value,
        "rounds": len(timing.rounds.ratios(name, SUBJECT)),
        "unstable": reasons(ratio=found),
    }


def compared(report: Report) -> dict[tuple[str, ...], dict[str, Ratio]]:
    """Arrange fastopt's ratios: (workload, rule) -> implementation -> ratio."""
    return arranged(report["ratios"], "workload", "rule")


def summary(report: Report) -> Lines:
    """Make the summary's table, its headings first: a model per line, all rules in a cell, back to back."""
    by_workload: dict[str, list[dict[str, Ratio]]] = {}
    for (workload, _), entries in compared(report).items():
        if not workload.endswith(AFTER):
            by_workload.setdefault(workload, []).append(entries)
    measured = {entry["implementation"] for entry in report["ratios"]}
    columns = {heading: names for heading, names in OTHERS.items() if measured.issuperset(names)}
    lines = [["model", *columns, "the fastest"]]
    for workload, by_rule in by_workload.items():
        cells = [span([fewest(entries, names) for entries in by_rule]) for names in columns.values()]
        lines.append([title(workload), *cells, winners(by_rule)])
    return lines


def fewest(entries: dict[str, Ratio], names: Sequence[str]) -> float | None:
    """Return the least ratio of some contenders; None if one is unstable, since it may be the least."""
    return torch_report.least([entries[name]["ratio"] for name in names])


def span(ratios: Sequence[float | None]) -> str:
    """Write the range of the stable ratios of all rules, and how many are unstable."""
    stable = [ratio for ratio in ratios if ratio is not None]
    if not stable:
        return UNSTABLE
    ends = dict.fromkeys(times(end) for end in (min(stable), max(stable)))
    missing = len(ratios) - len(stable)
    return " to ".join(ends) + (f", {missing} {UNSTABLE}" if missing else "")


def winners(by_rule: Sequence[dict[str, Ratio]]) -> str:
    """Name the fastest on a model, with the rules if they differ."""
    found: dict[str, list[str]] = {}
    for entries in by_rule:
        rule = next(iter(entries.values()))["rule"]
        found.setdefault(winner(entries), []).append(rule)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{name} ({', '.join(rules)})" for name, rules in found.items())


def winner(entries: dict[str, Ratio]) -> str:
    """Name the fastest by one rule, or "unstable" if only unstable ratios may be below 1."""
    others = {name: entry["ratio"] for name, entry in entries.items() if name != FRESH}
    faster = {name: ratio for name, ratio in others.items() if ratio is not None and round(ratio, 2) < 1}
    if not faster and None in others.values():
        return UNSTABLE
    return min(faster, key=faster.__getitem__, default=SUBJECT)


def comparison(report: Report) -> Lines:
    """Make the compact table, its headings first: a workload and rule per line, both modes in each cell.

    Large workloads are measured in one mode. The last column names the fastest, back to back.
    """
    found = compared(report)
    own = {(row["workload"], row["rule"]): row["seconds"] for row in report["rows"] if row["implementation"] == SUBJECT}
    names = list(dict.fromkeys(entry["implementation"] for entry in report["ratios"]))
    lines = [["workload", "rule", SUBJECT, *names, "the fastest"]]
    for workload, rule in found:
        if not workload.endswith(AFTER):
            modes = [key for key in ((workload, rule), (workload + AFTER, rule)) if key in found]
            cells = [" / ".join(times(found[mode][name]["ratio"]) for mode in modes) for name in names]
            took = " / ".join(duration(own[mode]) for mode in modes)
            lines.append([title(workload), rule, took, *cells, winners([found[workload, rule]])])
    return lines


def iteration_lines(report: Report) -> Iterator[str]:
    """Write how much faster a whole training iteration is, rule by rule."""
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
            f"{times(entry['gain'])}; the update's share {percent(entry['share_before'])} -> "
            f"{percent(entry['share_after'])}"
        )


def evaluated(measured: Evaluations) -> Lines:
    """Make the table of schedules, its headings first."""
    lines = [["schedule", f"{measured['steps']:,} steps", "against np.cos", "one step"]]
    for entry in measured["rows"]:
        numbers = duration(entry["seconds"]), times(entry["ratio"]), duration(entry["call_seconds"])
        lines.append([entry["schedule"], *numbers])
    return lines


def spread(measured: Evaluations) -> str:
    """Write how fast schedules are, from the fastest to the slowest."""
    ratios = sorted((row["ratio"], row["schedule"]) for row in measured["rows"] if row["ratio"] is not None)
    calls = [row["call_seconds"] for row in measured["rows"] if row["call_seconds"] is not None]
    if not ratios or not calls:
        return f"What a schedule takes over {measured['steps']:,} steps is {UNSTABLE}."
    ends = " to ".join(f"{times(ratio)} ({schedule})" for ratio, schedule in (ratios[0], ratios[-1]))
    return (
        f"A schedule over {measured['steps']:,} steps takes {ends} the time of np.cos over the same array; "
        f"one step by itself takes {duration(max(calls))} at most."
    )


def added(measured: Evaluations) -> str:
    """Write how much time a schedule adds to an optimizer's step."""
    adds = duration(measured["added_seconds"])
    text = f"Cosine in the place of a number adds {adds} to {SUBJECT}'s momentum step"
    if adds == UNSTABLE:
        text = f"What Cosine in the place of a number adds to {SUBJECT}'s momentum step is {UNSTABLE}"
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
    """Write the introduction to the table of embedded updates."""
    return (
        f"Embedded in loops of Numba, C++ and C: a step of the MLP's {measured['parameters']:,} parameters, and how "
        f"many times as long {SUBJECT}'s opt.step and NumPy take, back to back."
    )


def single_call(measured: Embedded) -> str:
    """Write the time of one call through a pointer, if it was measured."""
    if measured["call_seconds"] is None:
        return "" if not measured["unstable"] else f"One call through the pointer is {UNSTABLE}."
    call = f"One call through the pointer on {measured['elements']} elements"
    return f"{call} takes {1e9 * measured['call_seconds']:.0f} ns from C."


def on_hosts(measured: Sequence[Host]) -> Lines:
    """Make the table of the host's part of GPU steps, its headings first: a rule and a number of tensors per line."""
    lines = [["rule", "tensors", STAYING, NEW]]
    for row in measured:
        seconds = duration(row["staying_gradients"]), duration(row["new_gradients"])
        lines.append([row["rule"], f"{row['tensors']:,}", *seconds])
    return lines


def show(report: Report, tables: bool) -> None:
    """Print the summary, after all tables if requested."""
    output = console(highlight=False)
    if not output.is_terminal:
        output = console(highlight=False, width=WIDTH)
    if tables:
        show_tables(report, output)
    for line in unstable(report if tables else of_summary(report), called):
        output.print(f"{UNSTABLE}: {line}")
    output.print(ABOUT if tables else f"{ABOUT} --tables prints all tables, --json FILE writes all figures.")
    output.print(table(summary(report), 1))


def called(key: str, value: str) -> str:
    """Return what people call an entry of the JSON file."""
    return title(value) if key == "workload" else value


def of_summary(report: Report) -> list[Ratio]:
    """List the ratios that are in the summary."""
    shown = {name for names in OTHERS.values() for name in names}
    entries = [entry for entry in report["ratios"] if entry["implementation"] in shown]
    return [entry for entry in entries if not entry["workload"].endswith(AFTER)]


def show_tables(report: Report, console: Any) -> None:
    """Print all tables, and the speed-up of training iterations."""
    console.print(full_table(report))
    console.print(
        "time: median of a step. against ...: median of the ratios within each round. GB/s: 10^9 bytes that the rule\n"
        "reads and writes. limit: a plain compiled loop with the same traffic, in the same rounds.\n"
    )
    about = f"{SUBJECT}, and how many times as long others take: {' / '.join(MODE_NAMES)}"
    console.print(table(comparison(report), 2, about))
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
    if hosts := report.get("gpu_host"):
        console.print()
        console.print(table(on_hosts(hosts), 2, HOSTS))
    if steps := report.get("torch"):
        torch_report.show(steps, console)
    for name, part in PARTS.items():
        if rows := report.get(name):
            console.print()
            console.print(table(part.comparison(rows), part.NAMES, part.TITLE))


def full_table(report: Report) -> Any:
    """Make the table of all steps, with a section for each workload and rule."""
    made = require("rich.table", "bench").Table("workload", "rule", "implementation")
    made.title = f"Optimizer steps on {report['machine']['cpu']}"
    for heading in ("time", f"against {report['machine']['baseline']}", "GB/s", "of the limit"):
        made.add_column(heading, justify="right")
    last = None
    for row in report["rows"]:
        section = row["workload"], row["rule"]
        if section != last:
            made.add_section()
        made.add_row(
            *((title(row["workload"]), row["rule"]) if section != last else ("", "")),
            row["implementation"],
            duration(row["seconds"]),
            times(row["speedup"]),
            UNSTABLE if row["gbps"] is None else f"{row['gbps']:.3g}",
            percent(row["of_limit"]),
        )
        last = section
    return made


def markdown(report: Report) -> str:
    """Write the tables of docs/benchmarks.md from a report, or from its JSON file as loaded.

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
        f"{' / '.join(MODE_NAMES)}, a millisecond of it; of large models, whose steps are long, the first alone.",
        "",
        *markdown_table(comparison(report), 2),
        *iteration_markdown(report),
    ]
    if costs := report.get("schedules"):
        lines += ["", f"{spread(costs)} {added(costs)}"]
    if loops := report.get("embedded"):
        lines += ["", *loops_lines(loops)]
    if hosts := report.get("gpu_host"):
        lines += ["", f"{HOSTS}: {ABOUT_HOSTS}", "", *markdown_table(on_hosts(hosts), 2)]
    if steps := report.get("torch"):
        lines += ["", *torch_report.markdown(steps)]
    for name, part in PARTS.items():
        if rows := report.get(name):
            lines += ["", *part.markdown(rows)]
    return "\n".join(lines) + "\n"


def summary_markdown(report: Report) -> str:
    """Write the summary in Markdown."""
    return "\n".join([ABOUT, "", *markdown_table(summary(report), 1)]) + "\n"


def circumstances(report: Report) -> str:
    """Write where, with which libraries and when a run measured."""
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
        before = duration(entry["seconds_before"]), percent(entry["share_before"])
        after = duration(entry["seconds_after"]), percent(entry["share_after"])
        lines.append([entry["rule"], *before, *after, times(entry["gain"])])
    yield from markdown_table(lines, 1)


def loops_lines(measured: Embedded) -> Iterator[str]:
    """Write the table of embedded updates, line by line."""
    yield from (about_loops(measured), "", *markdown_table(in_loops(measured), 2))
    if call := single_call(measured):
        yield from ("", call)


def loops_markdown(report: Report) -> str:
    """Write the table of embedded updates for their page, if they were measured."""
    measured = report.get("embedded")
    return "\n".join([circumstances(report), "", *loops_lines(measured)]) + "\n" if measured else ""


def schedules_markdown(report: Report) -> str:
    """Write the table of schedules for their page, if they were measured."""
    measured = report.get("schedules")
    return "\n".join(markdown_table(evaluated(measured), 1)) + "\n" if measured else ""


def torch_markdown(report: Report) -> str:
    """Write the tables of steps in torch for their page, if they were measured."""
    measured = report.get("torch")
    return "\n".join([circumstances(report), "", *torch_report.markdown(measured)]) + "\n" if measured else ""
