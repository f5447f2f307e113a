"""How many processors and how much memory this process may use, given its affinity and its cgroups (containers).

Both versions of cgroups are read, if mounted. The lowest limit between the process's own cgroup and the root holds.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

PROCESS = Path("/proc/self")


def processors() -> int:
    """Count the processors that this process may keep busy.

    A quota of 2.5 counts as two: a third thread would be stopped half of the time while the others wait for it.
    """
    quota = cpu_quota()
    return affinity() if quota is None else max(1, min(affinity(), int(quota)))


def affinity() -> int:
    """Count the processors that this process may run on, without reading a file."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int | None:
    """Return how many bytes of memory this process may use; None if the system does not say."""
    limits = [limit for limit in (physical_memory(), memory_limit()) if limit is not None]
    return min(limits, default=None)


def physical_memory() -> int | None:
    """Return how many bytes of memory the machine has; None if the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_quota() -> float | None:
    """Return how many processors' time the cgroups grant, often a fraction; None if they set no limit."""
    return lowest(quota_of)


def memory_limit() -> int | None:
    """Return how many bytes the cgroups grant; None if they set no limit."""
    found = lowest(memory_of)
    return None if found is None else int(found)


def quota_of(cgroup: Path) -> float:
    """Read the quota of one cgroup: version 2 has both numbers in `cpu.max`, or "max" for the first."""
    if (cgroup / "cpu.max").exists():
        quota, period = (cgroup / "cpu.max").read_text().split()
    else:
        quota, period = ((cgroup / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if float(quota) <= 0:  # version 1 writes -1
        raise ValueError("no limit")
    return float(quota) / float(period)


def memory_of(cgroup: Path) -> float:
    """Read the limit of one cgroup; version 1 writes a number close to 2^63 for none."""
    name = "memory.max" if (cgroup / "memory.max").exists() else "memory.limit_in_bytes"
    limit = int((cgroup / name).read_text())
    if limit >= 2**62:
        raise ValueError("no limit")
    return limit


def lowest(read: Callable[[Path], float]) -> float | None:
    """Return the lowest limit of all cgroups; a file that is missing or says "max" sets none."""
    found = []
    for cgroup in cgroups():
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            found.append(read(cgroup))
    return min(found, default=None)


def cgroups() -> list[Path]:
    """List the folders of the process's cgroups, with all mounted folders above them; empty if there are none."""
    try:
        own = (PROCESS / "cgroup").read_text().splitlines()
        mounts = (PROCESS / "mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    paths: dict[str, PurePosixPath] = {}  # by controller; version 2 has none
    for line in own:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    return [cgroup for mount in mounts for cgroup in mounted(mount, paths)]


def mounted(mount: str, paths: dict[str, PurePosixPath]) -> Iterator[Path]:
    """Yield the folders of the process's cgroup in one mount, from its own up to the mount point."""
    where, _, kind = mount.partition(" - ")
    system, _, options = kind.split(" ", 2)
    if system not in ("cgroup", "cgroup2"):
        return
    root, point = (unescaped(field) for field in where.split(" ")[3:5])
    for controller in [""] if system == "cgroup2" else options.split(","):
        path = paths.get(controller)
        if path is not None:
            # A container may see its own cgroup as the mount's root, while the path above it is hidden.
            below = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
            folder = Path(point, below)
            yield from (folder, *list(folder.parents)[: len(below.parts)])
            return


def unescaped(text: str) -> str:
    r"""Undo the escapes in mountinfo's paths: \040 is a blank."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
