"""fastopt: the optimizer step, fused into one pass over memory.

`SGD` and `Adagrad` are optimizers over NumPy and CuPy arrays; `fused` has the same updates as single calls;
`schedules` has learning rates as functions of the step.
"""

from . import fused, schedules
from .kernels.pool import get_num_threads, set_num_threads
from .optimizers import SGD, Adagrad, Optimizer

__version__ = "0.1.0"

__all__ = ["SGD", "Adagrad", "Optimizer", "fused", "get_num_threads", "schedules", "set_num_threads"]
