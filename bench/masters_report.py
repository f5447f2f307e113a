"""The results of models in bfloat16 that are trained in float32: their table and sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contenders import DEEPSPEED, FASTOPT_TORCH
from .rounds import Comparison
from .text import Lines, arranged, columns, duration, markdown_table, ratios
from .workloads import title

MASTERS = f"{FASTOPT_TORCH}, masters"
SEVEN_BYTES = f"{FASTOPT_TORCH}, 7 bytes"
COPIED_BACK = "torch-fused, parameters copied"
COPIED = "torch-fused, gradients and parameters copied"
DEEPSPEED_COPIED_BACK = f"{DEEPSPEED}, parameters copied"
OTHERS = (SEVEN_BYTES, COPIED_BACK, COPIED)
OPTIONAL = (DEEPSPEED_COPIED_BACK,)
TITLE = "AdamW for models in bfloat16, and how many times as long others take"
ABOUT = (
    "AdamW for models in bfloat16, trained in float32: the time of a step with master_weights=True, and how many times "
    "as long others take: a step at 7 bytes a parameter (masters of 24 bits, states in 8 bits); torch's fused step "
    "over float32 parameters, which are copied to the model after it, with gradients that are float32 from the start; "
    "the same where the gradients, which are in bfloat16, are copied to float32 before it; and DeepSpeed's AdamW for "
    "the CPU in the place of torch's, where it is installed."
)
NAMES = 1  # columns that are no numbers


class Master(Comparison):
    """A contender on a workload; the subject is fastopt.torch with masters."""

    workload: str


def comparison(masters: Sequence[Master]) -> Lines:
    """Make the table, its headings first: a workload per line."""
    found = arranged(masters, "workload")
    others = columns(found, OTHERS, OPTIONAL)
    lines = [["workload", MASTERS, *others]]
    for (workload,), contenders in found.items():
        lines.append([title(workload), duration(contenders[MASTERS]["seconds"]), *ratios(contenders, others)])
    return lines


def markdown(masters: Sequence[Master]) -> Iterator[str]:
    """Write the sentence and the table, line by line."""
    yield from (ABOUT, "")
    yield from markdown_table(comparison(masters), NAMES)
