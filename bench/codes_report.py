"""The tables of the codes of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from .text import Lines, markdown_table


class Drift(TypedDict):
    """How much larger a final loss is than with states in float32, as a logarithm; None where a training is lost."""

    mean: float | None
    error: float | None


LOST: Drift = {"mean": None, "error": None}


class Averages(TypedDict):
    """What a code does to averages: errors by the size of a block."""

    code: str
    errors: Mapping[str, float]
    heavy: float
    drifts: Mapping[str, Drift]
    nanoseconds: float


class Squares(TypedDict):
    """What a code does to squares: errors of a step that is divided by their root, by the size of a block."""

    code: str
    errors: Mapping[str, float]
    heavy: float
    least: float
    most: float
    zero: Drift
    nearest: Drift
    stochastic: Drift
    nanoseconds: float


class Study(TypedDict):
    """All that is measured of codes."""

    averages: Sequence[Averages]
    squares: Sequence[Squares]
    rules: Mapping[str, Mapping[str, Drift]]
    float32_nanoseconds: float


def share(value: float) -> str:
    """Write a share to two digits after the point, large ones without."""
    return f"{value:.2%}" if value < 0.1 else f"{value:.0%}"


def drift(found: Drift | None) -> str:
    """Write how much larger a loss is, and the standard error of that."""
    if found is None:
        return ""
    if found["mean"] is None:
        return "NaN"
    if found["mean"] > 1:
        return "diverges"
    return f"{found['mean']:+.1%} ± {found['error']:.1%}"


def averages(rows: Sequence[Averages]) -> Lines:
    """Make the table of averages, its headings first."""
    blocks, rules = rows[0]["errors"], rows[0]["drifts"]
    lines = [["code", *(f"error, {block}" for block in blocks), "heavy tail, 64", *rules, "ns"]]
    for row in rows:
        errors = [share(each) for each in (*row["errors"].values(), row["heavy"])]
        losses = [drift(each) for each in row["drifts"].values()]
        lines.append([row["code"], *errors, *losses, f"{row['nanoseconds']:.2f}"])
    return lines


def squares(rows: Sequence[Squares]) -> Lines:
    """Make the table of squares, its headings first."""
    blocks = rows[0]["errors"]
    headings = ["least", "most", "adam, 0 allowed", "adam", "adam, stochastic", "ns"]
    lines = [["code", *(f"step, {block}" for block in blocks), "heavy tail, 64", *headings]]
    for row in rows:
        errors = [share(each) for each in (*row["errors"].values(), row["heavy"])]
        ends = [f"{row['least']:.3f}", f"{row['most']:.2f}"]
        losses = [drift(each) for each in (row["zero"], row["nearest"], row["stochastic"])]
        lines.append([row["code"], *errors, *ends, *losses, f"{row['nanoseconds']:.2f}"])
    return lines


def rules(found: Mapping[str, Mapping[str, Drift]]) -> Lines:
    """Make the table of the rules, with the codes that are chosen."""
    roundings = ("to nearest", "stochastically")
    lines = [["rule", *(f"squares {each}" for each in roundings)]]
    for rule, drifts in found.items():
        lines.append([rule, *(drift(drifts.get(each)) for each in roundings)])
    return lines


def markdown(study: Study) -> str:
    """Write the three tables."""
    return "\n".join(tables(study)) + "\n"


def tables(study: Study) -> Iterator[str]:
    """Write the tables line by line."""
    yield (
        "Averages (Adam's, and numbers drawn from Student's t with two degrees of freedom): what is rounded away, as a "
        "share of the state, by the size of a block; how much larger the final loss is than with states in float32, "
        "and the standard error of that over the seeds; and nanoseconds an element, to decode, change and encode a "
        f"state in cache by one thread, where float32 takes {study['float32_nanoseconds']:.2f}."
    )
    yield ""
    yield from markdown_table(averages(study["averages"]), 1)
    yield ""
    yield (
        "Squares (Adam's, and numbers whose logarithm is normal with a deviation of 4): the error of a step that is "
        "divided by their root, and by how much steps shrink and grow at most, where no square above 0 becomes 0; "
        "Adam's final loss where it may, where it may not, and where rounding is stochastic besides."
    )
    yield ""
    yield from markdown_table(squares(study["squares"]), 1)
    yield ""
    yield "All states by floats above a bias, in blocks of 64; averages are rounded to nearest:"
    yield ""
    yield from markdown_table(rules(study["rules"]), 1)
