"""The contenders that clip and average, and what the benchmark makes of their times."""

from __future__ import annotations

import gc
import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from fastopt.bench import command, measure, rounds, stages, stages_report, tensors, torch_stages, trainer
from fastopt.bench.measure import Pace
from fastopt.bench.stages import AVERAGING, CALLED, CLIPPING, COPIED, IN_PLACE, TORCH
from fastopt.bench.workloads import WORKLOADS, Arrays, Workload

STEPS = 3
TOLERANCE = 1e-6  # a few roundings of numbers around 1; a step moves them by 1e-3
ONCE = Pace(seconds=0, fewest=2, most=2)


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing again, however busy this machine is, and collect no garbage, which takes half of the time."""
    monkeypatch.setattr(measure, "AGAIN", 0)
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")
    monkeypatch.setattr(gc, "collect", lambda: 0)


def small() -> Arrays:
    """The arrays of a small workload, whose gradients have a norm above the largest."""
    arrays = Arrays.draw(Workload("small", "small", ((64, 8), (5,))))
    assert np.linalg.norm(arrays.grads[0]) > 10 * stages.MAX_NORM
    return arrays


@pytest.mark.parametrize("rule", stages.NUMPY_RULES)
def test_whoever_clips_in_numpy_trains_alike(rule: str) -> None:
    """And leaves the gradients of the others as they are."""
    found = {}
    for name in stages.clipping(small(), rule):
        arrays = small()
        step = stages.clipping(arrays, rule)[name]
        for _ in range(STEPS):
            step()
        assert all(map(np.array_equal, arrays.grads, small().grads))
        found[name] = arrays.params
    assert list(found) == ["fastopt", IN_PLACE, COPIED]
    for params in found.values():
        for got, expected, start in zip(params, found["fastopt"], small().params, strict=True):
            np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
            assert not np.array_equal(got, start)


def torchs(arrays: Arrays, rule: str, name: str) -> list[torch.Tensor]:
    """Train with a contender that clips in torch."""
    own = tensors.Tensors.of(arrays)
    step = torch_stages.clipping(own.params, rule)[name]
    for _ in range(STEPS):
        own.backward()
        step()
    return [param.detach() for param in own.params]


@pytest.mark.parametrize("rule", torch_stages.RULES)
def test_whoever_clips_in_torch_trains_alike(rule: str) -> None:
    within = torchs(small(), rule, "fastopt.torch")
    for name in (CALLED, TORCH):
        torch.testing.assert_close(torchs(small(), rule, name), within, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_gradients_of_the_benchmark_are_clipped() -> None:
    """Steps in the direction of a clipped gradient are shorter, by its norm."""
    own, plain = tensors.Tensors.of(small()), tensors.Tensors.of(small())
    for tensors_, step in (
        (own, torch_stages.clipping(own.params, "momentum")["fastopt.torch"]),
        (plain, torch_stages.averaging(plain.params, "momentum")["fastopt.torch"]),
    ):
        tensors_.backward()
        step()
    norm = np.sqrt(sum(float(np.vdot(grad, grad)) for grad in small().grads))
    starts = [torch.tensor(param) for param in small().params]
    for clipped, whole, start in zip(own.params, plain.params, starts, strict=True):
        torch.testing.assert_close(norm * (clipped - start), whole - start, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rule", torch_stages.RULES)
def test_averages_are_those_of_torch(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.optim.swa_utils.AveragedModel] = []

    def noted(*given: Any, **more: Any) -> torch.optim.swa_utils.AveragedModel:
        kept.append(torch.optim.swa_utils.AveragedModel(*given, **more))
        return kept[-1]

    monkeypatch.setattr(torch_stages, "AveragedModel", noted)
    monkeypatch.setattr(torch_stages, "DECAY", 0.5)
    trained = {}
    for name in ("fastopt.torch", TORCH):
        own = tensors.Tensors.of(small())
        step: Any = torch_stages.averaging(own.params, rule)[name]
        for _ in range(STEPS):
            own.backward()
            step()
        trained[name] = own, step
    own, step = trained["fastopt.torch"]
    averages = [step.__self__.state[param]["ema"] for param in own.params]
    for got, expected, param in zip(averages, kept[-1].module.parameters(), own.params, strict=True):
        torch.testing.assert_close(got, expected.detach(), rtol=TOLERANCE, atol=TOLERANCE)
        assert not torch.equal(got, param)


def test_each_workload_is_measured_by_each_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """In NumPy and in torch; workloads that were left out of the run are left out here."""
    few = Workload("dtensors_500", "a few", ((2, 2),) * 3)
    monkeypatch.setattr(torch_stages, "DISTRIBUTED", few)
    monkeypatch.setattr(command, "where_installed", lambda iterations, pace: None)
    found = command.of_stages([WORKLOADS["mlp"], WORKLOADS["tensor_300k"]], ONCE)
    keys = [(row["stage"], row["against"], row["workload"], row["rule"]) for row in found]
    assert list(dict.fromkeys(keys)) == [
        *((CLIPPING, "numpy", "mlp", rule) for rule in stages.NUMPY_RULES),
        *itertools.product([CLIPPING], [TORCH], ["mlp"], torch_stages.RULES),
        *itertools.product([AVERAGING], [TORCH], ["mlp"], torch_stages.RULES),
        (CLIPPING, TORCH, "dtensors_500", "adamw"),
    ]
    assert all(row["seconds"] or "seconds" in row["unstable"] for row in found)
    assert all(row["rounds"] == 2 for row in found)
    lines = stages_report.comparison(found)
    assert len(lines) == 1 + len(set(keys))
    assert {len(line) for line in lines} == {stages_report.NAMES + 3}


def test_without_torch_numpys_clipping_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "HAS_TORCH", False)
    found = command.of_stages([WORKLOADS["mlp"]], ONCE)
    assert {row["against"] for row in found} == {"numpy"}


def test_the_table_shows_the_faster_way_of_others() -> None:
    """An unstable ratio may be the least, so there is none then."""

    def row(implementation: str, ratio: float | None, stage: str = CLIPPING, against: str = "numpy") -> stages.Stage:
        return {
            "stage": stage,
            "against": against,
            "workload": "mlp",
            "rule": "momentum",
            "implementation": implementation,
            "seconds": 2e-6,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {} if ratio else {"ratio": "2.0x apart"},
        }

    numpys = [row("fastopt", 1.0), row(IN_PLACE, 8.0), row(COPIED, 9.0)]
    torchs = [
        row(name, ratio, CLIPPING, TORCH) for name, ratio in (("fastopt.torch", 1.0), (CALLED, 1.5), (TORCH, 6.0))
    ]
    averages = [row("fastopt.torch", 1.0, AVERAGING, TORCH), row(TORCH, 1.4, AVERAGING, TORCH)]
    headings, *lines = stages_report.comparison(numpys + torchs + averages)
    numbers = [line[stages_report.NAMES :] for line in lines]
    assert headings[stages_report.NAMES :] == ["its time", "others", CALLED]
    assert numbers == [["2.00 µs", "8.0x", ""], ["2.00 µs", "6.0x", "1.50x"], ["2.00 µs", "1.40x", ""]]
    _, line = stages_report.comparison([numpys[0], numpys[1], row(COPIED, None)])
    assert line[-2] == "unstable"


@pytest.mark.parametrize("missing", ["transformers", "accelerate"])
def test_without_trainers_there_is_a_message(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("accelerate", "transformers"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else torch)
    assert command.where_installed(trainer.iterations, ONCE) is None
    assert f"{missing} is not installed: pip install 'fastopt[clients]'" in capsys.readouterr().err
