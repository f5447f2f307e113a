"""The locks of an optimizer, which a forked child finds free."""

from __future__ import annotations

import os
import threading
import weakref


class Guard:
    """The locks of one optimizer.

    Both are used by ``with`` as they are: a lock in C is given back whatever interrupt comes.

    Attributes
    ----------
    mutex : RLock
        Held by whoever reads or changes the optimizer. A schedule may ask for the state in the midst of a step.
    stepping : Lock
        Held during a step, and while averages stand in the parameters' place.
    swapped : bool
        Whether they do.
    """

    def __init__(self) -> None:
        self.free()
        _guards.add(self)

    def free(self) -> None:
        """Begin with locks that nobody holds."""
        self.mutex = threading.RLock()
        self.stepping = threading.Lock()
        self.swapped = False

    def begin_swap(self) -> None:
        """Refuse steps from now on, since other numbers stand in the parameters' place."""
        self.stepping.acquire()
        self.swapped = True

    def end_swap(self) -> None:
        """Allow steps again."""
        self.swapped = False
        self.stepping.release()

    def refuse_inside_step(self) -> None:
        """Raise where a schedule, or a signal's handler, would change what a step is about to use."""
        if self.swapped:
            raise RuntimeError(
                "the averages stand in the parameters' place: leave the block of swap_ema_weights() before you take a "
                "step, load, add parameters or swap again"
            )
        if self.stepping.locked():
            raise RuntimeError(
                "this optimizer is inside a step: neither step nor load or add parameters before it ends"
            )


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _free_in_child() -> None:
    """Free the locks that threads held which a forked child does not have."""
    for guard in _guards:
        guard.free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_child)
