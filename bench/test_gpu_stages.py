"""The steps of the benchmark of GPUs that clip and average, without a GPU; no time is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastopt.bench import rounds
from fastopt.bench.gpu import check, contenders, report, saved, stages
from fastopt.bench.gpu.check import WrongResultError
from fastopt.bench.gpu.device import Cost, Device
from fastopt.bench.gpu.figures import Stage
from fastopt.bench.gpu.measure import COPY, timed
from fastopt.bench.measure import Pace
from fastopt.bench.stages import CALLED, CLIPPING, DECAY
from fastopt.bench.workloads import WORKLOADS, Workload

COMMITTED = Path(__file__).parent / "results/gpu.json"
SMALL = Workload("mlp", "small", ((64, 8), (5,)))
ONCE = Pace(0, 2, 2)
NAMES = [
    *("fastopt.torch", "fastopt.torch, clipping", "fastopt.torch, opt.clip_grad_norm_", "fastopt.torch, averaging"),
    *("torch-fused", "torch-fused, clipping", "torch-fused, averaging", "fastopt", "fastopt, clipping"),
]
# Numbers of four bytes that a step reads and writes for each element: those of the rule, and those of the stage.
MOVED = {"momentum": 5, "adamw": 7}
MORE = dict(zip(NAMES, (0, 1, 1, 2, 0, 3, 3, 0, 1), strict=True))


@pytest.fixture(autouse=True)
def in_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds agree, however busy this machine is."""
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")


def test_each_has_a_plain_step_and_a_subject_among_the_others(device: Device) -> None:
    everyone = stages.contestants(device)
    assert list(everyone) == NAMES
    for one in everyone.values():
        assert everyone[one.implementation].stage == stages.PLAIN
        subject = everyone[one.subject]
        assert subject.stage == (CLIPPING if one.stage == CALLED else one.stage)
        assert subject.implementation in contenders.SUBJECTS
    device.torch = None
    assert list(stages.contestants(device)) == NAMES[-2:]


def test_bytes_are_those_of_the_rule_and_of_the_stage(device: Device) -> None:
    for name, one in stages.contestants(device).items():
        for rule in stages.RULES:
            assert one.bytes_moved(rule) == 4 * (MOVED[rule] + MORE[name])


def test_only_who_does_not_wait_is_enqueued_while_the_gpu_is_held(device: Device) -> None:
    for name, one in stages.contestants(device).items():
        for workload in stages.WORKLOADS.values():
            assert (one.steps(workload) == 0) == (name == "torch-fused, averaging")


def test_steps_are_checked_by_the_formulas(device: Device) -> None:
    """A stage that is missing is found."""
    clips = stages.OPTIONS[CLIPPING]
    found = list(check.check_stages(device, pytest.fail))
    staged = [name for name in NAMES if ", " in name]
    assert found == [f"{name}, {rule}" for rule in stages.RULES for name in staged]
    plain = stages.contestants(device)["fastopt"]
    with pytest.raises(WrongResultError, match="fastopt, clipping's momentum is wrong"):
        list(check.check_contender(device, "fastopt, clipping", plain, "momentum", clips, pytest.fail))


def test_averages_are_kept(device: Device) -> None:
    arrays = contenders.draw(device.cupy, SMALL)
    before = [device.cupy.asnumpy(param) for param in arrays.params]
    step: Any = stages.contestants(device)["fastopt.torch, averaging"].make(arrays, "momentum")
    step()
    device.synchronize()
    opt = step.__self__
    for param, start in zip(opt.param_groups[0]["params"], before, strict=True):
        average = opt.state[param]["ema"].cpu().numpy()
        expected = DECAY * start.astype(np.float64) + (1 - DECAY) * param.detach().cpu().double().numpy()
        np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-6)


def test_what_is_measured_has_a_row_for_each(device: Device) -> None:
    found = stages.stages(device, SMALL, "adamw", lambda: ONCE, pytest.fail)
    assert [stages.named(row["implementation"], row["stage"]) for row in found] == NAMES
    for row in found:
        assert (row["workload"], row["rule"], row["rounds"], row["unstable"]) == ("mlp", "adamw", 2, {})
        assert all(value is not None and value > 0 for value in (row["gpu_seconds"], row["host_seconds"], row["gpu"]))
        if row["stage"] == stages.PLAIN:
            assert row["over_plain_gpu"] == row["over_plain_host"] == 1


def test_who_cannot_is_left_out_with_what_is_compared_with_it(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """But fastopt cannot be left out."""

    def unable(arrays: Any, rule: str) -> Any:
        raise RuntimeError("`fused=True` is not here")

    everyone = stages.contestants(device)
    some = {name: everyone[name] for name in NAMES[-5:]}
    object.__setattr__(some["torch-fused"], "make", unable)
    monkeypatch.setattr(stages, "contestants", lambda device: some)
    notes: list[str] = []
    found = stages.stages(device, SMALL, "momentum", lambda: ONCE, notes.append)
    assert {row["implementation"] for row in found} == {"fastopt"}
    assert notes == ["torch-fused is left out of momentum: `fused=True` is not here"]
    object.__setattr__(some["fastopt, clipping"], "make", unable)
    with pytest.raises(RuntimeError, match="is not here"):
        stages.stages(device, SMALL, "momentum", lambda: ONCE, notes.append)


def rows(device: Device) -> list[Stage]:
    """Rows of steps that take a microsecond of the host, and a nanosecond for each byte of an element."""
    everyone = stages.contestants(device)
    found = []
    for rule in stages.RULES:
        cost = {name: Cost(1e-9 * one.bytes_moved(rule), 1e-6 * (1 + one.waits)) for name, one in everyone.items()}
        copied = {COPY: Cost(0.5e-9 * everyone["fastopt"].bytes_moved(rule), 1e-6)}
        both = timed(WORKLOADS["gpt2"], rule, 10**9, [cost | copied] * 3)
        found += [stages.row(both, one) for one in everyone.values()]
    return found


def test_ratios_are_over_the_plain_step_and_over_fastopts(device: Device) -> None:
    for row in rows(device):
        name, moved = stages.named(row["implementation"], row["stage"]), MOVED[row["rule"]]
        assert row["bytes_per_element"] == 4 * (moved + MORE[name])
        assert row["over_plain_gpu"] == pytest.approx((moved + MORE[name]) / moved)
        assert row["gpu"] == pytest.approx((moved + MORE[name]) / (moved + MORE[row["subject"]]))
        assert row["host"] == pytest.approx(2 if name == "torch-fused, averaging" else 1)
        assert row["of_copy"] == pytest.approx(0.5)  # whatever the stage moves


def test_the_table_has_what_is_expected_by_bytes_beside_what_was_measured(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    found = saved.read(COMMITTED)
    assert report.STAGES not in report.markdown(found)  # that run is older
    found["stages"] = rows(device)
    lines = report.markdown(found).splitlines()
    assert report.STAGES in lines
    for line in (
        "plain | fastopt.torch | 0.03 µs / 1.00 µs | 50% | 1.00x / 1.00x | 1.00x | 1.00x / 1.00x |  |",
        "clipping | fastopt.torch | 0.03 µs / 1.00 µs | 50% | 1.14x / 1.00x | 1.14x | 1.25x / 1.00x | 1.00x / 1.00x |",
        "averaging | fastopt.torch | 0.04 µs / 1.00 µs | 50% | 1.29x / 1.00x | 1.29x | 1.11x / 2.0x |  |",
        "clipping | fastopt | 0.03 µs / 1.00 µs | 50% | 1.14x / 1.00x | 1.14x |  |  |",
    ):
        assert f"| GPT-2 124M | adamw | {line}" in lines
    found["stages"][1]["over_plain_gpu"] = None
    found["stages"][1]["unstable"] = {"over_plain_gpu": "2.0x apart"}
    report.show(found, tables=True)
    printed = " ".join(capsys.readouterr().out.split())
    about = "GPT-2 124M, momentum, clipping, fastopt.torch, fastopt.torch, clipping"
    assert f"unstable: {about}, over plain gpu: 2.0x apart" in printed
    assert "│ unstable / 1.00x │ 1.20x │" in printed
