"""The contenders with states in bfloat16, and what the benchmark makes of their times."""

from __future__ import annotations

import gc
import json
from typing import Any

import numpy as np
import pytest
import torch
from fastopt.bench import command, measure, oracle, report, rounds, sparse, storages, storages_report
from fastopt.bench.contenders import (
    BITSANDBYTES,
    FASTOPT_TORCH,
    IN_8_BITS,
    IN_BFLOAT16,
    OPTIMIZERS,
    TORCH_IN_BFLOAT16,
    TORCH_MODES,
)
from fastopt.bench.measure import Pace
from fastopt.bench.storages_report import Storage
from fastopt.bench.tensors import Tensors
from fastopt.bench.workloads import WORKLOADS, Arrays, Workload

from fastopt.rules import RULES

STEPS = 3
EXACT = 1e-6  # a few roundings of numbers around 1; a step moves them by 1e-3
OF_8_BITS = 0.1  # of the movement, root mean squares: small elements of a block lose most
ROUNDED = 2**-8  # relative, of a number in bfloat16: about what a step adds to the error of a state
DEFAULTS: dict[str, dict[str, float]] = {"momentum": {}, "adamw": {"weight_decay": 0.01}}  # fastopt's and torch's
ONCE = Pace(seconds=0, fewest=2, most=2)

LARGE, SMALL = (64, 65), (5,)  # a parameter whose states become bfloat16, and one whose states stay as they are
PAIRS = [(rule, name) for rule in storages.RULES for name in storages.contenders(rule)]


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing again, however busy this machine is, and collect no garbage, which takes half of the time."""
    monkeypatch.setattr(measure, "AGAIN", 0)
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")
    monkeypatch.setattr(gc, "collect", lambda: 0)


def arrays() -> Arrays:
    return Arrays.draw(Workload("small", "small", (LARGE, SMALL)))


def trained(name: str, rule: str) -> tuple[Any, Tensors]:
    """Take some steps; torch's states have taken one already when they are converted."""
    tensors = Tensors.of(arrays())
    opt = storages.make(name, rule, tensors)
    for _ in range(STEPS - (name == TORCH_IN_BFLOAT16)):
        tensors.backward()
        opt.step()
    return opt, tensors


@pytest.mark.parametrize(("rule", "name"), PAIRS)
def test_contenders_follow_the_rule(rule: str, name: str) -> None:
    """By the oracle; where states are in bfloat16, but for what each step rounds."""
    _, tensors = trained(name, rule)
    own = arrays()
    trainer = oracle.Trainer(own.params)
    for _ in range(STEPS):
        trainer.step(rule, own.grads, {**DEFAULTS[rule], **OPTIMIZERS[rule][1]})
    share = STEPS * ROUNDED if name in (IN_BFLOAT16, TORCH_IN_BFLOAT16) else 0.0
    for got, expected, start in zip(tensors.params, trainer.params, own.params, strict=True):
        moved = expected - start
        assert np.abs(moved).max() > 1e3 * EXACT
        error = got.detach().numpy() - start - moved
        if name in (IN_8_BITS, BITSANDBYTES):
            assert np.sqrt(np.mean(error**2)) < OF_8_BITS * np.sqrt(np.mean(moved**2)) + EXACT
        else:
            np.testing.assert_allclose(error + moved, moved, rtol=share, atol=EXACT)


@pytest.mark.parametrize(("rule", "name"), PAIRS)
def test_states_are_in_the_dtype_that_is_measured(rule: str, name: str) -> None:
    """And stay in it; fastopt.torch keeps those of small parameters, torch's have all been converted."""
    opt, tensors = trained(name, rule)
    names = RULES[rule].states
    if name == BITSANDBYTES:
        names = storages.BITSANDBYTES_STATES[: 2 * len(names) : 2]
    found = [{opt.state[param][state].dtype for state in names} for param in tensors.params]
    assert found == {
        IN_BFLOAT16: [{torch.bfloat16}, {torch.float32}],
        IN_8_BITS: [{torch.uint8 if state == "exp_avg_sq" else torch.int8 for state in names}, {torch.float32}],
        TORCH_IN_BFLOAT16: [{torch.bfloat16}, {torch.bfloat16}],
        BITSANDBYTES: [{torch.uint8}, {torch.float32}],
    }.get(name, [{torch.float32}, {torch.float32}])


@pytest.mark.parametrize(("rule", "wide", "narrow"), [("momentum", 20, 16), ("adamw", 28, 20)])
def test_bytes_are_those_of_the_states_that_an_optimizer_has(rule: str, wide: int, narrow: int) -> None:
    for name in (FASTOPT_TORCH, "torch-fused"):
        assert storages.bytes_moved(trained(name, rule)[0], rule) == wide
    large, small = (int(np.prod(shape)) for shape in (LARGE, SMALL))
    mixed = (large * narrow + small * wide) / (large + small)
    assert storages.bytes_moved(trained(IN_BFLOAT16, rule)[0], rule) == mixed
    states, scales = (wide - 12) // 8, 4 * -(-large // 64)
    mixed = (large * (12 + 2 * states) + small * wide + 2 * states * scales) / (large + small)
    assert storages.bytes_moved(trained(IN_8_BITS, rule)[0], rule) == mixed


@pytest.mark.parametrize(
    ("rule", "mode"), [("momentum", "torch-fused"), *(("adamw", mode) for mode in TORCH_MODES)], ids=str
)
def test_the_rest_of_torch_refuses_states_in_bfloat16(rule: str, mode: str) -> None:
    """There is no such contender for that reason: if torch takes them one day, there should be."""
    tensors = Tensors.of(arrays())
    opt = storages.converted(tensors, rule, TORCH_MODES[mode])
    with pytest.raises(RuntimeError, match=r"expected .*BFloat16"):
        opt.step()


def test_each_workload_is_measured_by_each_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Workloads that were left out of the run are left out here, and others are not of this part."""
    found = command.of_storages([WORKLOADS[name] for name in ("mlp", "tensors_2000", "tensor_300k")], False, ONCE)
    assert [(row["workload"], row["rule"], row["implementation"]) for row in found] == [
        (workload, *pair) for workload in ("mlp", "tensor_300k") for pair in PAIRS
    ]
    assert json.loads(json.dumps(found)) == found
    assert all(row["rounds"] == 2 and row["seconds"] is not None and row["ratio"] is not None for row in found)
    assert all(row["ratio"] == 1 for row in found if row["implementation"] == IN_BFLOAT16)
    _, *lines = storages_report.comparison(found)
    assert [line[-1] for line in lines] == [
        "16.6 / 15.0 / 20.0",
        "21.2 / 18.0 / 28.0",
        "16.0 / 14.1 / 20.0",
        "20.0 / 16.3 / 28.0",
    ]


def test_a_quick_run_measures_small_models_by_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[list[str], tuple[str, ...]]] = []

    def noted(workloads: list[Workload], rules: tuple[str, ...], pace: Pace) -> list[Storage]:
        measured.append(([workload.name for workload in workloads], rules))
        return []

    monkeypatch.setattr(storages, "in_torch", noted)
    monkeypatch.setattr(command, "steps", lambda rules, pace, baseline: [])
    for part in ("iterations", "evaluations", "in_loops", "hosts_of_gpus"):
        monkeypatch.setattr(command, part, lambda pace: None)
    monkeypatch.setattr(sparse, "of_tables", lambda tables, pace: None)
    for part in ("in_torch", "of_stages", "of_masters"):
        monkeypatch.setattr(command, part, lambda workloads, pace: None)
    for quick in (True, False):
        command.measured([*WORKLOADS.values()], quick, "numpy")
    assert measured == [(["mlp", "tensors_2000", "tensor_300k"], ("adamw",)), ([*WORKLOADS], ("momentum", "adamw"))]


def rows(rule: str, ratios: dict[str, float | None]) -> list[Storage]:
    return [
        {
            "workload": "gpt2",
            "rule": rule,
            "implementation": name,
            "seconds": 1e-3,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {} if ratio else {"ratio": "2.0x apart"},
            "bytes_per_element": 20.0 if name == IN_BFLOAT16 else 28.0,
        }
        for name, ratio in ratios.items()
    ]


def test_the_table_has_a_line_for_each_rule_and_names_who_was_not_there() -> None:
    alone = {IN_BFLOAT16: 1.0, IN_8_BITS: 1.1, FASTOPT_TORCH: 1.25, "torch-fused": None}
    found = rows("momentum", {**alone, TORCH_IN_BFLOAT16: 3.0}) + rows("adamw", alone)
    text = list(storages_report.markdown(found))
    assert text[-4:] == [
        "| workload | rule | fastopt.torch, bfloat16 states | fastopt.torch, states in 8 bits | fastopt.torch "
        "| torch-fused | torch-default, bfloat16 states | bytes |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        "| GPT-2 124M | momentum | 1.00 ms | 1.10x | 1.25x | unstable | 3.0x | 20.0 / 28.0 / 28.0 |",
        "| GPT-2 124M | adamw | 1.00 ms | 1.10x | 1.25x | unstable |  | 20.0 / 28.0 / 28.0 |",
    ]


def test_a_run_from_before_says_nothing_of_them() -> None:
    """Nor does one without torch; otherwise the table is the page's last."""
    run: Any = {"machine": report.machine("numpy", False), "rows": [], "ratios": [], "iteration": None}
    before = report.markdown(run)
    run["storages"] = None
    assert report.markdown(run) == before
    run["storages"] = rows("adamw", {IN_BFLOAT16: 1.0, FASTOPT_TORCH: 1.25, "torch-fused": 1.5})
    text = "\n".join(storages_report.markdown(run["storages"]))
    assert report.markdown(run) == f"{before}\n{text}\n"
