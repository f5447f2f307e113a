"""The CPU, on which arrays of NumPy are updated by the threads of fastopt's pool."""

from __future__ import annotations

from ...kernels import pool
from ...step.cpu import Cpu

CPU = Cpu(pool)
