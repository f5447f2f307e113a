"""What is said of a name of torch.optim that is not here."""

from __future__ import annotations

import dis
import sys
from typing import NoReturn

import torch

from ..rules import FAMILIES


def explain(name: str) -> NoReturn:
    """Raise the error of a module that lacks a name, and say what it has in its place.

    Of an AttributeError, ``from fastopt.torch import LBFGS`` would show nothing.
    """
    message = f"module 'fastopt.torch' has no {name!r}"
    if hasattr(torch.optim, name):
        *others, last = FAMILIES
        message = f"fastopt.torch has {', '.join(others)} and {last}, but no {name}: use torch.optim.{name}"
    asking = sys._getframe(1)
    instruction = asking.f_code.co_code[asking.f_lasti] if asking.f_lasti >= 0 else 0
    if dis.opname[instruction] == "IMPORT_FROM":
        raise ImportError(message, name="fastopt.torch")
    raise AttributeError(message, name=name)
