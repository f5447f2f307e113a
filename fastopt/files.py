"""Files that commands write: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside a file to write to, which takes the file's place in the end: nobody finds half a file.

    Where an error or an interrupt comes first, what was there stays. A device, as /dev/stdout, is written to itself.

    Raises
    ------
    OSError
        Before anything is written, if there is a folder in its place, or none to write it in.
    """
    path = path.resolve()  # a link stays one
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: a file is to be written there")
    if path.exists() and not path.is_file():
        yield path
        return
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"nothing can be written in {path.parent}, where {path.name} is to be")
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # by which writers choose a format
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
