"""Methods that do not keep their objects alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def weak(method: Callable[..., Any]) -> Callable[..., bool]:
    """Return a method that does not keep its object alive; it says whether that was still there to be called."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> bool:
        found = reference()
        if found is not None:
            found(*arguments)
        return found is not None

    return call
