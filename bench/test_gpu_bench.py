"""The benchmark of GPUs without one, on the tests' stand-ins for CuPy and torch's CUDA; no time is asserted."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastopt.bench import rounds
from fastopt.bench.contenders import RULES, TORCH_MODES
from fastopt.bench.gpu import check as gpu_check
from fastopt.bench.gpu import command as gpu_command
from fastopt.bench.gpu import contenders as gpu_contenders
from fastopt.bench.gpu import device as gpu
from fastopt.bench.gpu import figures as gpu_figures
from fastopt.bench.gpu import iteration as gpu_iteration
from fastopt.bench.gpu import measure as gpu_measure
from fastopt.bench.gpu import parts as gpu_parts
from fastopt.bench.gpu import plot as gpu_plot
from fastopt.bench.gpu import report as gpu_report
from fastopt.bench.gpu import saved
from fastopt.bench.gpu.check import Case, Trained, WrongResultError
from fastopt.bench.gpu.compiled import COMPILED
from fastopt.bench.gpu.contenders import WORKLOADS, Contender
from fastopt.bench.gpu.device import Cost, Device
from fastopt.bench.gpu.launches import LEFT_OUT
from fastopt.bench.measure import Pace, measure
from fastopt.bench.workloads import Arrays, Workload
from fastopt.kernels import pool

from fastopt import cli, extras
from fastopt.rules import RULES as REGISTRY
from fastopt.schedules import Cosine

# Of the tests' folder, which is no part of the package.
cuda, cupy = map(importlib.import_module, ("cuda_stand_in", "cupy_stand_in"))

ROOT = Path(__file__).parent.parent
SMALL = Workload("small", "small", ((64,), (5, 3), (7,)))
OF_TORCH = ["fastopt.torch", *TORCH_MODES]
SOME = ("momentum", "adam")
OF_STAGES = [
    *itertools.product(["fastopt.torch"], ["plain", "clipping", "opt.clip_grad_norm_", "averaging"]),
    *itertools.product(["torch-fused"], ["plain", "clipping", "averaging"]),
    *itertools.product(["fastopt"], ["plain", "clipping"]),
]
OF_CUPY = ["fastopt", "cupy", "cupy-fuse", "cupy-kernel"]


def give_workloads(monkeypatch: pytest.MonkeyPatch, *workloads: Workload) -> None:
    """Replace the workloads."""
    for module in (gpu_figures, gpu_parts, gpu_plot, gpu_report):
        monkeypatch.setattr(module, "WORKLOADS", {workload.name: workload for workload in workloads})


@pytest.fixture
def small_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    give_workloads(monkeypatch, *(Workload(name, name, SMALL.shapes) for name in gpu_parts.GRAPH_WORKLOADS))
    monkeypatch.setattr(gpu_parts, "STAGE_WORKLOADS", {"mlp": Workload("mlp", "mlp", SMALL.shapes)})
    monkeypatch.setattr(gpu_parts, "STAGE_RULES", ("momentum",))
    for name, size in {"WIDTH": 8, "BLOCKS": 1, "LENGTH": 4, "VOCABULARY": 16, "HIDDEN": 8, "ITERATIONS": 1}.items():
        monkeypatch.setattr(gpu_iteration, name, size)
    monkeypatch.setattr(gpu_command, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(gpu_command, "QUICK_ROUNDS", (2, 2))
    for module in (gpu_contenders, gpu_parts):
        monkeypatch.setattr(module, "MOST_STEPS", 3)
    monkeypatch.setattr(gpu_parts, "RULES", SOME)
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")
    monkeypatch.setattr(gpu_check, "REGISTRY", {name: REGISTRY[name] for name in RULES})


def never(message: str) -> None:
    """Fail if anything is said."""
    raise AssertionError(message)


def test_there_are_torchs_contenders_and_cupys(device: Device) -> None:
    everyone = gpu_contenders.contenders(device)
    assert list(everyone) == OF_TORCH + OF_CUPY
    assert [contender.subject for contender in everyone.values()] == ["fastopt.torch"] * 4 + ["fastopt"] * 4
    device.torch = None
    assert list(gpu_contenders.contenders(device)) == OF_CUPY


def test_workloads_are_those_that_were_promised() -> None:
    elements = {name: workload.elements for name, workload in WORKLOADS.items() if len(workload.shapes) == 1}
    assert elements == {"tensor_64k": 65_536, "tensor_1m": 2**20, "tensor_16m": 2**24, "tensor_256m": 2**28}
    assert {"resnet50", "gpt2"} < WORKLOADS.keys()


def test_gradients_that_are_new_at_each_step_have_other_addresses(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Any]] = []
    monkeypatch.setattr("fastopt.SGD.step", lambda self, grads: given.append(grads))
    assert not gpu_contenders.of_many(WORKLOADS["tensor_64k"])
    (contender,) = gpu_contenders.of_many(SMALL).values()
    step = contender.make(gpu_contenders.draw(device.cupy, SMALL), "momentum")
    step()
    step()
    device.synchronize()
    for one, other in zip(*given, strict=True):
        assert one.data.ptr != other.data.ptr
        np.testing.assert_array_equal(cupy.asnumpy(one), cupy.asnumpy(other))


def test_steps_in_flight_leave_room_in_the_queue_of_launches(device: Device) -> None:
    for contender in gpu_contenders.contenders(device).values():
        for workload in WORKLOADS.values():
            assert 0 <= contender.steps(workload) <= gpu_contenders.MOST_STEPS
            assert contender.steps(workload) * contender.launched(workload) <= gpu_contenders.LAUNCHES
    everyone = gpu_contenders.contenders(device)
    assert everyone["fastopt"].steps(WORKLOADS["tensor_64k"]) == gpu_contenders.MOST_STEPS
    assert everyone["torch-default"].steps(WORKLOADS["resnet50"]) == 1
    assert everyone["cupy"].steps(WORKLOADS["resnet50"]) == 0


@pytest.mark.exhaustive  # takes ten seconds
def test_everything_is_right_in_all_dtypes_and_by_everyone(device: Device) -> None:
    everyone = gpu_contenders.contenders(device)
    found = list(gpu_check.checks(device, everyone, never))
    assert len(found) == gpu_check.count(device, everyone) == len(set(found))
    for library in ("fastopt", "fastopt.torch"):
        assert {f"{library}, {rule}, float64" for rule in REGISTRY} < set(found)
        assert f"{library}, captured" in found
    assert "fastopt.torch, nesterov, bfloat16" in found
    assert {f"{name}, {rule}" for name in everyone for rule in RULES} < set(found)


def spoiled(right: Trained, kind: str, by: float) -> Trained:
    """Return a copy with a wrong number among the parameters or the states of the third tensor."""
    found = copy.deepcopy(right)
    arrays = getattr(found, kind)
    arrays[2 * len(arrays) // len(found.params)].flat[17] += by
    return found


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule == "adamw" else pytest.mark.exhaustive) for rule in REGISTRY]
)
def test_wrong_results_are_named(device: Device, rule: str) -> None:
    """A parameter off by a few units in the last place, a state, or not a number."""
    for dtype in gpu_check.ROUNDINGS:
        case = Case("fastopt.torch", rule, dtype)
        right = gpu_check.OfTorch(device).trained(case, *gpu_check.drawn(0, gpu_check.STEPS))
        gpu_check.check_case(case, lambda *given, found=right: found)
        off = 8 * gpu_check.tolerance(dtype, gpu_check.STEPS)
        for kind in ("params", "states") if REGISTRY[rule].states else ("params",):
            for by in (off, -off, math.nan):
                wrong = spoiled(right, kind, 4 * by)
                with pytest.raises(WrongResultError, match=rf"fastopt.torch's {rule} in {dtype} is wrong") as error:
                    gpu_check.check_case(case, lambda *given, found=wrong: found)
                message = f"of the {kind} of tensor 2, of shape (3, 5, 7), 1 of 105 elements differ from the formula"
                assert message in str(error.value)
                assert "element 17 is" in str(error.value)


@pytest.mark.parametrize("option", ["weight_decay", "lr", "momentum"])
def test_an_option_that_is_ignored_is_found(device: Device, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    library = gpu_check.OfCupy(device)
    made = library.optimizer

    def optimizer(*arguments: Any) -> Any:
        opt = made(*arguments)
        opt.param_groups[0][option] = 0.0 if option == "weight_decay" else 0.5
        return opt

    monkeypatch.setattr(library, "optimizer", optimizer)
    with pytest.raises(WrongResultError):
        gpu_check.check_case(Case("fastopt", "momentum", "float32"), library.trained)


def test_a_graph_that_does_something_else_is_found(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example one whose schedule does not move."""
    for library in gpu_check.libraries(device):
        gpu_check.check_graph(library)
        rates = iter([gpu_check.LR, Cosine(gpu_check.LR, steps=10)])
        made = library.optimizer
        monkeypatch.setattr(library, "optimizer", lambda *given, made=made, rates=rates: made(*given[:2], next(rates)))
        with pytest.raises(WrongResultError, match="captured step is wrong") as error:
            gpu_check.check_graph(library)
        assert "differ from the same steps without a graph" in str(error.value)


def test_a_contender_that_is_wrong_ends_it_and_one_that_cannot_is_left_out(device: Device) -> None:
    def raising(arrays: Arrays, rule: str) -> Any:
        raise RuntimeError("`fused=True` is not here\nand more")

    notes: list[str] = []
    idle = Contender(lambda arrays, rule: lambda: None, "fastopt")
    assert not list(gpu_check.check_contenders(device, {"torch-fused": Contender(raising, "fastopt")}, notes.append))
    assert notes == [f"torch-fused is left out of {rule}: `fused=True` is not here" for rule in RULES]
    with pytest.raises(WrongResultError, match="cupy's momentum is wrong"):
        list(gpu_check.check_contenders(device, {"cupy": idle}, never))
    with pytest.raises(RuntimeError, match="fused=True"):
        list(gpu_check.check_contenders(device, {"fastopt": Contender(raising, "fastopt")}, never))


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule == "adam" else pytest.mark.exhaustive) for rule in RULES]
)
def test_numbers_stay_finite_however_long_it_takes(device: Device, rule: str) -> None:
    arrays = gpu_contenders.draw(device.cupy, SMALL)
    everyone = gpu_contenders.contenders(device)
    for step in gpu_measure.started(device, everyone, rule, arrays, never).values():
        for _ in range(200):
            step()
    device.synchronize()
    params, grads = ([cupy.asnumpy(array) for array in of] for of in (arrays.params, arrays.grads))
    assert all(np.isfinite(array).all() for array in params + grads)
    assert all((array != 0).any() for array in grads)


def test_shares_of_the_time_that_is_left() -> None:
    now = [100.0]
    budget = gpu_measure.Budget(60.0, 2, 9, clock=lambda: now[0])
    assert budget.pace(3) == Pace(20.0, 2, 9)
    now[0] = 110.0  # the first part was quick
    assert budget.pace(2).seconds == 25.0
    now[0] = 170.0  # the second one was late
    assert budget.pace(1).seconds == 0.0


def test_what_does_not_fit_is_left_out_visibly(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes none of the time."""
    notes: list[str] = []
    monkeypatch.setattr(cuda.runtime, "memGetInfo", lambda: (10**7, 2 * 10**7))
    workload = Workload("large", "large", ((10**6,),))
    give_workloads(monkeypatch, workload)
    monkeypatch.setattr(gpu_parts, "GRAPH_WORKLOADS", ("large",))
    monkeypatch.setattr(gpu_parts, "STAGE_WORKLOADS", {"large": workload})
    monkeypatch.setattr(gpu_parts, "STAGE_RULES", ("adamw",))
    monkeypatch.setattr(gpu_parts, "TRAININGS", {})
    everyone = gpu_contenders.contenders(device)
    listed = gpu_parts.parts(gpu_parts.Bench(device, everyone, "cupy", notes.append))
    *large, launching = listed
    assert [part.name for part in large] == [
        *(f"{rule} on large" for rule in RULES),
        "graphs of large",
        "clipping and averaging by adamw on large",
    ]
    assert {part.measure(lambda: pytest.fail("rounds")) for part in large} == {gpu_figures.Figures()}
    assert launching.name == "launches by the size of an argument"
    assert "large is left out: it needs 0.1 GB of the GPU's memory, and 80% of what is free there are 0.0 GB" in notes


def test_a_step_has_two_costs(device: Device) -> None:
    calls: list[str] = []
    waits: list[int] = []
    device.wait = lambda blocks, threads, arguments: waits.append(int(arguments[0]))
    mode = gpu_measure.queued(device, {"a": 5, "b": 0})
    found = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, mode, Pace(0, 2, 2))
    assert (calls.count("a"), calls.count("b")) == (3 * 5, 3 * 1)
    costs = [cost for round_ in found for cost in round_.values()]
    assert all(isinstance(cost, Cost) and cost.gpu > 0 and cost.host > 0 for cost in costs)
    assert sorted(wait > 0 for wait in waits) == [False] * (2 + 2) + [True] * 2  # none to see, none for b
    calls.clear()

    def slow() -> None:
        calls.append("a")
        cuda.get_current_stream().put(lambda: time.sleep(0.015), "slow")

    measure({"a": slow}, mode, Pace(0, 2, 2))
    assert len(calls) == 5 + 2 * 1
    device.cost(lambda: None, 1, 1e6)
    assert waits[-1] == 1e9 * gpu.LONGEST_WAIT


def fake_report() -> gpu_figures.Report:
    """Costs such that torch-fused takes three times the GPU's time and twice the host's; AdaGrad has none."""
    everyone = {"fastopt.torch": 1.0, "torch-fused": 3.0, "fastopt": 2.0, "cupy": 8.0, gpu_measure.COPY: 0.5}
    timings = []
    for workload in WORKLOADS:
        for rule in RULES:
            costs = [
                {
                    name: Cost(1e-3 * t * drift, 1e-5 * (2 * drift if t == 3 else drift))
                    for name, t in everyone.items()
                    if (name, rule) != ("torch-fused", "adagrad")
                }
                for drift in (1, 9, 4)
            ]
            timings.append(gpu_measure.timed(Workload(workload, workload, ()), rule, 10**9, costs))
    eager = [{"fastopt": Cost(6e-6, 8e-6), "fastopt, graph": Cost(3e-6, 2e-6)}] * 3
    subjects = {name: Contender(lambda arrays, rule: lambda: None, name) for name in ("fastopt.torch", "fastopt")}
    others = {"torch-fused": "fastopt.torch", "cupy": "fastopt"}
    makers = subjects | {name: Contender(subjects[of].make, of) for name, of in others.items()}
    return {
        "machine": gpu_figures.machine(Device(cupy, torch), "torch-fused", quick=True),
        "checked": 50,
        "rows": gpu_figures.rows(timings, "torch-fused"),
        "ratios": gpu_figures.ratios(timings, makers),
        "compiled": [],
        "stages": [],
        "launches": [],
        "graphs": gpu_figures.replays([gpu_measure.timed(WORKLOADS["gpt2"], "momentum", 10**9, eager)]),
        "iterations": [],
        "notes": ["torch-fused is left out of adagrad: not there", "cupy-fuse is left out of adam: not there"],
        "missing": [],
    }


def test_rows_and_ratios_are_what_the_json_file_promises() -> None:
    found = fake_report()
    assert json.loads(json.dumps(found)) == found
    assert found["machine"]["gpu"] == "stand-in"
    assert (found["machine"]["driver"], found["machine"]["runtime"]) == ("13.2", "12.9")
    assert "cupy" in found["machine"]["versions"]
    row = found["rows"][0]
    assert (row["workload"], row["rule"], row["implementation"]) == ("tensor_64k", "momentum", "fastopt.torch")
    assert row["gpu_seconds"] == pytest.approx(4e-3)
    assert row["host_seconds"] == pytest.approx(4e-5)
    assert row["speedup"] == pytest.approx(3)
    assert row["gbps"] == pytest.approx(250)
    assert row["of_copy"] == pytest.approx(0.5)
    assert all((row["speedup"] is None) == (row["rule"] == "adagrad") for row in found["rows"])
    ratio = found["ratios"][0]
    assert (ratio["implementation"], ratio["subject"], ratio["rounds"]) == ("torch-fused", "fastopt.torch", 3)
    assert [ratio["gpu"], ratio["host"]] == pytest.approx([3, 2])
    assert {entry["implementation"]: entry["subject"] for entry in found["ratios"]} == {
        "torch-fused": "fastopt.torch",
        "cupy": "fastopt",
    }


def test_tables_say_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(json.dumps(fake_report()))
    text = gpu_report.markdown(found)
    assert "stand-in" in text
    assert "driver for CUDA 13.2, CUDA 12.9 in CuPy" in text
    of_cupy = "8.00 ms / 40.0 µs | 25% | 4.0x / 1.00x |"
    assert f"| GPT-2 124M | momentum | 4.00 ms / 40.0 µs | 50% | 3.0x / 2.0x | {of_cupy}" in text
    assert f"| GPT-2 124M | adagrad | 4.00 ms / 40.0 µs | 50% |  | {of_cupy}" in text
    assert "| GPT-2 124M | fastopt | 6.00 µs / 8.00 µs | 3.00 µs / 2.00 µs | 2.0x / 4.0x |" in text
    assert "For a momentum step over 161 bound arrays of CuPy the host takes 40.0 µs." in text
    assert "On CUDA torch has no fused AdaGrad" in text
    assert "Cupy-fuse is left out of adam: not there." in text
    gpu_report.show(found, tables=True)
    printed = capsys.readouterr().out
    for part in ("against torch-fused", "3.0x / 2.0x", "2.0x / 4.0x", "50 checks against the formulas came first"):
        assert part in printed
    gpu_report.show(found, tables=False)
    printed = capsys.readouterr().out
    assert "3.0x / 2.0x" in printed
    assert "against torch-fused" not in printed


def test_new_gradients_are_no_contender_of_others() -> None:
    """Nor the fastest of them; a sentence says what the host takes."""
    found: Any = fake_report()
    summary = gpu_report.summary(found)
    own = next(row for row in found["rows"] if (row["workload"], row["implementation"]) == ("resnet50", "fastopt"))
    found["rows"].append({**own, "implementation": "fastopt-fresh", "host_seconds": 6e-5})
    ratio = next(entry for entry in found["ratios"] if entry["subject"] == "fastopt")
    found["ratios"].append({**ratio, "implementation": "fastopt-fresh", "gpu": 1.0, "host": 0.5})
    assert "For a momentum step over 161 new arrays of CuPy the host takes 60.0 µs." in gpu_report.markdown(found)
    assert gpu_report.summary(found) == summary


@pytest.mark.exhaustive  # draws two charts
def test_what_is_unstable_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In tables and chart; files of older versions do not name any."""
    found: Any = fake_report()
    why = "2.0x apart, two clusters of 12 rounds"
    for kind in ("rows", "ratios", "graphs"):
        for entry in found[kind]:
            numbers = [name for name, value in entry.items() if isinstance(value, float)]
            entry |= dict.fromkeys(numbers) | {"unstable": dict.fromkeys(numbers, why)}
    text = gpu_report.markdown(found)
    assert "| GPT-2 124M | momentum | unstable / unstable | unstable | unstable / unstable |" in text
    gpu_report.show(found, tables=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"unstable: GPT-2 124M, momentum, torch-fused, fastopt.torch, host: {why}" in printed
    gpu_plot.draw(found, str(tmp_path / "gpu.svg"))
    assert f"<!-- unstable: {why.partition(', ')[0]} -->" in (tmp_path / "gpu.svg").read_text(encoding="utf-8")
    older: Any = fake_report()
    for kind in ("rows", "ratios", "graphs"):
        for entry in older[kind]:
            del entry["unstable"]
    path = tmp_path / "older.json"
    path.write_text(json.dumps(older), encoding="utf-8")
    gpu_report.show(saved.read(path), tables=True)
    assert "unstable" not in capsys.readouterr().out


def test_without_torch_there_is_no_table_of_it() -> None:
    found = fake_report()
    of_cupy = ("fastopt", "cupy")
    found["rows"] = [row for row in found["rows"] if row["implementation"] in of_cupy]
    found["ratios"] = [entry for entry in found["ratios"] if entry["implementation"] in of_cupy]
    found["graphs"], found["notes"] = [], []
    found["machine"]["torch_runtime"] = None
    text = gpu_report.markdown(found)
    assert "fastopt.torch" not in text
    assert "enqueued anew" not in text
    assert "| GPT-2 124M | momentum | 8.00 ms / 40.0 µs | 25% | 4.0x / 1.00x |" in text


def test_a_run_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    assert gpu_report.markdown_of(tmp_path / "gpu.json") == gpu_report.UNMEASURED
    (tmp_path / "gpu.json").write_text(json.dumps(fake_report()))
    assert gpu_report.markdown_of(tmp_path / "gpu.json") == gpu_report.markdown(fake_report())


@pytest.mark.parametrize("suffix", ["png", pytest.param("svg", marks=pytest.mark.exhaustive)])
def test_the_chart_is_drawn(tmp_path: Path, suffix: str) -> None:
    gpu_plot.draw(fake_report(), str(tmp_path / f"gpu.{suffix}"))
    gpu_plot.draw_overview(fake_report(), str(tmp_path / f"overview.{suffix}"))
    assert (tmp_path / f"gpu.{suffix}").stat().st_size > 10_000
    assert set(gpu_plot.OF_GPU) == {*OF_TORCH, *OF_CUPY, COMPILED} - {"fastopt", "fastopt.torch"}


@pytest.mark.exhaustive  # takes fifteen seconds
@pytest.mark.usefixtures("small_workloads")
def test_the_command_checks_measures_prints_and_writes(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, chart = tmp_path / "gpu.json", tmp_path / "gpu.png"
    files = ["--json", str(data), "--plot", str(chart)]
    assert cli.main(["bench", "--gpu", "--quick", *files, "--baseline", "cupy", "--tables"]) == 0
    found = json.loads(data.read_text(encoding="utf-8"))
    assert list(found) == list(saved.KINDS)
    left_out = "torch-compiled is left out of a quick run: it takes too long to compile"
    assert found["notes"] == [left_out, *([] if pool.available else [LEFT_OUT])]
    assert found["missing"] == []
    assert found["checked"] == gpu_check.count(device, gpu_contenders.contenders(device))
    assert [row["implementation"] for row in found["rows"]] == [*OF_TORCH, *OF_CUPY, "fastopt-fresh"] * 3 * len(SOME)
    assert all(row["speedup"] == 1 for row in found["rows"] if row["implementation"] == "cupy")
    assert len(found["ratios"]) == 7 * 3 * len(SOME)
    assert [entry["implementation"] for entry in found["graphs"]] == ["fastopt.torch", "fastopt"] * 3
    assert [(entry["implementation"], entry["stage"]) for entry in found["stages"]] == OF_STAGES
    assert [entry["implementation"] for entry in found["launches"]] == ["cupy", *["extension"][: pool.available]] * 3
    assert [entry["implementation"] for entry in found["iterations"]] == ["fastopt.torch", "torch-fused"] * 2
    assert chart.stat().st_size > 0
    assert "against cupy" in capsys.readouterr().out
    assert "fastopt.torch" in gpu_report.markdown(found)
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.png"}


@pytest.mark.usefixtures("device", "small_workloads")
def test_a_wrong_result_ends_the_command_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = gpu_parts.Part("a part", lambda begin: pytest.fail("measured"))
    monkeypatch.setattr(gpu_command, "parts", lambda bench: [part])
    monkeypatch.setattr(gpu_check, "DECAY", 0.5)  # of the optimizers, and not of the formulas
    assert cli.main(["bench", "--gpu", "--quick", "--json", str(tmp_path / "gpu.json")]) == 1
    assert "fastopt: error: fastopt's momentum in float32 is wrong" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("device")
def test_what_cannot_work_is_said_before_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--baseline", "numpy"], "baseline 'numpy' is not among fastopt.torch, torch-default"),
        (["--baseline", ""], "baseline '' is not among fastopt.torch, torch-default"),
        (["--plot", str(tmp_path / "x.docx")], "x.docx is no picture"),
        (["--json", str(tmp_path / "nowhere" / "x.json")], "nowhere"),
    ):
        assert cli.main(["bench", "--gpu", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_the_baseline_is_torchs_fused_step_or_cupy(device: Device) -> None:
    everyone = gpu_contenders.contenders(device)
    assert gpu_command.chosen(None, everyone) == "torch-fused"
    device.torch = None
    assert gpu_command.chosen(None, gpu_contenders.contenders(device)) == "cupy"
    assert gpu_command.chosen("fastopt", everyone) == "fastopt"


def test_without_cupy_the_extras_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(extras.MissingExtraError, match=r"'fastopt\[cuda13\]', or 'fastopt\[cuda12\]'"):
        gpu.open_device(never)


@pytest.mark.parametrize("count", [0, None])
@pytest.mark.usefixtures("device")
def test_without_a_gpu_that_is_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int | None
) -> None:
    def counted() -> int:
        if count is None:
            raise cuda.CUDARuntimeError("cudaErrorNoDevice")
        return count

    monkeypatch.setattr(cuda.runtime, "getDeviceCount", counted)
    assert cli.main(["bench", "--gpu"]) == 1
    assert capsys.readouterr().err.startswith("fastopt: error: there is no GPU that CuPy can use")


def test_torch_without_cuda_is_left_out_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.torch_with_cuda(said.append) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpu.torch_with_cuda(said.append) is None
    assert [message.partition(":")[0] for message in said] == ["torch cannot use a GPU here", "torch is not installed"]
