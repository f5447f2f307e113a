"""The threads that update tensors: torch's own OpenMP team, which is awake when a step comes, or fastopt's pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...kernels import pool, team


class TorchThreads:
    """Runs launches on as many threads as torch is set to.

    Attributes
    ----------
    parallel : int
        The entry of torch's OpenMP runtime, 0 where there is none that can be entered.
    get_num_threads : callable
        Returns torch's number of threads.
    """

    def __init__(self) -> None:
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        self.parallel = team.parallel_of(library) if pool.available else 0
        self.get_num_threads: Callable[[], int] = torch.get_num_threads

    def runner(self, kernel: Any, job_address: int) -> Callable[[int, int, int], None]:
        """Bind a kernel to a job."""
        if self.parallel:
            return team.runner(kernel, job_address, self.parallel)
        return pool.runner(kernel, job_address)


THREADS = TorchThreads()
