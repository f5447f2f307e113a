"""The sentences in which pages sum up a run, with the run's stable figures."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from .contenders import FASTOPT_TORCH
from .gpu.figures import Report as GpuReport
from .gpu.report import FUSED
from .report import SUBJECT, Report, Row
from .text import times

SMALL = ("mlp",)
LARGE = ("resnet50", "gpt2")
TORCH = "torch-"  # the prefix of its modes' names


def fastest(entries: Iterable[Mapping[str, Any]], workloads: Container[str], others: str, of: str = "ratio") -> str:
    """Write the range over all rules of the least ratio of those whose names begin with `others`."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for entry in entries:
        if entry["workload"] in workloads and entry["implementation"].startswith(others):
            found.setdefault((entry["workload"], entry["rule"]), []).append(entry[of])
    return span(others, (min(ratios, key=least_first) for ratios in found.values()))


def least_first(ratio: float | None) -> float:
    """Sort an unstable ratio before all others, since it may be the least."""
    return float("-inf") if ratio is None else ratio


def span(what: str, ratios: Iterable[float | None]) -> str:
    """Write the least and the greatest of the stable ratios."""
    stable = sorted(ratio for ratio in ratios if ratio is not None)
    if not stable:
        raise ValueError(f"no ratio of {what} is stable in this run: measure again, on a quiet machine")
    low, high = (times(ratio).removesuffix("x") for ratio in (stable[0], stable[-1]))
    return low if low == high else f"{low} to {high}"


def cpu(report: Report) -> str:
    """Write how long others take for a step on the CPU, of a small network and of large ones, back to back.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it if torch is installed.

    Returns
    -------
    str
        A line of Markdown.
    """
    entries, where = report["ratios"], report["machine"]
    numpy, torch = ([fastest(entries, workloads, name) for workloads in (SMALL, LARGE)] for name in ("numpy", TORCH))
    return (
        f"A step of a small network takes NumPy {numpy[0]} times as long as {SUBJECT}, and PyTorch's fastest mode "
        f"{torch[0]} times; one of ResNet-50 or GPT-2, where memory is the limit, {numpy[1]} and {torch[1]} times "
        f"({where['cpu']}, {where['threads']} threads, {where['date']}).\n"
    )


def gpu(report: GpuReport) -> str:
    """Write how long torch's fastest mode takes for a step on a GPU, of large models and of single tensors.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --gpu --json`` writes it if torch is installed.

    Returns
    -------
    str
        A line of Markdown.
    """
    entries, where = report["ratios"], report["machine"]
    on_gpu, on_host = (fastest(entries, LARGE, TORCH, side) for side in ("gpu", "host"))
    single = {entry["workload"] for entry in entries} - {*LARGE}
    return (
        f"A step of ResNet-50 or GPT-2 takes PyTorch's fastest mode {on_gpu} times as long as {FASTOPT_TORCH} on the "
        f"GPU, and {on_host} times on the host, which enqueues it; a step of one tensor, one launch for "
        f"both, {fastest(entries, single, TORCH, 'gpu')} times on the GPU ({where['gpu']}, {where['date']}).\n"
    )


def limits(report: Report) -> str:
    """Write how close to the memory's limit the largest steps get, back to back: fastopt's, and torch's fused ones."""
    ours, theirs = (
        span(name, (100 * share for row in report["rows"] if (share := share_of(row, name)) is not None))
        for name in (SUBJECT, FUSED)
    )
    return (
        f"On ResNet-50 and GPT-2, {SUBJECT} moves {ours} % of the bytes a second that a plain compiled loop with the "
        f"rule's own traffic moved beside it in this run, and PyTorch's fused step {theirs} %.\n"
    )


def share_of(row: Row, name: str) -> float | None:
    """Return the share of the limit if a row is this implementation's on a large model, else None."""
    return row["of_limit"] if row["implementation"] == name and row["workload"] in LARGE else None
