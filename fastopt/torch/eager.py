"""A function that torch.compile leaves alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

skip: Any = None
try:  # they are torch's own affair, and only save time
    from torch._C._dynamo.eval_frame import get_eval_frame_callback as compiling
    from torch._dynamo.decorators import skip
except ImportError:
    skip = None


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile out of a method that takes one argument, and is called as it stands: a clean graph break.

    ``torch.compiler.disable`` does that, and takes 2 µs for it even where nobody compiles, which is asked for here
    first.
    """
    disabled: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # torch's own
    if skip is None:
        return disabled

    @functools.wraps(function)
    def run(self: Any, closure: Any = None) -> Any:
        return function(self, closure) if compiling() is None else disabled(self, closure)

    skipped: Callable[..., Any] = skip(run)
    return skipped
