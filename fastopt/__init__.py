"""fastopt: the optimizer step, fused into one pass over memory.

`SGD`, `Adam` and the other classes of `optimizers` are optimizers over NumPy and CuPy arrays; `fused` has updates as
single calls; `schedules` has learning rates as functions of the step; `embed` has the updates for loops in C and C++.
`torch` has the optimizers for PyTorch, `lab` experiments with pictures; these two need the extra of the same name.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

try:
    from . import fused, optimizers, schedules
    from .base import Optimizer
    from .clipping import clip_grad_norm_, grad_norm
    from .extras import MissingExtraError
    from .kernels.pool import get_num_threads, set_num_threads
    from .optimizers import *  # noqa: F403 (what its `__all__` lists)
    from .sparse_rows import SparseRows
except KeyboardInterrupt:
    if os.path.basename(sys.argv[0]) == "fastopt":  # the command: these imports take a quarter of a second
        sys.exit(130)
    raise

if TYPE_CHECKING:
    from . import embed
    from . import lab as lab
    from . import torch as torch
    from .embed import get_include

__version__ = "0.2.0"

# Imported on first use. For `embed`, cffi parses a header, which takes half as long as all other imports; `lab` and
# `torch` need packages that not everybody has, so `from fastopt import *` does not import them.
LAZY = ("embed", "lab", "torch")

__all__ = [
    "Optimizer",
    "SparseRows",
    "clip_grad_norm_",
    "embed",
    "fused",
    "get_include",
    "get_num_threads",
    "grad_norm",
    "schedules",
    "set_num_threads",
]
__all__ += optimizers.__all__


def __getattr__(name: str) -> Any:
    """Import a module of `LAZY`, or raise an error that names the extra it needs."""
    if name == "get_include":
        return importlib.import_module(".embed", __name__).get_include
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f".{name}", __name__)
    except MissingExtraError as error:  # no ImportError here: `hasattr` and `help` expect this one
        raise AttributeError(str(error)) from error


def __dir__() -> list[str]:
    """List all names, those not yet imported included."""
    return sorted({*globals(), *__all__, *LAZY})
