"""The extension with the pool and the readers; `ffi` and `lib` are None if it was not built or does not load."""

from __future__ import annotations

import importlib
from typing import Any

from .tables import ABI

try:
    _pool: Any = importlib.import_module("._pool", __package__)
    error: str | None = None
except ImportError as reason:
    _pool, error = None, str(reason)

ffi: Any = _pool.ffi if _pool else None
lib: Any = _pool.lib if _pool else None

if lib is not None and lib.fastopt_abi() != ABI:
    raise ImportError(f"fastopt's extension has ABI {lib.fastopt_abi()}, its tables have {ABI}: install fastopt again")
