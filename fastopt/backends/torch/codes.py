"""States in 8 bits as torch holds them: codes in blocks, which run in the codes' own storage order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.dtypes import CODES
from ...step.codes import blocks, decode, encode
from ...step.memory import Layout
from .memory import array_of

CODE_DTYPES = {getattr(torch, name): name for name in CODES}


def is_code(value: Any) -> bool:
    """Say whether a state consists of codes."""
    return isinstance(value, Tensor) and value.dtype in CODE_DTYPES


def check_scales(what: str, codes: Tensor, scales: Any) -> Tensor:
    """Check the scales that belong to codes."""
    count = blocks(codes.numel())
    if not isinstance(scales, Tensor) or scales.dtype is not torch.float32 or scales.shape != (count,):
        raise ValueError(
            f"{what} is in 8 bits, and needs its scales, a float32 tensor of {count} elements, under the same name "
            f"with _scale behind it: save and load the two together, or save with compress_state_dict=False"
        )
    return scales.to(codes.device).contiguous()


def decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the numbers that codes stand for."""
    here, of_blocks = codes.cpu(), scales.cpu()
    numbers = torch.empty_like(here, dtype=torch.float32)
    stored(numbers)[...] = decode(np.ascontiguousarray(stored(here)), array_of(of_blocks))
    return numbers.to(codes.device)


def encoded(numbers: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the codes of float32 numbers, and the scales of their blocks."""
    here = numbers.cpu()
    codes = torch.empty_like(here, dtype=getattr(torch, name))
    stored(codes)[...], scales = encode(np.ascontiguousarray(stored(here)), name)
    return codes.to(numbers.device), torch.from_numpy(scales).to(numbers.device)


def stored(tensor: Tensor) -> Any:
    """View a dense tensor on the CPU as an array with its axes in storage order."""
    array = array_of(tensor)
    return Layout(array).in_storage_order(array)
