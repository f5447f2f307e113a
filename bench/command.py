"""The command ``fastopt bench``: measure, print, write."""

from __future__ import annotations

import contextlib
import itertools
import json as jsonlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fastopt.kernels import extension, limits

from fastopt.extras import require
from fastopt.files import replacing
from fastopt.progress import track
from fastopt.rules import RULES as REGISTRY

from . import embedding, gpu_host, limit, quiet, report, sparse, stages
from . import plot as chart
from .contenders import CONTENDERS, FASTOPT, HAS_OPTAX, HAS_TORCH, NUMPY, RULES, Step, make
from .iteration import iterations
from .masters_report import Master
from .measure import LIMIT, MODES, WARM_UP, Mode, Pace, Timing, settled, timed
from .schedules import evaluations
from .storages_report import Storage
from .torch_report import InTorch
from .workloads import DISTRIBUTED, ITEMSIZE, SHARE_OF_MEMORY, WORKLOADS, Arrays, Workload

Measured = TypeVar("Measured")

LARGE = 10_000_000  # elements: a step takes much longer than waking threads does, and overwrites all caches

PICTURES = (".png", ".svg", ".pdf")

# A quick run steps large models only by the rule that they are usually trained with.
QUICK_RULES = {"resnet50": ("momentum",), "gpt2": ("adam",)}
QUICK = Pace(seconds=0.5, fewest=3, most=1000)
FULL = Pace(seconds=8.0, fewest=7, most=1000)


def run(quick: bool, json: str | None, plot: str | None, baseline: str = NUMPY, tables: bool = False) -> None:
    """Measure all contenders on all workloads, write the requested files, and print the results.

    Parameters
    ----------
    quick : bool
        Whether to measure only optimizer steps, in fewer rounds, and large models by one rule; over states in 16 bits
        small models alone, by one rule.
    json, plot : str or None
        Files for the data and for the chart. Two more, of steps in torch and of sparse gradients, get "-torch" and
        "-sparse" in their names.
    baseline : str, default "numpy"
        The contender that speed-ups refer to in the table of all contenders.
    tables : bool, default False
        Whether to print all tables, not only the summary.

    Raises
    ------
    ValueError, OSError
        If there is no such baseline here, or a file cannot be written; before anything is measured.
    ImportError
        If a package that this needs is not installed.
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
            with replacing(beside(plot, "torch")) as path:
                chart.draw_curve(found, str(path))
        if found["touched"] is not None:
            with replacing(beside(plot, "sparse")) as path:
                chart.draw_touched(found, str(path))
    report.show(found, tables)  # last: the files are written even if printing fails


def measured(workloads: Sequence[Workload], quick: bool, baseline: str) -> report.Report:
    """Measure optimizer steps, also over small states in 16 bits, and, unless the run is quick, everything else."""
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
        "gpu_host": None if quick else hosts_of_gpus(pace),
        "torch": None if quick or not HAS_TORCH else in_torch(workloads, pace),
        "stages": None if quick else of_stages(workloads, pace),
        "storages": of_storages(workloads, quick, pace) if HAS_TORCH else None,
        "masters": None if quick or not HAS_TORCH else of_masters(workloads, pace),
        "sparse": None if quick else sparse.of_tables(sparse.TABLES, pace),
        "touched": None if quick else sparse.of_touches(sparse.CURVE_TABLES, pace),
    }


def check(json: str | None, plot: str | None, baseline: str) -> None:
    """Raise an error if `run` could not do what it is asked to."""
    if baseline not in CONTENDERS:
        raise ValueError(f"baseline {baseline!r} is not among {', '.join(CONTENDERS)}")
    others = ["sparse", *["torch"] * HAS_TORCH]
    check_files(json, plot, *[beside(plot, name) for name in others if plot is not None])


def check_files(json: str | None, plot: str | None, *more: Path | None) -> None:
    """Raise an error if a file cannot be written, or a package that writes it is not installed."""
    if plot is not None and Path(plot).suffix not in PICTURES:
        raise ValueError(f"{plot} is no picture: its name must end in {', '.join(PICTURES)}")
    for path in (Path(given) for given in (json, plot, *more) if given is not None):
        existed = path.exists()
        path.open("a").close()  # raises OSError if it cannot be written
        if not existed:  # a run that fails leaves no empty file
            path.unlink()
    require("rich", "bench")
    if plot is not None:
        require("matplotlib", "bench")


def beside(plot: str, what: str) -> Path:
    """Name the file of another chart."""
    return Path(plot).with_stem(f"{Path(plot).stem}-{what}")


def name_missing() -> None:
    """Say which contenders are not installed."""
    if not HAS_TORCH:
        say("torch is not installed: its optimizers are left out (pip install 'fastopt[bench]')")
    if not HAS_OPTAX:
        say("optax and jax are not both installed: optax is left out (pip install 'fastopt[optax]')")


def say(message: str) -> None:
    """Print a message for the reader of the tables, beside the progress bar."""
    print(message, file=sys.stderr)


def fits(workload: Workload) -> bool:
    """Return whether the memory is large enough for a workload; if it is not, print a message."""
    available = limits.memory()
    if available is None:
        return True
    # Parameters, gradients, fresh gradients, zeros, NumPy's scratch, torch's two temporaries, the limit's parameters
    # and gradients, optax's parameters, gradients and updates, and the states of each contender and of the limit. The
    # steps in torch, later on, need fewer copies.
    copies = 9 + 3 * HAS_OPTAX + max(len(REGISTRY[rule].states) for rule in RULES) * (len(CONTENDERS) + 1)
    needed = workload.elements * ITEMSIZE * copies
    if needed <= SHARE_OF_MEMORY * available:
        return True
    of = f"{needed / 1e9:.1f} GB of memory, too much of the {available / 1e9:.1f} GB that this process may use"
    say(f"{workload.title} is left out: it needs {of}")
    return False


@contextlib.contextmanager
def threads_of_torch() -> Iterator[None]:
    """Limit torch's threads to the processors that this process may use: torch ignores a container's quota."""
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
    """Return the modes in which a workload's steps are timed: one for long steps, since others show nothing new."""
    return dict(itertools.islice(MODES.items(), None if small([workload]) else 1))


def small(workloads: Sequence[Workload]) -> list[Workload]:
    """Return the workloads whose steps are short."""
    return [workload for workload in workloads if workload.elements < LARGE]


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
        for _ in range(WARM_UP - 1):  # the first mode takes one more, to see how long a step is
            step()
    contestants[LIMIT] = fastest(limit.limits(workload.elements, len(REGISTRY[rule].states)))
    bytes_moved = REGISTRY[rule].bytes_moved(ITEMSIZE) * workload.elements
    for suffix, mode in modes(workload).items():
        rounds = settled(contestants, mode, pace, tuple(dict.fromkeys((FASTOPT, baseline, LIMIT))))
        yield Timing(workload.name + suffix, rule, bytes_moved, rounds)


def fastest(loops: Mapping[str, Step]) -> Step:
    """Return the fastest of some steps, each at its best of a few attempts."""
    return min(loops.values(), key=lambda loop: min(timed(loop) for _ in range(WARM_UP)))


def in_loops(pace: Pace) -> embedding.Embedded:
    """Measure updates in compiled loops: in Numba and, if there is a compiler, in C++ and C."""
    try:
        library = embedding.compiled_loops()
    except OSError as error:
        say(f"loops in C++ and C are left out: {error}")
        library = None
    return embedding.embedded(library, pace)


def hosts_of_gpus(pace: Pace) -> list[gpu_host.Host] | None:
    """Measure the host's part of steps on a GPU, which the extension takes."""
    if extension.lib is None:
        say(f"the host of a GPU step is not measured: fastopt's extension is not there ({extension.error})")
        return None
    return gpu_host.hosts(pace)


def in_torch(workloads: Sequence[Workload], pace: Pace) -> InTorch:
    """Measure torch's own optimizers, and those of others for torch."""
    import torch

    from . import tensors, torch_iteration

    steps = track(tensors.rows(workloads, pace), "Measuring in torch", total=len(workloads) * len(RULES))
    points = track(tensors.curve(pace), "Counting tensors", total=len(tensors.COUNTS))
    return {
        "threads": torch.get_num_threads(),
        "rows": [*itertools.chain.from_iterable(steps), *tensors.distributed_rows(DISTRIBUTED, pace)],
        "curve": list(itertools.chain.from_iterable(points)),
        "iteration": where_installed(torch_iteration.iterations, pace),
    }


def of_stages(workloads: Sequence[Workload], pace: Pace) -> list[stages.Stage]:
    """Measure clipping and averages: in NumPy, in torch, and in a trainer for torch."""
    found = stages.in_numpy(workloads, pace)
    if HAS_TORCH:
        from . import torch_stages, trainer

        found += torch_stages.in_torch(workloads, pace)
        found += where_installed(trainer.iterations, pace) or []
    return found


def of_storages(workloads: Sequence[Workload], quick: bool, pace: Pace) -> list[Storage]:
    """Measure steps over states in bfloat16, in torch; for a quick run, of small models by one rule."""
    from . import storages

    if quick:
        return storages.in_torch(small(workloads), storages.QUICK_RULES, pace)
    return storages.in_torch(workloads, storages.RULES, pace)


def of_masters(workloads: Sequence[Workload], pace: Pace) -> list[Master]:
    """Measure models in bfloat16 that are trained in float32, in torch."""
    from . import masters

    return masters.in_torch(workloads, pace)


def where_installed(iterations: Callable[[Pace], Measured], pace: Pace) -> Measured | None:
    """Measure whole training iterations if what they train, or train with, is installed."""
    try:
        return iterations(pace)
    except ImportError as error:
        say(f"a whole training iteration is not measured: {error}")
        return None
