"""Checks for torch.amp.GradScaler with an optimizer that lets the scaler unscale the gradients."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..kernels.tensors import PARAMS

SCALER = "torch.amp.grad_scaler"


def check_scaler(groups: list[dict[str, Any]]) -> None:
    """Raise if GradScaler is about to unscale gradients that it cannot unscale.

    Torch's own errors name the dtype, or an operation that a capture does not permit, but no way out. Other callers
    that read the same property, such as Lightning before clipping, are not concerned.

    Raises
    ------
    ValueError
        If a float16 parameter has a gradient.
    RuntimeError
        If a graph is being captured.
    """
    caller = sys._getframe(2)  # of the property that calls this function
    if caller.f_globals.get("__name__") != SCALER:
        return
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "GradScaler unscales the gradients and waits to see whether they are finite, which a capture cannot: make "
            "the optimizer with fused=True, so that the kernel does both"
        )
    for group in groups:
        for param in group[PARAMS]:
            if param.dtype is torch.float16 and param.grad is not None:
                raise ValueError(
                    "GradScaler does not unscale gradients of float16 parameters: make the optimizer with fused=True, "
                    "so that the kernel does, or keep the parameters in float32 and use autocast"
                )
