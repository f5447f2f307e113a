"""Writing files: completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to the file at the end: nobody reads half a file.

    After an error or an interrupt the old file stays. A device such as /dev/stdout is written to directly.

    Raises
    ------
    OSError
        If the path is a folder, or its folder is not writable; nothing has been written then.
    """
    path = path.resolve()  # a symbolic link stays a link
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: a file is to be written there")
    if path.exists() and not path.is_file():
        yield path
        return
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"nothing can be written in {path.parent}, where {path.name} is to be")
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # writers choose the file type by the suffix
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
