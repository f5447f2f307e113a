"""Figures of schedules."""

import io
import warnings

import numpy as np
import pytest
from schedule_cases import CASES, FAR
from schedule_checks import LIMIT, bits

from fastopt.schedules import (
    Cosine,
    Cyclic,
    InverseSqrt,
    Linear,
    OneCycle,
    PerEpoch,
    StepDecay,
    Warmup,
)

OF_EACH_CLASS = list({type(case): case for case in CASES}.values())


def drawn(axes):
    """The one curve of axes."""
    (line,) = axes.get_lines()
    return line.get_xdata(), line.get_ydata()


@pytest.mark.parametrize(
    "schedule",
    [
        *OF_EACH_CLASS,
        *(pytest.param(case, marks=pytest.mark.exhaustive) for case in CASES[::4] if case not in OF_EACH_CLASS),
        Linear(0.1, 0.0, LIMIT - 1),
        InverseSqrt(0.1, LIMIT - 1),
        Cyclic(0.0, 0.1, LIMIT - 1, LIMIT - 1),
        PerEpoch(Linear(0.1, 0.0, LIMIT - 1), LIMIT - 1),
        StepDecay(0.1, LIMIT - 1),
        Warmup(0.1, LIMIT - 1),
    ],
    ids=repr,
)
def test_plots(schedule):
    """A figure that pyplot does not know, with the schedule's values at steps from 0 to where all can be seen."""
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before = pyplot.get_fignums()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = schedule.plot()
        figure.savefig(io.BytesIO(), dpi=30)
    assert isinstance(figure, Figure)
    assert pyplot.get_fignums() == before
    (axes,) = figure.axes
    steps, values = drawn(axes)
    assert steps[0] == 0
    assert len(steps) > 1
    assert all(step == int(step) for step in steps)
    assert bits(values) == bits(schedule(np.array(steps).astype(np.int64)))
    low, high = axes.get_ylim()
    assert low < 0 <= min(values) <= max(values) < high  # with 0 in view, and no line on the frame


@pytest.mark.parametrize(
    ("schedule", "length"),
    [(Linear(0.1, 0.0, 1000), 1000), (Warmup(Cosine(0.1, 300), 50), 350), (OneCycle(0.1, 700), 700)],
    ids=repr,
)
def test_plots_show_the_end(schedule, length):
    """By default a schedule is drawn to its end and a bit further, and to the given step otherwise."""
    assert length < drawn(schedule.plot().axes[0])[0][-1] < 1.25 * length
    steps, values = drawn(schedule.plot(60).axes[0])
    assert list(steps) == list(range(61))
    assert bits(values) == bits(schedule(range(61)))
    assert drawn(schedule.plot(steps=10 * FAR).axes[0])[0][-1] == 10 * FAR


def test_plots_into_given_axes():
    """Two schedules in one picture; the figure is the axes' own."""
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert Linear(0.1, 0.0, 50).plot(axes=right) is figure
    assert Cosine(0.1, 50).plot(40, axes=right) is figure
    assert len(left.get_lines()) == 0
    first, second = right.get_lines()
    assert bits(first.get_ydata()) == bits(Linear(0.1, 0.0, 50)(first.get_xdata()))
    assert bits(second.get_ydata()) == bits(Cosine(0.1, 50)(range(41)))
    Cosine(0.5, 50).plot(40, axes=right)
    assert right.get_ylim()[1] > 0.5
