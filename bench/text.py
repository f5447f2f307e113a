"""How numbers and tables are written, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastopt.extras import require

Lines = Sequence[Sequence[str]]  # of a table, its headings first


def duration(seconds: float) -> str:
    """Write a time to three digits, in the unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            break
    value = seconds / scale
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def times(ratio: float) -> str:
    """Write a ratio to two or three digits."""
    if ratio < 0.1:
        return f"{ratio:.1g}x"
    digits = 0 if ratio >= 10 else 1 if ratio >= 2 else 2
    return f"{ratio:.{digits}f}x"


def table(lines: Lines, names: int, title: str) -> Any:
    """Make a table for the terminal; its first columns are names, the others numbers."""
    headings, *cells = lines
    made = require("rich.table", "bench").Table(*headings[:names], title=title)
    for heading in headings[names:]:
        made.add_column(heading, justify="right")
    for line in cells:
        made.add_row(*line)
    return made


def markdown_table(lines: Lines, names: int) -> Iterator[str]:
    """Write a table in Markdown; its first columns are names, the others numbers."""
    headings, *cells = lines
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "---|" * names + "--:|" * (len(headings) - names)
    for line in cells:
        yield "| " + " | ".join(line) + " |"
