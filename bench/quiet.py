"""Waits until other programs leave the processors alone, for a while, and says what they took of them meanwhile.

What they disturb is no measurement, even where it can be repeated: beside one other program, the threads of torch that
spin wait for one that does not run, in every round alike, and a step takes a thousand times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = 0.1  # the share of the processors' time that others may take before it begins
DISTURBING = 0.25  # and meanwhile
LOOK = 1.0  # seconds
LEAST = 10  # ticks of the system's clock: fewer say nothing
LONGEST = 60.0


def wait(say: Callable[[str], object]) -> None:
    """Return when it is quiet, or after a minute, and say so where it was not quiet from the first moment on."""
    end, began, waiting = time.monotonic() + LONGEST, time.monotonic(), False
    while (share := busy()) is not None and share > BUSY:
        if not waiting:
            say(f"other programs take {share:.0%} of the processors: waiting for a quiet moment, at most a minute")
            waiting = True
        if time.monotonic() >= end:
            say(f"others still take {share:.0%}: what they disturb too much is measured again, or printed as unstable")
            return
    if waiting:
        say(f"quiet after {time.monotonic() - began:.0f} s")


def busy() -> float | None:
    """Look for a second, and return the share of the time that others took; None where the system does not say."""
    others = Others()
    time.sleep(LOOK)
    return others.share()


class Others:
    """What others take from now on of the processors that this process may use, which may be few of many."""

    def __init__(self) -> None:
        self.before, self.own = times(), time.process_time()

    def share(self) -> float | None:
        """Return their share of the time until now; None where the system does not say, or too little has passed."""
        spent = [(after[0] - at[0], after[1] - at[1]) for at, after in zip(self.before, times(), strict=False)]
        total = sum(idle + working for idle, working in spent)
        own = (time.process_time() - self.own) * os.sysconf("SC_CLK_TCK") if spent else 0.0
        return max(0.0, sum(working for _, working in spent) - own) / total if total > LEAST else None

    def disturbed(self) -> str:
        """Say how much they took, where that was too much; nothing where it was not."""
        share = self.share()
        return f"other programs took {share:.0%} of the processors" if share is not None and share > DISTURBING else ""


def times() -> list[tuple[int, int]]:
    """Read how long each processor that may be used has been idle, and not, since the machine was started.

    What another guest of the same host has taken ("steal") counts as not idle.
    """
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    allowed = {f"cpu{number}" for number in (os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ())}
    found = []
    for name, *numbers in (line.split() for line in lines if line.startswith("cpu")):
        if name in allowed:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, numbers[:8])
            found.append((idle + iowait, user + nice + system + irq + softirq + steal))
    return found
