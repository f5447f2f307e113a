"""The results of the stages: their table and sentence for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contenders import NUMPY
from .stages import AVERAGING, CALLED, CLIPPING, COPIED, IN_PLACE, SUBJECTS, TORCH, Stage
from .text import Lines, arranged, duration, markdown_table, times
from .torch_report import least
from .workloads import title

SEPARATE = {NUMPY: (IN_PLACE, COPIED), TORCH: (TORCH,)}  # who does it apart: the faster one counts
BY = {
    (CLIPPING, NUMPY): "clipping, then updating, in NumPy",
    (CLIPPING, TORCH): "clip_grad_norm_, then the fused step",
    (AVERAGING, TORCH): "the fused step, then AveragedModel",
}
TITLE = "Clipping and averaging within the step, and how many times as long they take apart from it"
ABOUT = (
    "Clipping gradients by their norm (max_grad_norm) and averaging parameters (ema_decay) within the step: its time, "
    "and how many times as long others take who do it by passes of their own. Gradients of fastopt are bound, those of "
    f"fastopt.torch backward has just allocated. {CALLED} is called before a step that was not asked to clip by "
    "max_grad_norm, as trainers do."
)
NAMES = 5  # columns that are no numbers


def comparison(stages: Sequence[Stage]) -> Lines:
    """Make the table, its headings first: a stage, library, workload and rule per line."""
    found = arranged(stages, "stage", "against", "workload", "rule")
    lines = [["within the step", "workload", "rule", "step of", "against", "its time", "others", CALLED]]
    for (stage, against, workload, rule), contenders in found.items():
        subject = SUBJECTS[against]
        apart = times(least([contenders[name]["ratio"] for name in SEPARATE[against]]))
        called = times(contenders[CALLED]["ratio"]) if CALLED in contenders else ""
        names = stage, title(workload), rule, subject, BY[stage, against]
        lines.append([*names, duration(contenders[subject]["seconds"]), apart, called])
    return lines


def markdown(stages: Sequence[Stage]) -> Iterator[str]:
    """Write the sentence and the table, line by line."""
    yield from (ABOUT, "")
    yield from markdown_table(comparison(stages), NAMES)
