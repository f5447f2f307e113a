"""What the README and its neighbours say of a run in a sentence: the figures are the run's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .contenders import FASTOPT_TORCH
from .gpu.figures import Report as GpuReport
from .gpu.report import compared as compared_on_gpu
from .report import SUBJECT, Report, compared
from .text import times

SMALL = "mlp"
LARGE = ("resnet50", "gpt2")
TORCH = "torch-"  # what the names of its modes begin with
FUSED = "torch-fused"


def span(ratios: Iterable[float]) -> str:
    """Write the least and the greatest of some ratios."""
    ordered = sorted(ratios)
    low, high = (times(ratio).removesuffix("x") for ratio in (ordered[0], ordered[-1]))
    return low if low == high else f"{low} to {high}"


def fastest(ratios: Mapping[str, float]) -> float:
    """Return the ratio of torch's fastest mode."""
    return min(ratio for name, ratio in ratios.items() if name.startswith(TORCH))


def cpu(report: Report) -> str:
    """Say what a step on the CPU takes others, of a small network and of large ones, back to back.

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
    small = [ratios for (workload, _), ratios in found.items() if workload == SMALL]
    large = [ratios for (workload, _), ratios in found.items() if workload in LARGE]
    of_numpy, of_torch = ([[pick(each) for each in rows] for rows in (small, large)] for pick in (numpys, fastest))
    return (
        f"A step of a small network takes NumPy {span(of_numpy[0])} times as long as {SUBJECT}, and PyTorch's fastest "
        f"mode {span(of_torch[0])} times; one of ResNet-50 or GPT-2, where memory is the limit, {span(of_numpy[1])} "
        f"and {span(of_torch[1])} times ({where['cpu']}, {where['threads']} threads, {where['date']}).\n"
    )


def numpys(ratios: Mapping[str, float]) -> float:
    """Return NumPy's ratio."""
    return ratios["numpy"]


def gpu(report: GpuReport) -> str:
    """Say what a step on a GPU takes torch's fastest mode, of large models and of single tensors.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --gpu --json`` writes it where torch is installed.

    Returns
    -------
    str
        A line of Markdown.
    """
    found, where = compared_on_gpu(report), report["machine"]
    models, single = [], []
    for (workload, _), ratios in found.items():
        sides = [fastest({name: both[side] for name, both in ratios.items()}) for side in (0, 1)]
        (models if workload in LARGE else single).append(sides)
    on_gpu, on_host = ([sides[side] for sides in models] for side in (0, 1))
    return (
        f"A step of ResNet-50 or GPT-2 takes PyTorch's fastest mode {span(on_gpu)} times as long as {FASTOPT_TORCH} on "
        f"the GPU, and {span(on_host)} times on the host, which enqueues it; a step of one tensor, for which everybody "
        f"needs one launch, {span(sides[0] for sides in single)} times on the GPU ({where['gpu']}, {where['date']}).\n"
    )


def limits(report: Report) -> str:
    """Say how near the limit of the memory the largest steps are, back to back: fastopt's, and torch's fused ones."""
    shares = {
        name: sorted(
            row["of_limit"] for row in report["rows"] if row["implementation"] == name and row["workload"] in LARGE
        )
        for name in (SUBJECT, FUSED)
    }
    ours, theirs = (f"{each[0]:.0%} to {each[-1]:.0%}" for each in shares.values())
    return (
        f"On ResNet-50 and GPT-2, {SUBJECT} moves {ours} of the bytes a second that a plain compiled loop with the "
        f"rule's own traffic moved beside it in this run, and PyTorch's fused step {theirs}.\n"
    )
