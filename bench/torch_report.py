"""The results of the steps in torch: tables and sentences for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

from .contenders import DEEPSPEED, FASTOPT_TORCH, IN_BACKWARD, TORCH_MODES
from .text import UNSTABLE, Lines, arranged, columns, duration, markdown_table, percent, ratios, table, times
from .workloads import title

if TYPE_CHECKING:  # torch may be missing
    from rich.console import Console

    from .tensors import Point, Row
    from .torch_iteration import TorchIterations

TITLE = f"Steps in torch on fresh gradients: {FASTOPT_TORCH}, and how many times as long torch's modes take"


class InTorch(TypedDict):
    """Everything measured in torch, on `threads` threads; `iteration` is None if the lab's data are missing."""

    threads: int
    rows: list[Row]
    curve: list[Point]
    iteration: TorchIterations | None


def comparison(rows: list[Row]) -> Lines:
    """Make the table of steps: a workload and rule per line, and the lowest ratio of torch's modes.

    DeepSpeed has a column if it was measured.
    """
    found = arranged(rows, "workload", "rule")
    others = columns(found, (), (DEEPSPEED,))
    lines = [["workload", "rule", FASTOPT_TORCH, *TORCH_MODES, "against the fastest", *others]]
    for (workload, rule), contenders in found.items():
        fastest = times(least([contenders[mode]["ratio"] for mode in TORCH_MODES]))
        figures = [*ratios(contenders, TORCH_MODES), fastest, *ratios(contenders, others)]
        lines.append([title(workload), rule, duration(contenders[FASTOPT_TORCH]["seconds"]), *figures])
    return lines


def least(ratios: Sequence[float | None]) -> float | None:
    """Return the least of some ratios; None if one is unstable, since it may be the least."""
    stable = [ratio for ratio in ratios if ratio is not None]
    return min(stable) if len(stable) == len(ratios) else None


def overheads(points: list[Point]) -> str:
    """Write the cost of the first tensor, and of each further one: the slope between the ends of the curve."""
    curves: dict[str, list[Point]] = {}
    for point in points:
        curves.setdefault(point["implementation"], []).append(point)
    found = []
    for name, (first, *_, last) in curves.items():
        if first["seconds"] is None or last["seconds"] is None:
            found.append(f"{name} {UNSTABLE}")
            continue
        slope = (last["seconds"] - first["seconds"]) / (last["tensors"] - first["tensors"])
        found.append(f"{name} {duration(first['seconds'])} and {duration(slope)}")
    return f"A momentum step takes, for one tensor of 64 elements and for each further one: {'; '.join(found)}."


def trainings(measured: TorchIterations) -> Lines:
    """Make the table of iterations: a rule per line; after each time, the step's share of it."""
    found: dict[str, dict[str, tuple[str, float | None]]] = {}
    for row in measured["rows"]:
        share = "" if row["implementation"] == IN_BACKWARD else f", {percent(row['share'])}"
        found.setdefault(row["rule"], {})[row["implementation"]] = duration(row["seconds"]) + share, row["gain"]
    names = list(dict.fromkeys(row["implementation"] for row in measured["rows"]))
    gained = (FASTOPT_TORCH, IN_BACKWARD)
    lines = [["rule", *names, *(f"gain by {name}" for name in gained)]]
    for rule, cells in found.items():
        lines.append([rule, *(cells[name][0] for name in names), *(times(cells[name][1]) for name in gained)])
    return lines


def trained(measured: TorchIterations) -> str:
    """Write the introduction to the table of iterations."""
    return (
        f"A whole training iteration in torch, of a network of {measured['parameters']:,} parameters on batches of "
        f"{measured['batch']} digits, and the step's share of it; the gain is over the faster of torch's two."
    )


def show(measured: InTorch, console: Console) -> None:
    """Print all of it."""
    console.print()
    console.print(table(comparison(measured["rows"]), 2, TITLE))
    console.print(overheads(measured["curve"]))
    if training := measured["iteration"]:
        console.print()
        console.print(trained(training))
        console.print(table(trainings(training), 1, "Training iterations in torch"))


def markdown(measured: InTorch) -> Iterator[str]:
    """Write all of it, line by line."""
    yield (
        f"In torch, on {measured['threads']} threads, with gradients that backward has just allocated: the time of a "
        f"step of {FASTOPT_TORCH}, and how many times as long torch.optim's modes take."
    )
    yield ""
    yield from markdown_table(comparison(measured["rows"]), 2)
    yield from ("", overheads(measured["curve"]))
    if training := measured["iteration"]:
        yield from ("", trained(training), "")
        yield from markdown_table(trainings(training), 1)
