"""The CPU, where the threads of fastopt's pool update arrays of NumPy."""

from __future__ import annotations

from ...kernels import pool
from ...step.cpu import Cpu

CPU = Cpu(pool)
