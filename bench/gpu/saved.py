"""A run's file: rewritten after each part, so that nothing is lost if a later one fails, and read again to resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from fastopt.files import replacing

from .figures import Machine, Report

KINDS: dict[str, type] = {
    "machine": dict,
    "checked": int,
    "rows": list,
    "ratios": list,
    "compiled": list,
    "graphs": list,
    "stages": list,
    "launches": list,
    "iterations": list,
    "notes": list,
    "missing": list,
}
OF_MACHINE = ("gpu", "driver", "runtime", "torch_runtime", "versions", "date", "baseline", "quick")
SAME = ("fastopt", "torch", "cupy")  # versions that must be the same to resume a run


def read(path: Path) -> Report:
    """Read a run; entries that files of older versions lack are empty.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a run on a GPU.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    found: dict[str, Any] = {name: [] for name, kind in KINDS.items() if kind is list}
    found |= given if isinstance(given, dict) else {}
    of_its_kind = all(isinstance(found.get(name), kind) for name, kind in KINDS.items())
    if not of_its_kind or not found["machine"].keys() >= set(OF_MACHINE):
        raise ValueError(f"{path} is no run of fastopt bench --gpu: --json writes these")
    return cast(Report, {name: found[name] for name in KINDS})


def write(report: Report, path: Path) -> None:
    """Write a run over the old file: a reader finds either the old one or the new one, whatever happens."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def check_writable(path: Path) -> None:
    """Raise an error if a run could not be written to this path."""
    if path.exists() and not path.is_file():  # writing would replace a device
        raise ValueError(f"{path} is no file: --json and --resume write one")
    folder = path.resolve().parent
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"nothing can be written in {folder}, where {path.name} is to be")


def check_machine(path: Path, there: Machine, here: Machine) -> None:
    """Raise ValueError if a run is from another machine: figures of two cannot be compared."""
    if described(there) != described(here):
        raise ValueError(
            f"{path} is a run on {described(there)}; here is {described(here)}: a run goes on where it began, since "
            "figures of two machines do not stand side by side"
        )


def described(machine: Machine) -> str:
    """Describe what must be the same for figures to be comparable."""
    libraries = ", ".join(f"{name} {machine['versions'].get(name, 'missing')}" for name in SAME)
    cuda = f"CUDA {machine['driver']} in the driver, {machine['runtime']} in CuPy, {machine['torch_runtime']} in torch"
    return f"{machine['gpu']} ({cuda}; {libraries})"
