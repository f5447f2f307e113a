"""The error for names of torch.optim that fastopt.torch does not have."""

from __future__ import annotations

import dis
import sys
from typing import NoReturn

import torch

from ..rules import FAMILIES


def explain(name: str) -> NoReturn:
    """Raise an error for a missing name, and say what to use instead.

    It is an ImportError for ``from fastopt.torch import LBFGS``, which would not show the text of an AttributeError.
    """
    message = f"module 'fastopt.torch' has no {name!r}"
    if hasattr(torch.optim, name):
        *others, last = FAMILIES
        message = f"fastopt.torch has {', '.join(others)} and {last}, but no {name}: use torch.optim.{name}"
    caller = sys._getframe(1)
    instruction = caller.f_code.co_code[caller.f_lasti] if caller.f_lasti >= 0 else 0
    if dis.opname[instruction] == "IMPORT_FROM":
        raise ImportError(message, name="fastopt.torch")
    raise AttributeError(message, name=name)
