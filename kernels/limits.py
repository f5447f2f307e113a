"""How much of the machine this process may use: processors and memory, as affinity and control groups (containers) say.

Both versions of control groups are read, where the system has mounted them. A limit of any group between the process's
own and the root counts, so that the lowest is what holds.
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

    A quota of 2.5 counts as two: a third thread would be stopped half of the time, and the others wait for it.
    """
    quota = cpu_quota()
    return affinity() if quota is None else max(1, min(affinity(), int(quota)))


def affinity() -> int:
    """Count the processors that this process may run on; no file is read."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int | None:
    """Return how many bytes of memory this process may use; None where the system does not say."""
    limits = [limit for limit in (physical_memory(), memory_limit()) if limit is not None]
    return min(limits, default=None)


def physical_memory() -> int | None:
    """Return how many bytes of memory the machine has."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_quota() -> float | None:
    """Return how many processors' time the control groups grant, a fraction as a rule; None where they set no limit."""
    return lowest(quota_of)


def memory_limit() -> int | None:
    """Return how many bytes the control groups grant; None where they set no limit."""
    found = lowest(memory_of)
    return None if found is None else int(found)


def quota_of(group: Path) -> float:
    """Read the quota of one group: `cpu.max` of version 2 has both numbers, or "max" for the first."""
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text().split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if float(quota) <= 0:  # version 1 writes -1
        raise ValueError("no limit")
    return float(quota) / float(period)


def memory_of(group: Path) -> float:
    """Read the limit of one group; version 1 writes a number close to 2^63 where there is none."""
    name = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
    limit = int((group / name).read_text())
    if limit >= 2**62:
        raise ValueError("no limit")
    return limit


def lowest(read: Callable[[Path], float]) -> float | None:
    """Return the lowest limit of all groups that have one; a file that is missing or says "max" is no limit."""
    found = []
    for group in groups():
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            found.append(read(group))
    return min(found, default=None)


def groups() -> list[Path]:
    """List the folders of the process's groups, each with all above it that are mounted; empty where there are none."""
    try:
        own = (PROCESS / "cgroup").read_text().splitlines()
        mounts = (PROCESS / "mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    paths: dict[str, PurePosixPath] = {}  # by controller; version 2 has none
    for line in own:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    return [group for mount in mounts for group in mounted(mount, paths)]


def mounted(mount: str, paths: dict[str, PurePosixPath]) -> Iterator[Path]:
    """Yield the folders of the process's group in one mount of the system, from its own up to the mount's."""
    place, _, kind = mount.partition(" - ")
    system, _, options = kind.split(" ", 2)
    if system not in ("cgroup", "cgroup2"):
        return
    root, point = (unescaped(field) for field in place.split(" ")[3:5])
    for controller in [""] if system == "cgroup2" else options.split(","):
        path = paths.get(controller)
        if path is not None:
            # A container may see its own group as the mount's root, under a path that it does not see.
            below = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
            folder = Path(point, below)
            yield from (folder, *list(folder.parents)[: len(below.parts)])
            return


def unescaped(text: str) -> str:
    r"""Read a path as the system writes it there, with \040 for a blank."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
