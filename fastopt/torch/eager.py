"""A function that torch.compile leaves alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

skip: Any
try:  # private names of torch; without them everything works, only slower
    from torch._C._dynamo.eval_frame import get_eval_frame_callback as compiling
    from torch._dynamo.decorators import skip
except ImportError:
    skip = None


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make torch.compile skip a method of one argument: one graph break, and the method runs uncompiled.

    ``torch.compiler.disable`` does that too, but adds 2 µs to each call; here only calls under compilation pay it.
    """
    disabled: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # torch's own
    if skip is None:
        return disabled

    @functools.wraps(function)
    def run(self: Any, closure: Any = None) -> Any:
        return function(self, closure) if compiling() is None else disabled(self, closure)

    skipped: Callable[..., Any] = skip(run)
    return skipped
