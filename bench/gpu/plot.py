"""The chart of a run on a GPU: how many times as long as fastopt's others take, of the GPU's time and the host's."""

from __future__ import annotations

from ..contenders import TORCH_MODES
from ..plot import STYLES, draw_pairs
from .contenders import WORKLOADS
from .report import Report, compared

OF_GPU = {name: STYLES[name] for name in TORCH_MODES} | {
    "cupy": ("#0072B2", "o"),
    "cupy-fuse": ("#56B4E9", "v"),
    "cupy-kernel": ("#CC79A7", "P"),
}


def draw(report: Report, path: str) -> None:
    """Write the chart as an image.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --gpu --json`` writes it.
    path : str
        Of the file; its suffix says which format.
    """
    where = report["machine"]
    axis = "time of a step as a multiple of fastopt's, log scale; torch's modes against fastopt.torch"
    caption = f"{axis}\n{where['gpu']}, {where['date']}"
    draw_pairs(compared(report), OF_GPU, WORKLOADS, ("GPU", "host"), caption, path)
