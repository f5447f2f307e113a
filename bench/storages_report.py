"""The results of states in bfloat16: their table and sentence for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contenders import BITSANDBYTES, FASTOPT_TORCH, IN_8_BITS, IN_BFLOAT16, TORCH_IN_BFLOAT16
from .rounds import Comparison
from .text import Lines, arranged, columns, duration, markdown_table, ratios
from .workloads import title

OTHERS = (IN_8_BITS, FASTOPT_TORCH, "torch-fused", TORCH_IN_BFLOAT16)
OPTIONAL = (BITSANDBYTES,)
TITLE = "Steps over states in bfloat16, and how many times as long others take"
ABOUT = (
    f"States in bfloat16, on gradients that backward has just allocated: the time of a step of {FASTOPT_TORCH} with "
    'state_dtype="bfloat16", and how many times as long others take: its step over states in 8 bits, its step over '
    "states in float32, torch's fused one over the same, and, for momentum, torch's default one over states that were "
    "converted to bfloat16; on small models bitsandbytes' step over its states in 8 bits, where that is installed. "
    "Below 1.00x they are faster. Bytes are those that a step must read and write for each element, with states in "
    "bfloat16 / in 8 bits / in float32; parameters of fewer than 4,096 elements keep float32. "
    "torch makes no such states itself, and its fused steps and its AdamW refuse bfloat16."
)
NAMES = 2  # columns that are no numbers


class Storage(Comparison):
    """A contender on a workload, by a rule; the subject is fastopt.torch with states in bfloat16.

    `bytes_per_element` are those that a step must read and write: parameters and states are read and written, gradients
    read.
    """

    workload: str
    rule: str
    bytes_per_element: float


def comparison(storages: Sequence[Storage]) -> Lines:
    """Make the table, its headings first: a workload and rule per line."""
    found = arranged(storages, "workload", "rule")
    others = columns(found, OTHERS, OPTIONAL)
    lines = [["workload", "rule", IN_BFLOAT16, *others, "bytes"]]
    for (workload, rule), contenders in found.items():
        ours = (IN_BFLOAT16, IN_8_BITS, FASTOPT_TORCH)
        moved = " / ".join(f"{contenders[name]['bytes_per_element']:.1f}" for name in ours if name in contenders)
        seconds = duration(contenders[IN_BFLOAT16]["seconds"])
        lines.append([title(workload), rule, seconds, *ratios(contenders, others), moved])
    return lines


def markdown(storages: Sequence[Storage]) -> Iterator[str]:
    """Write the sentence and the table, line by line."""
    yield from (ABOUT, "")
    yield from markdown_table(comparison(storages), NAMES)
