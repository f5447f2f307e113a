"""The extension with the pool and the reader, or None twice where it was not built."""

from __future__ import annotations

from typing import Any

from .tables import ABI

ffi: Any
lib: Any
try:
    from ._pool import ffi, lib
except ImportError:
    ffi = lib = None

if lib is not None and lib.fastopt_abi() != ABI:
    raise ImportError(f"fastopt's extension has ABI {lib.fastopt_abi()}, its tables have {ABI}: install fastopt again")
