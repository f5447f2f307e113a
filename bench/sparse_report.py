"""The results of sparse gradients: their table and sentence for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contenders import BY_HAND, FASTOPT, FASTOPT_TORCH, NUMPY
from .rounds import Comparison
from .text import Lines, arranged, columns, duration, markdown_table, ratios

TORCH, BYTES = "torch", "rows alone"
OTHERS = (NUMPY, BY_HAND, BYTES)
OPTIONAL = (FASTOPT_TORCH, TORCH)
TITLE = "Steps with sparse gradients, and how many times as long others take"
ABOUT = (
    "Sparse gradients: 4,096 rows of a table, drawn from a Zipf law, some of them more than once, other ones in each "
    f"step. The time of a step of {FASTOPT} with SparseRows, and how many times as long others take: users of NumPy, "
    "who add up duplicates and index the table by what is left; a compiled loop over the rows that are left, "
    f"which is told them, on one thread; {BYTES}, the same loop without arithmetic, which reads the gradients, and "
    "reads and writes rows and states: what the memory allows one thread. Then "
    f"{FASTOPT_TORCH} and torch, with gradients as nn.Embedding makes them. By Adam, rows are updated lazily, as "
    "torch's SparseAdam does; torch has no row-wise AdaGrad."
)
NAMES = 2  # columns that are no numbers
WHOLE = "all rows"


class Sparse(Comparison):
    """A contender on a table, by a rule; the subject is fastopt over arrays.

    `rows` and `width` are the table's.
    """

    rows: int
    width: int
    rule: str


class Touched(Comparison):
    """The time of AdaGrad's step by a gradient that names so many rows of a table; WHOLE is dense, and the subject.

    `rows` and `width` are the table's, `touched` counts a row as often as it is named.
    """

    rows: int
    width: int
    touched: int


def comparison(found: Sequence[Sparse]) -> Lines:
    """Make the table, its headings first: a table and rule per line."""
    by_table = arranged(found, "rows", "width", "rule")
    others = columns(by_table, OTHERS, OPTIONAL)
    lines = [["table", "rule", FASTOPT, *others]]
    for (rows, width, rule), contenders in by_table.items():
        seconds = duration(contenders[FASTOPT]["seconds"])
        lines.append([f"{int(rows):,} x {width}", rule, seconds, *ratios(contenders, others)])
    return lines


def markdown(found: Sequence[Sparse]) -> Iterator[str]:
    """Write the sentence and the table, line by line."""
    yield from (ABOUT, "")
    yield from markdown_table(comparison(found), NAMES)
