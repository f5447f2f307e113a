"""The command ``fastopt bench``: measure, print, write."""

from __future__ import annotations

import itertools
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from fastopt.extras import require
from fastopt.files import replacing
from fastopt.progress import track
from fastopt.rules import RULES as REGISTRY

from . import embedding, report
from . import plot as chart
from .contenders import CONTENDERS, HAS_TORCH, RULES, make
from .iteration import iterations
from .limit import limits
from .measure import MODES, WARM_UP, Pace, Timing, measure
from .schedules import evaluations
from .torch_report import InTorch
from .workloads import WORKLOADS, Arrays, Workload

Measured = TypeVar("Measured")

ITEMSIZE = 4
SHARE_OF_MEMORY = 0.8  # what a workload may take of the machine's memory
BUSY = 0.25  # a load per core that disturbs

PICTURES = (".png", ".svg", ".pdf")

QUICK = Pace(seconds=0.5, fewest=3, most=1000)
FULL = Pace(seconds=8.0, fewest=7, most=1000)


def run(quick: bool, json: str | None, plot: str | None, baseline: str = "numpy") -> None:
    """Measure all contenders on all workloads, print the tables, and write files where asked to.

    Parameters
    ----------
    quick : bool
        Whether fewer rounds will do.
    json, plot : str or None
        Files to write, of the data and of the chart; beside the chart, "-torch" in its name, that of steps in torch.
    baseline : str, default "numpy"
        The contender that speed-ups are over.

    Raises
    ------
    ValueError, OSError
        If there is no such baseline here, or a file cannot be written; before anything is measured.
    ImportError
        If something is not installed that this needs.
    """
    check(json, plot, baseline)
    warn()
    pace = QUICK if quick else FULL
    workloads = [workload for workload in WORKLOADS.values() if fits(workload)]
    timings = list(track(timed(workloads, pace), "Measuring", total=len(workloads) * len(RULES) * len(MODES)))
    found: report.Report = {
        "machine": report.machine(baseline, quick),
        "rows": report.rows(timings, baseline),
        "ratios": report.ratios(timings),
        "iteration": where_installed(iterations, pace),
        "schedules": evaluations(pace),
        "embedded": in_loops(pace),
        "torch": in_torch(workloads, pace) if HAS_TORCH else None,
    }
    report.show(found)
    if json is not None:
        with replacing(Path(json)) as path:
            path.write_text(jsonlib.dumps(found, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        with replacing(Path(plot)) as path:
            chart.draw(found, str(path))
        if found["torch"] is not None:
            with replacing(beside(plot)) as path:
                chart.draw_curve(found, str(path))


def check(json: str | None, plot: str | None, baseline: str) -> None:
    """Raise where `run` could not do what it is asked for."""
    if baseline not in CONTENDERS:
        raise ValueError(f"baseline {baseline!r} is not among {', '.join(CONTENDERS)}")
    check_files(json, plot, beside(plot) if plot is not None and HAS_TORCH else None)


def check_files(json: str | None, plot: str | None, *more: Path | None) -> None:
    """Raise where a file could not be written, or what writes it is not installed."""
    if plot is not None and Path(plot).suffix not in PICTURES:
        raise ValueError(f"{plot} is no picture: its name must end in {', '.join(PICTURES)}")
    for path in (Path(given) for given in (json, plot, *more) if given is not None):
        there = path.exists()
        path.open("a").close()  # raises OSError where it cannot be written
        if not there:  # nothing stays of a run that ends with an error
            path.unlink()
    require("rich", "bench")
    if plot is not None:
        require("matplotlib", "bench")


def beside(plot: str) -> Path:
    """Name the second chart's file."""
    return Path(plot).with_stem(f"{Path(plot).stem}-torch")


def warn() -> None:
    """Say what will make the tables worse, or shorter."""
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > BUSY * (os.cpu_count() or 1):
        say(f"other programs are running (load {load:.1f}): threads that wait for each other suffer, torch's most")
    if not HAS_TORCH:
        say("torch is not installed: its optimizers are left out (pip install 'fastopt[bench]')")


def say(message: str) -> None:
    """Say what the reader of the tables should know, beside the progress bar."""
    print(message, file=sys.stderr)


def fits(workload: Workload) -> bool:
    """Say whether the memory is large enough for a workload, and say so where it is not."""
    if not hasattr(os, "sysconf"):
        return True
    # Parameters, gradients, the fresh ones, zeros, NumPy's scratch, torch's two temporaries, the limit's parameters and
    # gradients, and the states of each contender and of the limit. Steps in torch, which come later, need fewer.
    copies = 9 + max(len(REGISTRY[rule].states) for rule in RULES) * (len(CONTENDERS) + 1)
    needed = workload.elements * ITEMSIZE * copies / 1e9
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if needed <= SHARE_OF_MEMORY * there:
        return True
    say(f"{workload.name} is left out: it needs {needed:.1f} GB of memory, too much of this machine's {there:.1f} GB")
    return False


def timed(workloads: Sequence[Workload], pace: Pace) -> Iterator[Timing]:
    """Time every contender on every workload, by every rule, in every mode."""
    for workload in workloads:
        arrays = Arrays.draw(workload)
        for rule in RULES:
            yield from timed_rule(workload, rule, arrays, pace)


def timed_rule(workload: Workload, rule: str, arrays: Arrays, pace: Pace) -> Iterator[Timing]:
    """Time every contender on one workload by one rule; their states are gone afterwards."""
    contestants = {name: make(name, rule, arrays) for name in CONTENDERS}
    loops = limits(workload.elements, len(REGISTRY[rule].states))
    contestants |= loops
    for step in contestants.values():
        for _ in range(WARM_UP):
            step()
    bytes_moved = REGISTRY[rule].bytes_moved(ITEMSIZE) * workload.elements
    for suffix, mode in MODES.items():
        seconds = measure(contestants, mode, pace)
        limit = [min(round_) for round_ in zip(*(seconds.pop(name) for name in loops), strict=True)]
        yield Timing(workload.name + suffix, rule, bytes_moved, seconds, limit)


def in_loops(pace: Pace) -> embedding.Embedded:
    """Measure updates in loops that are not Python's: in C++ and C where there is a compiler."""
    try:
        library = embedding.compiled_loops()
    except OSError as error:
        say(f"loops in C++ and C are left out: {error}")
        library = None
    return embedding.embedded(library, pace)


def in_torch(workloads: Sequence[Workload], pace: Pace) -> InTorch:
    """Measure the optimizers of torch and those for it, where torch is installed."""
    import torch

    from . import tensors, torch_iteration

    steps = track(tensors.rows(workloads, pace), "Measuring in torch", total=len(workloads) * len(RULES))
    points = track(tensors.curve(pace), "Counting tensors", total=len(tensors.COUNTS))
    return {
        "threads": torch.get_num_threads(),
        "rows": list(itertools.chain.from_iterable(steps)),
        "curve": list(itertools.chain.from_iterable(points)),
        "iteration": where_installed(torch_iteration.iterations, pace),
    }


def where_installed(iterations: Callable[[Pace], Measured], pace: Pace) -> Measured | None:
    """Measure whole training iterations, where the lab's data are installed."""
    try:
        return iterations(pace)
    except ImportError as error:
        say(f"a whole training iteration is not measured: {error}")
        return None
