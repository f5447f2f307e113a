"""The threads of torch's own OpenMP team, which are awake when a step comes; fastopt's pool where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..kernels import pool


class TorchThreads:
    """Runs launches on as many threads as torch is set to."""

    def get_num_threads(self) -> int:
        """Return torch's number of threads."""
        return torch.get_num_threads()

    def runner(self, kernel: Any, job_address: int) -> Callable[[int, int, int], None]:
        """Bind a kernel to a job."""
        return pool.runner(kernel, job_address)


THREADS = TorchThreads()
