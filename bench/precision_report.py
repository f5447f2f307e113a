"""The final losses of `fastopt lab precision`, as a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fastopt.lab.precision import RULES, change, is_near, spread, verdict
from fastopt.lab.storages import BASE, STORAGES

from .text import Lines, markdown_table

NAMES = 2  # columns that are no numbers
ABOUT = (
    "Final training loss, mean and standard deviation of {seeds} seeds, and by how much the mean differs from that "
    "with float32; in **bold** where that is more than the share asked for ({shares}) and more than the deviation of "
    "float32's seeds. Bytes are those of a parameter with its gradient and states, by momentum / by adam."
)


def markdown(numbers: Mapping[str, Any]) -> str:
    """Write the sentence and the table: a line for each training and storage."""
    trainings = numbers["trainings"]
    shares = " or ".join(f"{share:.1%}" for share in sorted({storage.within for storage in STORAGES.values()}))
    about = ABOUT.format(seeds=numbers["seeds"], shares=shares)
    return "\n".join([about, "", *markdown_table(table(trainings), NAMES), ""])


def table(trainings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Lines:
    """Make the table, its headings first."""
    return [["training", "storage", "bytes", *RULES], *rows(trainings)]


def rows(trainings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[list[str]]:
    """Make a line for each training and storage."""
    for training, results in trainings.items():
        for storage in results[RULES[0]]:
            kept = " / ".join(f"{results[rule][storage]['bytes']:.3g}" for rule in ("momentum", "adam"))
            yield [training, storage, kept, *(cell(results[rule], storage) for rule in RULES)]


def cell(results: Mapping[str, Any], storage: str) -> str:
    """Write mean, deviation and change of a storage."""
    final, base = results[storage]["final"], results[BASE]["final"]
    how = verdict(final, base, STORAGES[storage].within)
    mean, deviation = spread(final)
    if math.isnan(mean):
        return f"**{how}**"
    digits = 1 - math.floor(math.log10(deviation)) if deviation else 4
    text = f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    if storage == BASE:
        return text
    text += f" ({change(final, base):+.1%})"
    return text if is_near(how) else f"**{text}**"
