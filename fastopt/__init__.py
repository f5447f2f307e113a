"""fastopt: the optimizer step, fused into one pass over memory.

`SGD`, `Adagrad`, `RMSprop`, `Adam` and `AdamW` are optimizers over NumPy and CuPy arrays; `fused` has the same updates
as single calls; `schedules` has learning rates as functions of the step; `embed` has the updates for loops in C and
C++.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

try:
    from . import fused, schedules
    from .kernels.pool import get_num_threads, set_num_threads
    from .optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
except KeyboardInterrupt:
    if os.path.basename(sys.argv[0]) == "fastopt":  # the command, of which this takes a quarter of a second
        sys.exit(130)
    raise

if TYPE_CHECKING:
    from . import embed
    from .embed import get_include

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "embed",
    "fused",
    "get_include",
    "get_num_threads",
    "schedules",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    """Import `embed` when it is first asked for: cffi parses the header for it, half as long as all the rest takes."""
    if name not in ("embed", "get_include"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    embed = importlib.import_module(".embed", __name__)
    return embed if name == "embed" else embed.get_include


def __dir__() -> list[str]:
    """List what there is, imported or not."""
    return sorted({*globals(), *__all__})
