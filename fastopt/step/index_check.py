"""What a GPU has found of the indices of sparse gradients, and how the host learns of it without waiting."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..kernels.stream import Stream, Told
from ..kernels.tables import GPU_CHECK
from .launch import AmpState


class IndexCheck:
    """What one GPU has found of the indices of sparse gradients: a wrong one skips its step, as GradScaler may.

    The host learns of it later, without waiting: with a later step, or when it asks for states, for which it waits.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.memory = Told(stream, GPU_CHECK)
        self.skip = self.memory.address + int(GPU_CHECK.fields["skip"][1])  # type: ignore[index]  # it has fields
        self.tables: dict[int, tuple[str, int]] = {}  # by their parameters' numbers: whose rows they are, and how many

    def begin(self, found_inf: int) -> None:
        """Begin a step: no index is wrong yet, and what lies at GradScaler's address, if any, skips it too."""
        if found_inf:
            self.stream.copy(self.skip, found_inf, 4)
        else:
            self.stream.send(self.skip, np.zeros(1, np.int64))

    def refuse_told(self) -> None:
        """Raise ValueError if the host was told of a wrong index in an earlier step."""
        if self.memory.seen[0]["found"]:
            self.refuse()

    def refuse(self) -> None:
        """Wait, and raise ValueError if an index was wrong; of the next one the host is told again."""
        words = np.array(self.stream.download(self.memory, GPU_CHECK.itemsize // 8), np.int64)
        found = words.view(GPU_CHECK)[0]
        if not found["found"]:
            return
        self.stream.send(self.memory.address, np.zeros(len(words), np.int64))
        self.memory.seen[:] = 0
        what, rows = self.tables[int(found["tensor"])]
        raise ValueError(
            f"{what} had an index {found['index']}, and the table has {rows} rows, from 0: that step changed nothing "
            "and is not counted"
        )


class Checked(NamedTuple):
    """An AMP state for a step that a wrong index skips as well: GradScaler's, or nobody's, and the check."""

    check: IndexCheck
    amp: AmpState | None = None

    def addresses(self, device: Any) -> tuple[int, int]:
        """Return the address of the scale, 0 if there is none, and that of the flag of both."""
        scale, found_inf = (0, 0) if self.amp is None else self.amp.addresses(device)
        self.check.begin(found_inf)
        return scale, self.check.skip
