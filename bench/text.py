"""How numbers and tables are written, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fastopt.extras import require

Lines = Sequence[Sequence[str]]  # of a table, its headings first
Entry = TypeVar("Entry", bound=Mapping[str, Any])

UNSTABLE = "unstable"  # printed instead of a figure


def duration(seconds: float | None) -> str:
    """Write a time to three digits, in the unit that fits."""
    if seconds is None:
        return UNSTABLE
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            break
    value = seconds / scale
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def times(ratio: float | None) -> str:
    """Write a ratio to two or three digits."""
    if ratio is None:
        return UNSTABLE
    if ratio < 0.1:
        return f"{ratio:.1g}x"
    digits = 0 if ratio >= 10 else 1 if ratio >= 2 else 2
    return f"{ratio:.{digits}f}x"


def arranged(rows: Iterable[Entry], *keys: str) -> dict[tuple[str, ...], dict[str, Entry]]:
    """Arrange what was measured as a table's lines: the values of keys -> implementation -> row."""
    found: dict[tuple[str, ...], dict[str, Entry]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), {})[row["implementation"]] = row
    return found


def columns(
    found: Mapping[tuple[str, ...], Mapping[str, Any]], names: Iterable[str], optional: Iterable[str]
) -> list[str]:
    """Name the contenders that have a column, the optional ones only if some line has them."""
    return [*names, *(name for name in optional if any(name in contenders for contenders in found.values()))]


def ratios(contenders: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Write how many times as long contenders take; "" for one that was not measured."""
    return [times(contenders[name]["ratio"]) if name in contenders else "" for name in names]


def percent(share: float | None) -> str:
    """Write a share."""
    return UNSTABLE if share is None else f"{share:.0%}"


def unstable(found: Any, names: Callable[[str, str], str], about: tuple[str, ...] = ()) -> Iterator[str]:
    """Walk through the content of a JSON file, and yield a line for each unstable figure, with the reason.

    Parameters
    ----------
    found : object
        Entries in lists and dicts, some with reasons under `unstable`.
    names : callable
        Returns what people call an entry, given its key and value.
    about : tuple of str
        What the enclosing entries are about.
    """
    if isinstance(found, Mapping):
        own = [names(key, value) for key, value in found.items() if isinstance(value, str)]
        own += [f"{found[unit]} {unit}" for unit in ("tensors", "bytes") if unit in found]
        about = (*about, *own)
        for figure, reason in found.get("unstable", {}).items():
            yield f"{', '.join((*about, figure.replace('_', ' ')))}: {reason}"
    if isinstance(found, Mapping | list):
        for value in found.values() if isinstance(found, Mapping) else found:
            yield from unstable(value, names, about)


def table(lines: Lines, names: int, title: str | None = None) -> Any:
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
