"""Waits a while for other programs to leave the processors alone, and measures how much they take during a measurement.

A disturbed measurement is worthless even if it can be repeated: beside one other program, torch's spinning threads wait
for one that is not running, in every round, and a step takes a thousand times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = 0.1  # the share of the processors' time that others may take before a measurement
DISTURBING = 0.25  # and during one
SAMPLE = 1.0  # seconds
LEAST = 10  # ticks of the system's clock: fewer are too inaccurate
LONGEST = 60.0


def wait(say: Callable[[str], object]) -> None:
    """Return when it is quiet, or after a minute; print a message if it is not quiet at once."""
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
    """Return the share of the time that others take during a second; None if the system does not say."""
    others = Others()
    time.sleep(SAMPLE)
    return others.share()


class Others:
    """How much others take, from now on, of the processors that this process may use."""

    def __init__(self) -> None:
        self.before, self.own = times(), time.process_time()

    def share(self) -> float | None:
        """Return their share of the time until now; None if the system does not say, or too little time has passed."""
        spent = [(after[0] - at[0], after[1] - at[1]) for at, after in zip(self.before, times(), strict=False)]
        total = sum(idle + working for idle, working in spent)
        own = (time.process_time() - self.own) * os.sysconf("SC_CLK_TCK") if spent else 0.0
        return max(0.0, sum(working for _, working in spent) - own) / total if total > LEAST else None

    def disturbed(self) -> str:
        """Return a sentence on how much they took, or "" if it was not too much."""
        share = self.share()
        return f"other programs took {share:.0%} of the processors" if share is not None and share > DISTURBING else ""


def times() -> list[tuple[int, int]]:
    """Read how long each processor that this process may use has been idle, and busy, since the machine started.

    Time that went to another guest of the same host ("steal") counts as busy.
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
