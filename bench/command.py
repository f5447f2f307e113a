"""The command ``fastopt bench``: measure, print, write."""

from __future__ import annotations

import contextlib
import itertools
import json as jsonlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fastopt.kernels import limits

from fastopt.extras import require
from fastopt.files import replacing
from fastopt.progress import track
from fastopt.rules import RULES as REGISTRY

from . import embedding, limit, quiet, report
from . import plot as chart
from .contenders import CONTENDERS, FASTOPT, HAS_OPTAX, HAS_TORCH, NUMPY, RULES, Step, make
from .iteration import iterations
from .measure import LIMIT, MODES, WARM_UP, Mode, Pace, Timing, settled, timed
from .schedules import evaluations
from .torch_report import InTorch
from .workloads import WORKLOADS, Arrays, Workload

Measured = TypeVar("Measured")

ITEMSIZE = 4
SHARE_OF_MEMORY = 0.8  # what a workload may take of the machine's memory
LARGE = 10_000_000  # elements: a step takes far longer than what wakes up late, and leaves no cache as it was

PICTURES = (".png", ".svg", ".pdf")

# A quick run steps large models by the rule that they are trained by, as a rule.
QUICK_RULES = {"resnet50": ("momentum",), "gpt2": ("adam",)}
QUICK = Pace(seconds=0.5, fewest=3, most=1000)
FULL = Pace(seconds=8.0, fewest=7, most=1000)


def run(quick: bool, json: str | None, plot: str | None, baseline: str = NUMPY, tables: bool = False) -> None:
    """Measure all contenders on all workloads, write files where asked to, and print what was found.

    Parameters
    ----------
    quick : bool
        Whether optimizer steps alone will do, in fewer rounds, and of large models by one rule.
    json, plot : str or None
        Files to write, of the data and of the chart; beside the chart, "-torch" in its name, that of steps in torch.
    baseline : str, default "numpy"
        The contender that speed-ups are over in the table of all contenders.
    tables : bool, default False
        Whether all tables are printed; else the summary alone.

    Raises
    ------
    ValueError, OSError
        If there is no such baseline here, or a file cannot be written; before anything is measured.
    ImportError
        If something is not installed that this needs.
    """
    check(json, plot, baseline)
    name_missing()
    workloads = [workload for workload in WORKLOADS.values() if fits(workload)]
    quiet.wait(say)
    with threads_of_torch():
        found = measured(workloads, quick, baseline)
    if json is not None:
        with replacing(Path(json)) as path:
            path.write_text(jsonlib.dumps(found, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        with replacing(Path(plot)) as path:
            chart.draw(found, str(path))
        if found["torch"] is not None:
            with replacing(beside(plot)) as path:
                chart.draw_curve(found, str(path))
    report.show(found, tables)  # in the end: what is written is there even where nobody reads this


def measured(workloads: Sequence[Workload], quick: bool, baseline: str) -> report.Report:
    """Measure optimizer steps, and all else where it is no quick run."""
    pace = QUICK if quick else FULL
    rules = {workload: QUICK_RULES.get(workload.name, RULES) if quick else RULES for workload in workloads}
    total = sum(len(modes(workload)) * len(of) for workload, of in rules.items())
    timings = list(track(steps(rules, pace, baseline), "Measuring", total=total))
    return {
        "machine": report.machine(baseline, quick),
        "rows": report.rows(timings, baseline),
        "ratios": report.ratios(timings),
        "iteration": None if quick else where_installed(iterations, pace),
        "schedules": None if quick else evaluations(pace),
        "embedded": None if quick else in_loops(pace),
        "torch": None if quick or not HAS_TORCH else in_torch(workloads, pace),
    }


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


def name_missing() -> None:
    """Say who cannot be measured here."""
    if not HAS_TORCH:
        say("torch is not installed: its optimizers are left out (pip install 'fastopt[bench]')")
    if not HAS_OPTAX:
        say("optax and jax are not both installed: optax is left out (pip install 'fastopt[optax]')")


def say(message: str) -> None:
    """Say what the reader of the tables should know, beside the progress bar."""
    print(message, file=sys.stderr)


def fits(workload: Workload) -> bool:
    """Say whether the memory is large enough for a workload, and say so where it is not."""
    there = limits.memory()
    if there is None:
        return True
    # Parameters, gradients, the fresh ones, zeros, NumPy's scratch, torch's two temporaries, the limit's parameters and
    # gradients, optax's parameters, gradients and updates, and the states of each contender and of the limit. Steps in
    # torch, which come later, need fewer.
    copies = 9 + 3 * HAS_OPTAX + max(len(REGISTRY[rule].states) for rule in RULES) * (len(CONTENDERS) + 1)
    needed = workload.elements * ITEMSIZE * copies
    if needed <= SHARE_OF_MEMORY * there:
        return True
    of = f"{needed / 1e9:.1f} GB of memory, too much of the {there / 1e9:.1f} GB that this process may use"
    say(f"{workload.title} is left out: it needs {of}")
    return False


@contextlib.contextmanager
def threads_of_torch() -> Iterator[None]:
    """Let torch use no more threads than this process may keep busy: it does not know of a container's quota."""
    if not HAS_TORCH:
        yield
        return
    import torch

    before, most = torch.get_num_threads(), limits.processors()
    if before > most:
        say(f"torch is limited to {most} threads, since this process may use no more processors")
        torch.set_num_threads(most)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def modes(workload: Workload) -> dict[str, Mode]:
    """Name the modes in which a workload's steps are timed: in one where they are long, since others show no more."""
    return dict(itertools.islice(MODES.items(), 1 if workload.elements >= LARGE else None))


def steps(rules: Mapping[Workload, Sequence[str]], pace: Pace, baseline: str) -> Iterator[Timing]:
    """Time every contender on every workload, by its rules, in every mode."""
    for workload, of in rules.items():
        arrays = Arrays.draw(workload)
        for rule in of:
            yield from steps_of(workload, rule, arrays, pace, baseline)


def steps_of(workload: Workload, rule: str, arrays: Arrays, pace: Pace, baseline: str) -> Iterator[Timing]:
    """Time every contender on one workload by one rule; their states are gone afterwards."""
    contestants = {name: make(name, rule, arrays) for name in CONTENDERS}
    for step in contestants.values():
        for _ in range(WARM_UP - 1):  # the first mode takes one more, to see how long it is
            step()
    contestants[LIMIT] = fastest(limit.limits(workload.elements, len(REGISTRY[rule].states)))
    bytes_moved = REGISTRY[rule].bytes_moved(ITEMSIZE) * workload.elements
    for suffix, mode in modes(workload).items():
        rounds = settled(contestants, mode, pace, tuple(dict.fromkeys((FASTOPT, baseline, LIMIT))))
        yield Timing(workload.name + suffix, rule, bytes_moved, rounds)


def fastest(loops: Mapping[str, Step]) -> Step:
    """Return the fastest of some steps, each at its best of a few."""
    return min(loops.values(), key=lambda loop: min(timed(loop) for _ in range(WARM_UP)))


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
