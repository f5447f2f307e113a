"""What pages say of a run in a sentence: the figures are the run's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .contenders import FASTOPT_TORCH
from .gpu.figures import Report as GpuReport
from .gpu.report import FUSED
from .gpu.report import compared as compared_on_gpu
from .report import SUBJECT, Report, compared
from .text import times

Ratios = Mapping[tuple[str, str], Mapping[str, float]]  # (workload, rule) -> implementation -> ratio

SMALL = ("mlp",)
LARGE = ("resnet50", "gpt2")
TORCH = "torch-"  # what the names of its modes begin with


def span(ratios: Iterable[float]) -> str:
    """Write the least and the greatest of some ratios."""
    ordered = sorted(ratios)
    low, high = (times(ratio).removesuffix("x") for ratio in (ordered[0], ordered[-1]))
    return low if low == high else f"{low} to {high}"


def fastest(found: Ratios, workloads: Iterable[str], others: str) -> str:
    """Write what the fastest of those whose names begin so takes, over all rules."""
    return span(
        min(ratio for name, ratio in found[workload, rule].items() if name.startswith(others))
        for workload, rule in found
        if workload in workloads
    )


def cpu(report: Report) -> str:
    """Say what others take for a step on the CPU, of a small network and of large ones, back to back.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --json`` writes it where torch is installed.

    Returns
    -------
    str
        A line of Markdown.
    """
    found, where = compared(report), report["machine"]
    numpy, torch = ([fastest(found, workloads, name) for workloads in (SMALL, LARGE)] for name in ("numpy", TORCH))
    return (
        f"A step of a small network takes NumPy {numpy[0]} times as long as {SUBJECT}, and PyTorch's fastest mode "
        f"{torch[0]} times; one of ResNet-50 or GPT-2, where memory is the limit, {numpy[1]} and {torch[1]} times "
        f"({where['cpu']}, {where['threads']} threads, {where['date']}).\n"
    )


def gpu(report: GpuReport) -> str:
    """Say what torch's fastest mode takes for a step on a GPU, of large models and of single tensors.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --gpu --json`` writes it where torch is installed.

    Returns
    -------
    str
        A line of Markdown.
    """
    where = report["machine"]
    on_gpu, on_host = (
        {key: {name: both[side] for name, both in ratios.items()} for key, ratios in compared_on_gpu(report).items()}
        for side in (0, 1)
    )
    single = {workload for workload, _ in on_gpu if workload not in LARGE}
    models, launches = (fastest(found, LARGE, TORCH) for found in (on_gpu, on_host))
    return (
        f"A step of ResNet-50 or GPT-2 takes PyTorch's fastest mode {models} times as long as {FASTOPT_TORCH} on the "
        f"GPU, and {launches} times on the host, which enqueues it; a step of one tensor, for which everybody needs "
        f"one launch, {fastest(on_gpu, single, TORCH)} times on the GPU ({where['gpu']}, {where['date']}).\n"
    )


def limits(report: Report) -> str:
    """Say how near the memory's limit the largest steps are, back to back: fastopt's, and torch's fused ones."""
    ours, theirs = (
        sorted(row["of_limit"] for row in report["rows"] if row["implementation"] == name and row["workload"] in LARGE)
        for name in (SUBJECT, FUSED)
    )
    return (
        f"On ResNet-50 and GPT-2, {SUBJECT} moves {ours[0]:.0%} to {ours[-1]:.0%} of the bytes a second that a plain "
        f"compiled loop with the rule's own traffic moved beside it in this run, and PyTorch's fused step "
        f"{theirs[0]:.0%} to {theirs[-1]:.0%}.\n"
    )
