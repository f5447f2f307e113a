"""The contenders for models in bfloat16 that are trained in float32, and what the benchmark makes of their times."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from fastopt.bench import command, masters, masters_report, measure, oracle, report, rounds
from fastopt.bench.contenders import OPTIMIZERS
from fastopt.bench.masters_report import COPIED, COPIED_BACK, MASTERS, SEVEN_BYTES, Master
from fastopt.bench.measure import Pace
from fastopt.bench.tensors import Tensors
from fastopt.bench.workloads import WORKLOADS, Arrays, Workload

STEPS = 3
NAMES = masters.contenders()
EXACT = 1e-6  # a few roundings of numbers around 1; a step moves them by 1e-3
OF_24_BITS = 2.0**-16  # relative, of a master: half of the last bit that it has
OF_8_BITS = 0.1  # of the movement, root mean squares: small elements of a block lose most
SHAPES = ((64, 65), (5,))


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing again, however busy this machine is, and collect no garbage, which takes half of the time."""
    monkeypatch.setattr(measure, "AGAIN", 0)
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")
    monkeypatch.setattr(gc, "collect", lambda: 0)


def wide(tensors: Iterable[torch.Tensor]) -> list[Any]:
    return [tensor.detach().float().numpy().copy() for tensor in tensors]


def trained(name: str) -> tuple[list[Any], list[Any], Tensors]:
    """Take some steps: what was there before, the float32 parameters after them, and the model's."""
    tensors = masters.halved(Arrays.draw(Workload("small", "small", SHAPES)))
    before = wide(tensors.params)
    contender = masters.make(name, tensors)
    for _ in range(STEPS):
        tensors.backward()
        contender.step()
    kept = contender.masters if isinstance(contender, masters.Copies) else contender.master_state_dict().values()
    return before, wide(kept), tensors


@pytest.mark.parametrize("name", NAMES)
def test_contenders_train_in_float32(name: str) -> None:
    """By the oracle over the same numbers; the model has what these are rounded to."""
    before, after, tensors = trained(name)
    trainer = oracle.Trainer(before)
    for _ in range(STEPS):
        trainer.step("adamw", wide(tensors.sources), {"weight_decay": 0.01, **OPTIMIZERS["adamw"][1]})
    for start, got, expected, param in zip(before, after, trainer.params, tensors.params, strict=True):
        moved = expected - start
        assert np.abs(moved).max() > 1e3 * EXACT
        if name == SEVEN_BYTES:
            lost = np.abs(expected).max() * OF_24_BITS * STEPS
            assert np.sqrt(np.mean((got - expected) ** 2)) < OF_8_BITS * np.sqrt(np.mean(moved**2)) + lost
        else:
            np.testing.assert_allclose(got - start, moved, atol=EXACT)
        assert param.dtype is torch.bfloat16
        np.testing.assert_allclose(param.detach().float(), got, rtol=2.0**-8)


def test_bytes_of_the_narrowest() -> None:
    """Seven for a large parameter and its gradient, but for the scales."""
    tensors = masters.halved(Arrays.draw(Workload("large", "large", ((640, 100),))))
    opt = masters.make(SEVEN_BYTES, tensors)
    tensors.backward()
    opt.step()
    assert sum(opt.memory().values()) / 64_000 == pytest.approx(7 + 2 * 4 / 64)


def test_workloads_that_are_left_out_are_left_out_here() -> None:
    """A line for each that is there, with all contenders."""
    found = command.of_masters([WORKLOADS["mlp"], WORKLOADS["tensor_300k"]], Pace(seconds=0, fewest=2, most=2))
    assert [(row["workload"], row["implementation"]) for row in found] == [("mlp", name) for name in NAMES]
    assert json.loads(json.dumps(found)) == found
    assert all(row["rounds"] == 2 and row["ratio"] is not None for row in found)


def test_the_table_has_a_line_for_each_workload() -> None:
    ratios = {MASTERS: 1.0, SEVEN_BYTES: 1.5, COPIED_BACK: 1.25, COPIED: None}
    rows: list[Master] = [
        {
            "workload": "gpt2",
            "implementation": name,
            "seconds": 1e-3,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {} if ratio else {"ratio": "2.0x apart"},
        }
        for name, ratio in ratios.items()
    ]
    text = list(masters_report.markdown(rows))
    assert text[-1] == "| GPT-2 124M | 1.00 ms | 1.50x | 1.25x | unstable |"
    run: Any = {"machine": report.machine("numpy", False), "rows": [], "ratios": [], "iteration": None}
    before = report.markdown(run)
    run["masters"] = rows
    assert report.markdown(run) == before + "\n" + "\n".join(text) + "\n"
