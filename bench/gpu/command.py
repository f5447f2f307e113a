"""The command ``fastopt bench --gpu``: check, measure, write, print."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fastopt.files import replacing
from fastopt.progress import track

from ..command import check_files, say
from . import compiled, figures, report, saved
from . import plot as chart
from .check import checks, count
from .contenders import Contender, Say, contenders
from .device import Device, open_device
from .measure import Budget
from .parts import Bench, parts

# For the whole command, checks and compilation included. The rest of 200 or 60 seconds is for a last part that takes
# longer than its share, for tables and for the chart.
SECONDS, ROUNDS = 190.0, (7, 200)
QUICK_SECONDS, QUICK_ROUNDS = 54.0, (3, 50)


def run(
    quick: bool,
    json: str | None,
    plot: str | None,
    baseline: str | None = None,
    resume: str | None = None,
    tables: bool = False,
) -> None:
    """Check the updates on the GPU, then measure all contenders, write files, and print the results.

    Parameters
    ----------
    quick : bool
        Whether to run fewer rounds.
    json, plot : str or None
        Files for the data and for the chart. The data are written after each part.
    baseline : str, optional
        The contender that speed-ups refer to; by default torch's fused step, else CuPy's expressions.
    resume : str, optional
        The file of an earlier run on this machine: its missing parts are measured and added to it. It keeps its
        baseline, and whether it is quick.
    tables : bool, default False
        Whether to print all tables, not only the summary.

    Raises
    ------
    ValueError, OSError
        If there is no such baseline or no GPU here, a file cannot be written or is no run of this machine's, or an
        update is wrong; before anything is measured.
    ImportError
        If a package that this needs is not installed.
    """
    earlier = None if resume is None else saved.read(Path(resume))
    if earlier is not None:
        if quick or baseline is not None:
            raise ValueError("--quick and --baseline are for a new run: one that is resumed has its own")
        quick, baseline = earlier["machine"]["quick"], earlier["machine"]["baseline"]
    budget = Budget(QUICK_SECONDS, *QUICK_ROUNDS) if quick else Budget(SECONDS, *ROUNDS)
    check_files(json, plot)
    files = [Path(name) for name in (resume, json) if name is not None]
    for path in files:
        saved.check_writable(path)
    if earlier is None or earlier["missing"]:
        found = measured(earlier, quick, baseline, budget, files)
    else:
        say(f"{resume} names nothing that is missing: there was nothing left to measure")
        found = earlier
        keep(found, files[1:])
    if plot is not None:
        with replacing(Path(plot)) as path:
            chart.draw(found, str(path))
    report.show(found, tables)


def measured(
    earlier: figures.Report | None, quick: bool, baseline: str | None, budget: Budget, files: Sequence[Path]
) -> figures.Report:
    """Check, then measure all missing parts; write the files after each."""
    notes = [] if earlier is None else earlier["notes"]

    def note(message: str) -> None:
        if message not in notes:
            notes.append(message)
            say(message)

    device = open_device(note)
    eager = contenders(device)
    everyone = eager | compiling(device, quick, note)
    if earlier is not None:
        there = earlier["machine"]
        saved.check_machine(files[0], there, figures.machine(device, there["baseline"], quick))
    baseline = chosen(baseline, everyone)
    listed = parts(Bench(device, everyone, baseline, note))
    names = [part.name for part in listed]
    found = earlier or figures.empty(figures.machine(device, baseline, quick), notes, names)
    if unknown := [name for name in found["missing"] if name not in names]:
        raise ValueError(f"{files[0]} misses what is not measured here: {', '.join(unknown)}")
    right = track(checks(device, eager, note), "Checking", total=count(device, eager))
    found["checked"] = sum(1 for _ in right)
    keep(found, files)
    for part in track([part for part in listed if part.name in found["missing"]], "Measuring"):
        figures.add(found, part.measure(partial(budget.pace, len(found["missing"]))))
        found["missing"].remove(part.name)
        keep(found, files)
    return found


def keep(found: figures.Report, files: Sequence[Path]) -> None:
    """Write everything measured so far."""
    for path in files:
        saved.write(found, path)


def compiling(device: Device, quick: bool, note: Say) -> dict[str, Contender]:
    """Return the contender that torch compiles; a quick run has no time for it."""
    if device.torch is None:
        return {}
    if quick:
        note(f"{compiled.COMPILED} is left out of a quick run: it takes too long to compile")
        return {}
    return {compiled.COMPILED: compiled.contender(compiled.BACKEND)}


def chosen(baseline: str | None, everyone: dict[str, Contender]) -> str:
    """Return the baseline; raise ValueError if there is none of that name."""
    if baseline is None:
        baseline = "torch-fused" if "torch-fused" in everyone else "cupy"
    if baseline not in everyone:
        raise ValueError(f"baseline {baseline!r} is not among {', '.join(everyone)}")
    return baseline
