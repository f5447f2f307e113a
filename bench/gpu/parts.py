"""The parts of a run on a GPU, each measured by itself, in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fastopt.rules import RULES as REGISTRY

from ..contenders import FASTOPT_TORCH, RULES
from ..measure import Pace, measure
from ..workloads import Arrays, Workload
from .compiled import COMPILED, Compiled
from .contenders import FASTOPT, MOST_STEPS, SUBJECTS, WORKLOADS, Contender, Say, draw, left_out, make, of_many
from .device import Device
from .figures import TRAININGS, Figures, ratios, replays, rows
from .launches import launches
from .measure import COPY, GRAPH, ITEMSIZE, fits, queued, started, timed
from .stages import RULES as STAGE_RULES
from .stages import WORKLOADS as STAGE_WORKLOADS
from .stages import stages

GRAPH_WORKLOADS = ("tensor_64k", "resnet50", "gpt2")
GRAPH_RULE = "momentum"
LAUNCHING_SECONDS = 2.0  # at most: launches are short

Begin = Callable[[], Pace]  # called when a part's rounds begin; returns their pace


@dataclass(frozen=True)
class Bench:
    """What all parts need.

    Attributes
    ----------
    device : Device
    contenders : dict of str to Contender
        With `torch-compiled` if it is measured.
    baseline : str
    say : callable
        Gets messages about what is left out.
    """

    device: Device
    contenders: Mapping[str, Contender]
    baseline: str
    say: Say


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes
    ----------
    name : str
        For the list of what is missing.
    measure : callable
        Given a `Begin`, returns what is added to the report; nothing if the device's memory is too small.
    """

    name: str
    measure: Callable[[Begin], Figures]


def parts(bench: Bench) -> list[Part]:
    """List all parts, in the order in which they are measured."""
    found = [
        Part(f"{rule} on {workload.name}", partial(steps, bench, workload, rule))
        for workload in WORKLOADS.values()
        for rule in RULES
    ]
    found += [Part(f"graphs of {name}", partial(graphs, bench, WORKLOADS[name])) for name in GRAPH_WORKLOADS]
    found += [
        Part(f"clipping and averaging by {rule} on {workload.name}", partial(staged, bench, workload, rule))
        for workload in STAGE_WORKLOADS.values()
        for rule in STAGE_RULES
    ]
    found.append(Part("launches by the size of an argument", partial(empty_launches, bench)))
    if bench.device.torch is not None:
        found += [Part(f"an iteration of {name}", partial(trainings, bench, name)) for name in TRAININGS]
    return found


def steps(bench: Bench, workload: Workload, rule: str, begin: Begin) -> Figures:
    """Time all contenders on one workload by one rule, and a copy of as many bytes; states are gone afterwards."""
    device = bench.device
    contenders = {**bench.contenders, **of_many(workload)}
    if not fits(device, workload, len(contenders), bench.say):
        return Figures()
    arrays = draw(device.cupy, workload)
    eager = {name: contender for name, contender in contenders.items() if name != COMPILED}
    contestants = started(device, eager, rule, arrays, bench.say)
    compiled = compiled_step(bench, workload, rule, arrays)
    if compiled is not None:
        contestants[COMPILED] = compiled.step
    counts = {name: contenders[name].steps(workload) for name in contestants} | {COPY: MOST_STEPS}
    bytes_moved = REGISTRY[rule].bytes_moved(ITEMSIZE) * workload.elements
    contestants[COPY] = device.copier(bytes_moved)
    costs = measure(contestants, queued(device, counts), begin())
    if compiled is not None and compiled.finish():
        bench.say(f"{COMPILED} is left out of {rule} on {workload.name}: torch compiled it anew between the rounds")
        compiled = None
        for round_ in costs:
            del round_[COMPILED]
    both = timed(workload, rule, bytes_moved, costs)
    return Figures(
        rows=rows([both], bench.baseline),
        ratios=ratios([both], contenders),
        compiled=[] if compiled is None else [compiled.entry(workload.name, rule)],
    )


def compiled_step(bench: Bench, workload: Workload, rule: str, arrays: Arrays) -> Compiled | None:
    """Compile torch's step on one tensor, if it is to be measured."""
    if COMPILED not in bench.contenders:
        return None
    if len(workload.shapes) > 1:
        bench.say(f"{COMPILED} is left out of workloads of many tensors: it takes half a minute to compile there")
        return None
    with left_out(COMPILED, f"{rule} on {workload.name}", bench.say):
        return Compiled(bench.device, bench.contenders[COMPILED], rule, arrays)
    return None


def graphs(bench: Bench, workload: Workload, begin: Begin) -> Figures:
    """Time fastopt's steps without and with graphs."""
    device = bench.device
    capture = {FASTOPT_TORCH: device.captured_by_torch, FASTOPT: device.captured_by_cupy}
    own = {name: bench.contenders[name] for name in SUBJECTS if name in bench.contenders}
    if not fits(device, workload, 2 * len(own), bench.say):
        return Figures()
    arrays = draw(device.cupy, workload)
    contestants = started(device, own, GRAPH_RULE, arrays, bench.say)
    for name, contender in own.items():  # the graph keeps the memory of an optimizer that is gone
        contestants[name + GRAPH] = capture[name](make(contender, name, GRAPH_RULE, arrays, device.cupy))
    counts = dict.fromkeys(contestants, MOST_STEPS)
    costs = measure(contestants, queued(device, counts), begin())
    bytes_moved = REGISTRY[GRAPH_RULE].bytes_moved(ITEMSIZE) * workload.elements
    return Figures(graphs=replays([timed(workload, GRAPH_RULE, bytes_moved, costs)]))


def staged(bench: Bench, workload: Workload, rule: str, begin: Begin) -> Figures:
    """Time steps with clipping and averages, and without."""
    return Figures(stages=stages(bench.device, workload, rule, begin, bench.say))


def empty_launches(bench: Bench, begin: Begin) -> Figures:
    """Time launches of an empty kernel by the size of its argument."""
    pace = begin()
    pace = replace(pace, seconds=min(pace.seconds, LAUNCHING_SECONDS))
    return Figures(launches=launches(bench.device, pace, bench.say))


def trainings(bench: Bench, name: str, begin: Begin) -> Figures:
    """Time whole training iterations in torch."""
    from .iteration import iterations

    return Figures(iterations=iterations(bench.device, name, begin, bench.say))
