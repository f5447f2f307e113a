"""The charts of a run on a GPU: how many times as long as fastopt others take, on the GPU and on the host."""

from __future__ import annotations

from ..contenders import TORCH_MODES
from ..plot import STYLES, draw_ratios, value_of
from .compiled import COMPILED
from .contenders import WORKLOADS
from .figures import Report
from .report import compared

OF_GPU = {name: STYLES[name] for name in TORCH_MODES} | {
    COMPILED: ("#000000", "X"),
    "cupy": ("#0072B2", "o"),
    "cupy-fuse": ("#56B4E9", "v"),
    "cupy-kernel": ("#CC79A7", "P"),
}
BLOCKS = {"gpu": "The GPU's time of a step", "host": "The host's time of a step"}
OVERVIEW = ("resnet50", "gpt2", "tensor_64k", "tensor_256m")  # in the README's chart, of the GPU's time only


def draw(report: Report, path: str) -> None:
    """Write the chart as an image: the GPU's time above, the host's below.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --gpu --json`` writes it.
    path : str
        The file's name; its suffix selects the type of image.
    """
    found = compared(report)
    blocks = {
        about: {key: {name: (value_of(entry, side),) for name, entry in of.items()} for key, of in found.items()}
        for side, about in BLOCKS.items()
    }
    styles = {name: style for name, style in OF_GPU.items() if any(name in of for of in found.values())}
    where = report["machine"]
    axis = "as a multiple of fastopt's, log scale; right of the line, fastopt is faster; torch's against fastopt.torch"
    caption = f"{axis}\n{where['gpu']}, {where['date']}"
    draw_ratios(blocks, styles, WORKLOADS, (), caption, path)


def draw_overview(report: Report, path: str) -> None:
    """Write the README's chart as an image: the GPU's time of a step, of models and of the smallest and largest tensor.

    Parameters
    ----------
    report : dict
        As ``fastopt bench --gpu --json`` writes it.
    path : str
        The file's name; its suffix selects the type of image.
    """
    found = compared(report)
    measured = {
        (workload, rule): {name: (value_of(entry, "gpu"),) for name, entry in ratios.items()}
        for workload in OVERVIEW
        for (of, rule), ratios in found.items()
        if of == workload
    }
    names = {name for ratios in measured.values() for name in ratios}
    styles = {name: style for name, style in OF_GPU.items() if name in names}
    where = report["machine"]
    axis = "the GPU's time of a step as a multiple of fastopt's, log scale; right of the line, fastopt is faster"
    draw_ratios({"": measured}, styles, WORKLOADS, (), f"{axis}\n{where['gpu']}, {where['date']}", path)
