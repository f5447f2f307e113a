"""A whole run on a GPU: its file, resuming, whole iterations, compiled steps, and .ci/gpu."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fastopt.bench import rounds
from fastopt.bench.contenders import FASTOPT_TORCH, FRESH, RULES, torch_step
from fastopt.bench.gpu import command, compiled, figures, iteration, launches, parts, plot, report, saved
from fastopt.bench.gpu import contenders as contenders_of_gpu
from fastopt.bench.gpu.check import WrongResultError, check_contenders
from fastopt.bench.gpu.compiled import COMPILED, Compiled
from fastopt.bench.gpu.contenders import WORKLOADS, Contender, contenders
from fastopt.bench.gpu.device import Device
from fastopt.bench.gpu.figures import Figures
from fastopt.bench.gpu.measure import Budget
from fastopt.bench.gpu.parts import Bench, Part
from fastopt.bench.measure import Pace, measure
from fastopt.bench.workloads import Arrays, Workload
from fastopt.kernels import cuda as kernels
from fastopt.kernels import driver, pool

from fastopt import cli

cuda = importlib.import_module("cuda_stand_in")  # of the tests' folder, which is no part of the package

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "bench/results/gpu.json"
NEWS = ("compiled", "stages", "launches", "iterations", "missing")  # which the first runs did not have
KEYS = ["machine", "checked", "rows", "ratios", "compiled", "graphs", "stages", "launches", "iterations", "notes"]
KEYS += ["missing"]
MACHINE: dict[str, Any] = {
    "gpu": "H100",
    "multiprocessors": 132,
    "memory": 10**11,
    "driver": "13.0",
    "runtime": "13.2",
    "torch_runtime": "13.0",
    "cpu": "Xeon",
    "versions": {"fastopt": "0.1.0", "torch": "2.13.0", "cupy": "14.2.0"},
    "date": "2026-11-26",
}
STEPS = [("tensor_64k", "momentum"), ("tensor_64k", "adam"), ("gpt2", "nesterov"), ("gpt2", "adagrad")]


def row(workload: str, rule: str) -> figures.Row:
    """A contender's figures."""
    return {
        "workload": workload,
        "rule": rule,
        "implementation": "fastopt",
        "gpu_seconds": 1e-3,
        "host_seconds": 1e-5,
        "speedup": None,
        "gbps": 1.0,
        "of_copy": 0.5,
        "unstable": {},
    }


class Run:
    """The command, of parts that measure nothing.

    Attributes
    ----------
    file : Path
        What it writes.
    during : callable
        Called by each part, with its name and the function that returns its pace.
    measured : list of str
        The parts that were, by now.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.monkeypatch, self.file = monkeypatch, file
        self.during: Callable[[str, Callable[[], Pace]], object] = lambda name, begin: None
        self.measured: list[str] = []
        self.names = [f"{rule} on {workload}" for workload, rule in STEPS]
        self.device = SimpleNamespace(torch=None)
        self.here = MACHINE
        monkeypatch.setattr(command, "open_device", lambda note: note("torch is left out") or self.device)
        monkeypatch.setattr(command, "contenders", lambda device: {"fastopt": None, "cupy": None})
        monkeypatch.setattr(command, "checks", lambda *arguments: iter("abc"))
        monkeypatch.setattr(command, "count", lambda *arguments: 3)
        monkeypatch.setattr(command, "parts", self.parts)
        monkeypatch.setattr(
            figures, "machine", lambda device, baseline, quick: {**self.here, "baseline": baseline, "quick": quick}
        )

    def parts(self, bench: Bench) -> list[Part]:
        """One for each of a few steps."""

        def measure(workload: str, rule: str) -> Callable[[Callable[[], Pace]], Figures]:
            def measure(begin: Callable[[], Pace]) -> Figures:
                name = f"{rule} on {workload}"
                self.during(name, begin)
                self.measured.append(name)
                bench.say(f"something is left out of {rule}")
                return Figures(rows=[row(workload, rule)])

            return measure

        return [Part(name, measure(*which)) for name, which in zip(self.names, STEPS, strict=True)]

    def __call__(self, *arguments: str) -> int:
        """Run it."""
        self.measured.clear()
        return cli.main(["bench", "--gpu", *arguments])

    def written(self) -> figures.Report:
        """Read the file, as anyone may at any time."""
        found: figures.Report = json.loads(self.file.read_text(encoding="utf-8"))
        assert list(found) == KEYS
        return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return Run(monkeypatch, tmp_path / "gpu.json")


def dying(at: str, error: BaseException) -> Callable[[str, Callable[[], Pace]], object]:
    """What ends a run in the middle of a part."""

    def die(name: str, begin: Callable[[], Pace]) -> None:
        if name == at:
            raise error

    return die


def test_what_is_measured_is_on_disk_at_once(run: Run) -> None:
    """After the checks, and after each part."""
    seen = []
    run.during = lambda name, begin: seen.append(run.written())
    assert run("--json", str(run.file)) == 0
    assert [found["missing"] for found in seen] == [run.names[at:] for at in range(4)]
    assert [found["rows"] for found in seen] == [[row(*which) for which in STEPS[:at]] for at in range(4)]
    assert {found["checked"] for found in seen} == {3}
    assert [len(found["notes"]) for found in seen] == [1, 2, 3, 4]
    assert run.written()["missing"] == []
    assert [path.name for path in run.file.parent.iterdir()] == ["gpu.json"]


def test_a_run_that_dies_is_resumed(run: Run, tmp_path: Path) -> None:
    """The file is unchanged then, wherever the error came, and so is one beside it."""
    assert run("--json", str(run.file), "--baseline", "fastopt", "--quick") == 0
    whole = run.file.read_text()
    for at, name in enumerate(run.names):
        run.file.unlink()
        run.during = dying(name, KeyboardInterrupt())
        assert run("--json", str(run.file), "--baseline", "fastopt", "--quick") == 130
        assert run.written()["missing"] == run.names[at:]
        run.during = lambda name, begin: None
        other = tmp_path / "other.json"
        assert run("--resume", str(run.file), "--json", str(other)) == 0
        assert run.measured == run.names[at:]
        assert run.file.read_text() == other.read_text() == whole


def test_a_part_that_fails_again_loses_nothing(run: Run) -> None:
    run.during = dying(run.names[2], RuntimeError("an illegal address"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="an illegal address"):
            run("--json" if not run.file.exists() else "--resume", str(run.file))
        assert run.written()["missing"] == run.names[2:]
        assert run.written()["rows"] == [row(*which) for which in STEPS[:2]]


def test_rows_are_in_order_whatever_was_missing(run: Run) -> None:
    assert run("--json", str(run.file)) == 0
    whole = run.written()
    found = {**whole, "rows": whole["rows"][1::2], "missing": run.names[2::-2]}
    run.file.write_text(json.dumps(found))
    assert run("--resume", str(run.file)) == 0
    assert run.measured == run.names[::2]
    assert run.written() == whole


def test_the_parts_that_are_left_share_the_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time spent before the rounds, for example on checks, is not given again."""
    now = [0.0]

    def budget(seconds: float, fewest: int, most: int) -> Budget:
        return Budget(seconds, fewest, most, clock=lambda: now[0])

    monkeypatch.setattr(command, "Budget", budget)
    monkeypatch.setattr(command, "checks", lambda *arguments: now.__setitem__(0, 10.0) or iter(()))
    monkeypatch.setattr(command, "SECONDS", 50.0)
    paces = []
    run.during = lambda name, begin: paces.append(begin())
    assert run("--json", str(run.file)) == 0
    assert [pace.seconds for pace in paces] == [40 / 4, 40 / 3, 40 / 2, 40.0]
    run.file.write_text(json.dumps({**run.written(), "missing": run.names[:1]}))
    paces.clear()
    now[0] = 0.0
    assert run("--resume", str(run.file)) == 0
    assert paces == [Pace(40.0, *command.ROUNDS)]


def test_a_complete_run_is_shown_without_a_gpu(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "open_device", lambda note: pytest.fail("opened"))
    run.file.write_bytes(COMMITTED.read_bytes())
    copy, chart = tmp_path / "copy.json", tmp_path / "gpu.png"
    assert run("--resume", str(run.file), "--json", str(copy), "--plot", str(chart), "--tables") == 0
    printed = capsys.readouterr()
    assert f"{run.file} names nothing that is missing: there was nothing left to measure" in printed.err
    assert "Optimizer steps on NVIDIA H100" in printed.out
    assert run.measured == []
    assert run.file.read_bytes() == COMMITTED.read_bytes()
    assert json.loads(copy.read_text()) == saved.read(COMMITTED)
    assert chart.stat().st_size > 0


def test_another_machine_does_not_go_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names both, and the file stays as it is."""
    run.during = dying(run.names[1], KeyboardInterrupt())
    run("--json", str(run.file))
    before = run.file.read_text()
    for change, here in (
        ({"gpu": "A100"}, "A100 (CUDA 13.0 in the driver"),
        ({"driver": "12.9"}, "CUDA 12.9 in the driver"),
        ({"runtime": "12.9"}, "12.9 in CuPy"),
        ({"torch_runtime": None}, "None in torch"),
        ({"versions": {**MACHINE["versions"], "torch": "2.11.0"}}, "torch 2.11.0"),
        ({"versions": {"fastopt": "0.1.0", "torch": "2.13.0"}}, "cupy missing"),
        ({"versions": {**MACHINE["versions"], "fastopt": "0.2.0"}}, "fastopt 0.2.0"),
    ):
        run.here = {**MACHINE, **change}
        assert run("--resume", str(run.file)) == 1
        message = capsys.readouterr().err
        assert "H100 (CUDA 13.0 in the driver, 13.2 in CuPy, 13.0 in torch; fastopt 0.1.0, torch 2.13.0" in message
        assert here in message.partition("; here is ")[2]
        assert run.measured == []
        assert run.file.read_text() == before
    run.here = {**MACHINE, "date": "2026-11-27", "cpu": "another core"}
    run.during = lambda name, begin: None
    assert run("--resume", str(run.file)) == 0
    assert run.written()["machine"]["date"] == MACHINE["date"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "is no JSON"),
        ('{"machine": ', "is no JSON"),
        ("[]", "is no run of fastopt bench --gpu"),
        ("{}", "is no run of fastopt bench --gpu"),
        ('{"machine": 1, "checked": 3}', "is no run of fastopt bench --gpu"),
        ('{"machine": {"gpu": "H100"}, "checked": 3}', "is no run of fastopt bench --gpu"),
        ((ROOT / "bench/results/cpu.json").read_text(encoding="utf-8"), "is no run of fastopt bench --gpu"),
        (
            COMMITTED.read_text(encoding="utf-8").replace("torch-fused", "cupy")[:-3] + ', "missing": ["sgd on gpt5"]}',
            "misses what is not measured here: sgd",
        ),
    ],
)
def test_what_is_no_run_is_not_resumed(
    run: Run, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    if text is not None:
        run.file.write_text(text, encoding="utf-8")
    run.here = json.loads(COMMITTED.read_text(encoding="utf-8"))["machine"]
    assert run("--resume", str(run.file)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(run.file) in error
    assert text is None or run.file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "--quick"], "--quick and --baseline are for a new run"),
        (["--gpu", "--baseline", "fastopt"], "--quick and --baseline are for a new run"),
        ([], "--resume goes with --gpu"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    run.file.write_bytes(COMMITTED.read_bytes())
    assert cli.main(["bench", "--resume", str(run.file), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_file_is_replaced_at_once_or_not_at_all(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--json", str(run.file))
    found, before = saved.read(run.file), run.file.read_text()

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            saved.write({**found, "checked": 99}, run.file)
    assert run.file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    link = tmp_path / "link.json"
    link.symlink_to(run.file)
    saved.write({**found, "checked": 99}, link)
    assert link.is_symlink()
    assert run.written()["checked"] == 99
    assert run("--json", os.devnull) == 1  # which would be a file afterwards
    assert f"{os.devnull} is no file" in capsys.readouterr().err


def test_old_files_have_what_they_have(tmp_path: Path) -> None:
    """The first run on an H100 was one of them."""
    old = {key: value for key, value in json.loads(COMMITTED.read_text(encoding="utf-8")).items() if key not in NEWS}
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    found = saved.read(tmp_path / "old.json")
    assert list(found) == KEYS
    assert not any((found["compiled"], found["launches"], found["iterations"], found["missing"]))
    assert len(found["rows"]) > 100
    assert f"{found['machine']['gpu']}" in report.markdown(found)


# Whole iterations


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A device that is the CPU."""
    sizes = {"WIDTH": 8, "HEADS": 2, "BLOCKS": 2, "LENGTH": 4, "VOCABULARY": 16, "SEQUENCES": 2, "HIDDEN": 8}
    for name, size in {**sizes, "ITERATIONS": 2}.items():
        monkeypatch.setattr(iteration, name, size)
    return SimpleNamespace(in_torch="cpu", synchronize=lambda: None)


def test_the_models_are_those_that_were_promised() -> None:
    """A GPT with as many tensors as GPT-2, but small ones, so that the host is slower than the GPU."""
    assert iteration.TASKS.keys() == figures.TRAININGS.keys()
    sizes = {name: [param.numel() for param in task.model().parameters()] for name, task in iteration.TASKS.items()}
    assert len(sizes["gpt"]) == len(WORKLOADS["gpt2"].shapes)
    assert len(sizes["mlp"]) == 6
    assert max(map(sum, sizes.values())) < 3e6


@pytest.fixture
def in_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds agree, however busy this machine is."""
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")


@pytest.mark.usefixtures("in_agreement")
@pytest.mark.parametrize("name", figures.TRAININGS)
def test_iterations_are_measured_side_by_side(small_models: Any, name: str) -> None:
    paces = iter([Pace(0, 3, 3)])  # one, when the rounds begin
    before = torch.get_rng_state()
    found = iteration.iterations(small_models, name, lambda: next(paces), pytest.fail)
    assert torch.equal(torch.get_rng_state(), before)
    assert [entry["implementation"] for entry in found] == [FASTOPT_TORCH, "torch-fused"]
    assert [(entry["workload"], entry["rounds"]) for entry in found] == [(name, 3)] * 2
    for entry in found:
        seconds, host, ratio = entry["seconds"], entry["host_seconds"], entry["ratio"]
        assert seconds is None or host is None or seconds >= host > 0
        assert ratio is None or ratio > 0.01
    assert found[0]["ratio"] == 1.0
    assert {entry["tensors"] for entry in found} == {2 * 12 + 4 if name == "gpt" else 6}


@pytest.mark.parametrize("name", figures.TRAININGS)
def test_both_train_the_same_model_from_the_same_start(small_models: Any, name: str) -> None:
    """To the same numbers in as many steps; the loss does not depend on the keys' bias, which Adam moves at random."""
    trained = []
    for optimizer in iteration.OPTIMIZERS.values():
        model, step = iteration.training(iteration.TASKS[name], optimizer, "cpu")
        start = [param.detach().clone() for param in model.parameters()]
        step()
        trained.append((start, [param.detach() for param in model.parameters()]))
        assert all(param.grad is not None for param in model.parameters())
    (start, ours), (other_start, theirs) = trained
    for p, q, before, other_before in zip(ours, theirs, start, other_start, strict=True):
        assert torch.equal(before, other_before)
        assert not torch.equal(p, before)
        torch.testing.assert_close(p, q, rtol=0, atol=1e-2 * iteration.LR)


def test_an_optimizer_that_cannot_is_left_out_of_iterations(small_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(params: Any, lr: float) -> None:
        raise RuntimeError("`fused=True` is not here")

    monkeypatch.setitem(iteration.OPTIMIZERS, "torch-fused", unable)
    notes: list[str] = []
    found = iteration.iterations(small_models, "mlp", lambda: Pace(0, 2, 2), notes.append)
    assert [entry["implementation"] for entry in found] == [FASTOPT_TORCH]
    assert notes == ["torch-fused is left out of whole iterations: `fused=True` is not here"]


# Compiled steps

DEVICE: Any = SimpleNamespace(
    cupy=SimpleNamespace(zeros_like=np.zeros_like, asnumpy=np.asarray), synchronize=lambda: None
)


def some_arrays(size: int = 3000) -> Arrays:
    """One parameter and its gradient."""
    wave = np.sin(np.arange(size, dtype=np.float32))
    return Arrays([wave.copy()], [wave + np.float32(0.5)])


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule == "adam" else pytest.mark.exhaustive) for rule in RULES]
)
def test_a_compiled_step_is_right_and_stays_compiled(rule: str) -> None:
    """Over any number of steps, in which nothing overflows, and which leave the gradients of others alone."""
    arrays = some_arrays()
    given = arrays.grads[0].copy()
    made = Compiled(DEVICE, compiled.contender("eager"), rule, arrays)
    assert made.entry("tensor_1m", rule) == {"workload": "tensor_1m", "rule": rule, "seconds": made.seconds}
    for _ in range(200):
        made.step()
    assert np.isfinite(arrays.params[0]).all()
    assert np.array_equal(arrays.grads[0], given)
    assert not made.finish()


@pytest.mark.exhaustive  # ten compilations
def test_workloads_do_not_add_up_to_the_limit_of_recompilations() -> None:
    """torch would go on without compiling after eight."""
    for size in range(1001, 1011):
        made = Compiled(DEVICE, compiled.contender("eager"), "momentum", some_arrays(size))
        made.step()
        assert not made.finish()


def test_a_step_that_is_not_compiled_or_wrong_or_compiled_anew_is_found() -> None:
    def eager(arrays: Arrays, rule: str) -> Any:
        return torch_step(arrays, rule, {"foreach": True})

    def twice(arrays: Arrays, rule: str) -> Any:
        step = compiled.compiled_step(arrays, rule, "eager")
        return lambda: (step(), step())

    with pytest.raises(WrongResultError, match="compiled nothing"):
        Compiled(DEVICE, Contender(eager, FASTOPT_TORCH), "adam", some_arrays())
    with pytest.raises(WrongResultError, match="torch-compiled's adam is wrong"):
        Compiled(DEVICE, Contender(twice, FASTOPT_TORCH), "adam", some_arrays())
    made = Compiled(DEVICE, compiled.contender("eager"), "adam", some_arrays())
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))
    assert made.finish()


# All of it, on the tests' stand-ins for CuPy and torch's CUDA


def compiled_on_the_host(arrays: Any, rule: str) -> Any:
    """Make a compiled step over the same memory: torch compiles nothing for a GPU that is pretended."""
    host = Arrays(*([array.host for array in of] for of in (arrays.params, arrays.grads)))
    compiled_step = compiled.compiled_step(host, rule, "eager")

    def step() -> None:
        cuda.synchronize_all()
        compiled_step()

    return step


def measured_with_compiled(device: Device, rule: str, *shapes: tuple[int, ...]) -> tuple[Figures, list[str]]:
    """Measure a part with two contenders and a compiled one; return what was said, too."""
    notes: list[str] = []
    everyone = {name: contenders(device)[name] for name in (FASTOPT_TORCH, "fastopt")}
    everyone[COMPILED] = Contender(compiled_on_the_host, FASTOPT_TORCH)
    bench = Bench(device, everyone, FASTOPT_TORCH, notes.append)
    found = parts.steps(bench, Workload("tensor_64k", "one tensor", shapes), rule, lambda: Pace(0, 2, 2))
    return found, notes


@pytest.fixture
def compiling_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # of which torch's compiler would make use
    return device


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule == "adam" else pytest.mark.exhaustive) for rule in RULES]
)
def test_a_compiled_step_is_measured_beside_the_others(compiling_device: Device, rule: str) -> None:
    """Over one tensor; what it took to compile is no part of its times."""
    found, notes = measured_with_compiled(compiling_device, rule, (300,))
    assert notes == []
    assert [row["implementation"] for row in found.rows] == [FASTOPT_TORCH, "fastopt", COMPILED]
    assert [(entry["workload"], entry["rule"]) for entry in found.compiled] == [("tensor_64k", rule)]
    found, notes = measured_with_compiled(compiling_device, rule, (300,), (7, 5))
    assert notes == ["torch-compiled is left out of workloads of many tensors: it takes half a minute to compile there"]
    assert COMPILED not in {row["implementation"] for row in found.rows}
    assert found.compiled == []


def test_a_compiled_step_that_is_compiled_anew_has_no_times(
    compiling_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(range(100))
    monkeypatch.setattr(compiled, "compilations", lambda: next(counts))
    found, notes = measured_with_compiled(compiling_device, "adam", (300,))
    assert [row["implementation"] for row in found.rows] == [FASTOPT_TORCH, "fastopt"]
    assert found.compiled == []
    assert notes == [
        "torch-compiled is left out of adam on tensor_64k: torch compiled it anew between the rounds",
    ]


def shape_of(found: Any) -> Any:
    """Return what a report is but for its numbers."""
    if isinstance(found, dict):
        return {key: shape_of(value) for key, value in found.items()}
    if isinstance(found, list):
        return [shape_of(value) for value in found]
    return type(found) if isinstance(found, float) else found


@pytest.mark.exhaustive  # processes that start anew
@pytest.mark.usefixtures("device", "in_agreement")
def test_a_death_in_the_middle_costs_one_part(
    monkeypatch: pytest.MonkeyPatch, small_models: Any, tmp_path: Path
) -> None:
    """The file of a run that dies at its third graph, and is resumed, is that of one that did not, but for numbers."""
    small = {name: Workload(name, name, ((64,), (5, 3))) for name in parts.GRAPH_WORKLOADS}
    for module in (parts, figures, plot, report):
        monkeypatch.setattr(module, "WORKLOADS", small)
    some = (FASTOPT_TORCH, "torch-fused", "fastopt", "cupy-kernel")
    monkeypatch.setattr(command, "contenders", lambda device: {name: contenders(device)[name] for name in some})
    monkeypatch.setattr(parts, "RULES", ("momentum", "adam"))
    monkeypatch.setattr(parts, "STAGE_WORKLOADS", {"gpt2": small["gpt2"]})
    monkeypatch.setattr(parts, "STAGE_RULES", ("momentum",))
    for module in (contenders_of_gpu, parts):
        monkeypatch.setattr(module, "MOST_STEPS", 3)
    monkeypatch.setattr(command, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(command, "QUICK_ROUNDS", (2, 2))
    monkeypatch.setattr(command, "checks", check_contenders)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # which would take half of this test's time
    graphs = parts.graphs

    def dying(bench: Bench, workload: Workload, begin: Callable[[], Pace]) -> Figures:
        if workload.name == "gpt2":
            raise RuntimeError("cudaErrorIllegalAddress")
        return graphs(bench, workload, begin)

    whole, parted = tmp_path / "whole.json", tmp_path / "parted.json"
    assert cli.main(["bench", "--gpu", "--quick", "--json", str(whole)]) == 0
    monkeypatch.setattr(parts, "graphs", dying)
    with pytest.raises(RuntimeError, match="IllegalAddress"):
        cli.main(["bench", "--gpu", "--quick", "--json", str(parted)])
    dead = saved.read(parted)
    launching = "launches by the size of an argument"
    staged = "clipping and averaging by momentum on gpt2"
    assert dead["missing"] == ["graphs of gpt2", staged, launching, "an iteration of mlp", "an iteration of gpt"]
    assert [entry["workload"] for entry in dead["graphs"]] == ["tensor_64k"] * 2 + ["resnet50"] * 2
    monkeypatch.setattr(parts, "graphs", graphs)
    assert cli.main(["bench", "--gpu", "--resume", str(parted)]) == 0
    found = json.loads(parted.read_text(encoding="utf-8"))
    assert shape_of(found) == shape_of(json.loads(whole.read_text(encoding="utf-8")))
    assert found["missing"] == []
    assert found["rows"] == dead["rows"]  # measured once


needs_extension = pytest.mark.skipif(not pool.available, reason="the extension is not built")


@needs_extension
@pytest.mark.parametrize(
    ("nvrtc", "driver_version", "sizes"),
    [((12, 1), 12010, [512, 4096, 32760]), ((12, 0), 13000, [512, 4096]), ((13, 0), 12000, [512, 4096])],
)
def test_launches_are_measured_by_the_size_of_their_argument(
    device: Device, monkeypatch: pytest.MonkeyPatch, nvrtc: tuple[int, int], driver_version: int, sizes: list[int]
) -> None:
    """By CuPy and by the extension, and no larger ones than can be launched; for a short time."""
    monkeypatch.setattr(cuda.WORLD, "nvrtc", nvrtc)
    monkeypatch.setattr(cuda.WORLD, "driver", driver_version)
    kernels.largest_argument.cache_clear()
    paces: list[Pace] = []

    def measured(contestants: Any, mode: Any, pace: Pace) -> Any:
        paces.append(pace)
        return measure(contestants, mode, Pace(0, 2, 2))

    monkeypatch.setattr(launches, "measure", measured)
    bench = Bench(device, {}, "cupy", pytest.fail)
    (part,) = (part for part in parts.parts(bench) if part.name.startswith("launches"))
    found = part.measure(lambda: Pace(60.0, 7, 200)).launches
    kernels.largest_argument.cache_clear()
    assert paces == [Pace(parts.LAUNCHING_SECONDS, 7, 200)]
    assert [(one["bytes"], one["implementation"]) for one in found] == [
        (size, through) for size in sizes for through in ("cupy", "extension")
    ]
    seconds = [(one["gpu_seconds"], one["host_seconds"]) for one in found]
    assert all(gpu is None or gpu > 0 for gpu, _ in seconds)
    assert all(host is None or host > 0 for _, host in seconds)
    assert all([*one["unstable"]] == [name for name, value in one.items() if value is None] for one in found)


@needs_extension
def test_each_launch_puts_the_kernel_on_the_stream_with_its_argument(device: Device) -> None:
    names = []
    for through, size, launch in launches.launchers(device, pytest.fail):
        cuda.WORLD.log.clear()
        launch()
        names.append((through, size, *cuda.WORLD.log))
    launched = "nothing", 0
    assert names == [(through, size, launched) for size in kernels.SIZES for through in ("cupy", "extension")]


def test_without_the_drivers_functions_cupy_launches_alone(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(driver, "functions", lambda: driver.NONE)
    found = list(launches.launchers(device, notes.append))
    assert [(through, size) for through, size, _ in found] == [("cupy", size) for size in kernels.SIZES]
    (note,) = notes
    assert note == launches.LEFT_OUT


@needs_extension
def test_a_launch_that_the_driver_refuses_is_an_error(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (through, _, launch), *_ = launches.launchers(device, pytest.fail)
    assert through == "extension"
    with monkeypatch.context() as patched:
        patched.setattr(cuda.WORLD, "fault", cuda.CUDARuntimeError("an illegal address"))
        with pytest.raises(RuntimeError, match="the driver has refused a launch"):
            launch()


# Tables


def without_news() -> figures.Report:
    """The committed run, without what the first runs did not have."""
    found = saved.read(COMMITTED)
    for key in NEWS:
        found[key] = []  # type: ignore[literal-required]
    found["notes"] = [note for note in found["notes"] if "torch-compiled" not in note]
    return found


def with_news() -> figures.Report:
    """The same with these numbers replaced."""
    found = without_news()
    for at, implementation in enumerate((FASTOPT_TORCH, "torch-fused")):
        found["iterations"].append(
            {
                "workload": "gpt",
                "implementation": implementation,
                "parameters": 2_500_000,
                "tensors": 148,
                "seconds": 0.012 + 0.003 * at,
                "host_seconds": 0.011 + 0.003 * at,
                "ratio": 1 + 0.25 * at,
                "rounds": 7,
                "unstable": {},
            }
        )
    for through, host in (("cupy", 7e-6), ("extension", 4.5e-6)):
        found["launches"].append(
            {
                "implementation": through,
                "bytes": 4096,
                "gpu_seconds": 1.5e-6,
                "host_seconds": host,
                "unstable": {},
            }
        )
    for seconds, workload in ((2.5, "tensor_1m"), (16.0, "tensor_64k"), (1.5, "tensor_16m")):
        found["compiled"].append({"workload": workload, "rule": "adam", "seconds": seconds})
    return found


def test_tables_have_what_was_measured_and_name_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    found = with_news()
    found["missing"] = ["graphs of gpt2", "an iteration of mlp"]
    report.show(found, tables=True)
    for text in (report.markdown(found), capsys.readouterr().out):
        said = " ".join(text.split())
        assert "torch-compiled took 1.50 s (adam on one tensor of 2^24) to 16.0 s (adam on" in said
        assert "one tensor of 65,536) to compile" in said
        assert "Still to be measured: graphs of gpt2, an iteration of mlp." in said
        assert "On CUDA torch has no fused AdaGrad: its fastest there is another of its modes." in said
        assert "Whole training iterations in torch" in said
    lines = report.markdown(found).splitlines()
    assert "| a small GPT | fastopt.torch | 148 | 2,500,000 | 12.0 ms | 11.0 ms | 1.00x |" in lines
    assert "| 4,096 bytes | CuPy | 1.50 µs | 7.00 µs |" in lines
    assert "| 4,096 bytes | fastopt's extension | 1.50 µs | 4.50 µs |" in lines
    assert "| a small GPT | torch-fused | 148 | 2,500,000 | 15.0 ms | 14.0 ms | 1.25x |" in lines


def test_tables_do_not_have_what_was_not_measured() -> None:
    text = report.markdown(without_news())
    for part in ("Whole training iterations", "an empty kernel", "torch-compiled took", "Still to be measured"):
        assert part not in text


def test_the_readme_names_the_fastest_of_others_on_either_side() -> None:
    """For each workload and rule, and no ratio of the data is below it."""
    found = saved.read(COMMITTED)
    headings, *lines = report.summary(found)
    assert headings[2::3] == [FASTOPT_TORCH, "fastopt"]
    assert headings[4::3] == ["torch's fastest", "CuPy's fastest"]
    assert [(line[0], line[1]) for line in lines] == [(of.title, rule) for of in WORKLOADS.values() for rule in RULES]
    for line in lines:
        for subject, cell in zip((FASTOPT_TORCH, "fastopt"), line[4::3], strict=True):
            others = [
                entry
                for entry in found["ratios"]
                if (WORKLOADS[entry["workload"]].title, entry["rule"], entry["subject"]) == (*line[:2], subject)
                and entry["implementation"] != FRESH  # which is fastopt's own
            ]
            sides = [entry["gpu"] for entry in others], [entry["host"] for entry in others]
            for ratios, text in zip(sides, cell.split(" / "), strict=True):
                known = [ratio for ratio in ratios if ratio is not None]
                if len(known) < len(ratios):
                    assert text == "unstable"
                else:
                    assert float(text.rstrip("x")) == pytest.approx(min(known), rel=0.05)


def test_fused_is_missing_only_where_it_is() -> None:
    found = saved.read(COMMITTED)
    note = found["notes"][0]
    assert note not in report.markdown(found)
    found["rows"].append({**found["rows"][0], "rule": "adagrad", "implementation": "torch-fused"})
    assert report.unfused(found) == []
    assert note[1:] in report.markdown(found)
    found["rows"] = [row for row in found["rows"] if row["implementation"] in ("fastopt", "cupy")]
    assert report.unfused(found) == []


def test_the_chart_has_all_contenders(tmp_path: Path) -> None:
    found = with_news()
    found["ratios"].append({**found["ratios"][0], "implementation": COMPILED})
    assert {entry["implementation"] for entry in found["ratios"]} - {FRESH} == plot.OF_GPU.keys()
    plot.draw(found, str(tmp_path / "gpu.svg"))
    drawn = (tmp_path / "gpu.svg").read_text(encoding="utf-8")
    for name in (*plot.OF_GPU, *plot.BLOCKS.values()):
        assert f"<!-- {name} -->" in drawn


# .ci/gpu

FAKES = {
    "python": 'echo "python $*"; echo "1 failed, 3 passed"; exit 1',
    "compute-sanitizer": 'echo "$* $PYTORCH_NO_CUDA_MEMORY_CACHING"; [ "$2" = memcheck ] && exit 0; sleep 60 & wait',
    "fastopt": 'echo "fastopt $*"; while [ $# -gt 0 ]; do [ "$1" = --json ] && echo "{}" > "$2"; shift; done',
}
HANGS = "trap '' INT TERM; (sleep 60) & sleep 60; sleep 60"
LIMITS = re.compile(r"declare -A (\w+)=\((.*)\)")


def limits(script: str) -> dict[str, dict[str, int]]:
    """Read how long each part may take."""
    return {
        name: {part: int(seconds) for part, seconds in re.findall(r"\[(\w+)\]=(\d+)", parts)}
        for name, parts in LIMITS.findall(script)
    }


def ci_gpu(folder: Path, fakes: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with fakes of all that it starts; those that hang only do so briefly."""
    script = (ROOT / ".ci/gpu").read_text(encoding="utf-8")
    for part in ("racecheck", "bench"):
        script = re.sub(rf"\[{part}\]=\d+", f"[{part}]=2", script)
    (folder / ".ci").mkdir(parents=True, exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bench/results").mkdir(parents=True, exist_ok=True)
    (folder / ".ci/gpu").write_text(script.replace("GRACE=3", "GRACE=1"), encoding="utf-8")
    for name, body in fakes.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return subprocess.run(
        ["bash", str(folder / ".ci/gpu"), *arguments],
        env={**os.environ, "PATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


needs_timeout = pytest.mark.skipif(
    shutil.which("timeout") is None or sys.platform != "linux", reason="GNU's timeout and tail are needed"
)


@needs_timeout
def test_every_part_has_its_say_and_its_time(tmp_path: Path) -> None:
    """One that fails, one that hangs, and one that ignores the interrupt: files that were written stay."""
    ran = ci_gpu(tmp_path, {**FAKES, "fastopt": f"{FAKES['fastopt']}; {HANGS}"}, "--quick", "out")
    assert ran.returncode == 1
    summary = ran.stdout.partition("== summary\n")[2].splitlines()
    assert [line.split("  ")[0] for line in summary[:4]] == ["tests", "memcheck", "racecheck", "bench"]
    assert [line[11:25].strip() for line in summary[:4]] == ["failed", "passed", "over its time", "over its time"]
    json_file = tmp_path / "out/gpu.json"
    assert summary[4].strip() == (
        f"what is missing: fastopt bench --gpu --resume {json_file} --plot {json_file.with_name('bench-gpu.png')}"
    )
    assert json_file.read_text() == "{}\n"
    logs = {name: (tmp_path / f"out/{name}.log").read_text() for name in ("tests", "memcheck", "racecheck", "bench")}
    assert logs["tests"] == "python -P -m pytest -q -m gpu --exhaustive -n 6\n1 failed, 3 passed\n"
    assert logs["memcheck"] == "--tool memcheck --error-exitcode 1 python -P .ci/sanitized.py 1\n"
    assert logs["bench"] == f"fastopt bench --gpu --quick --json {json_file} --plot {tmp_path}/out/bench-gpu.png\n"
    assert all(log.splitlines()[0] in ran.stdout for log in logs.values())


@needs_timeout
def test_without_a_sanitizer_it_is_left_out(tmp_path: Path) -> None:
    """Which is no failure; a full run writes where its numbers are committed, and a quick one nowhere."""
    fakes = {"python": "true", "fastopt": FAKES["fastopt"]}
    for arguments, written in (
        ([], " --json bench/results/gpu.json --plot docs/bench-gpu.png"),
        (["--quick"], " --quick"),
    ):
        ran = ci_gpu(tmp_path, fakes, *arguments)
        assert ran.returncode == 0
        assert ran.stdout.count("left out") == 2
        assert f"fastopt bench --gpu{written}\n" in ran.stdout
        assert "what is missing" not in ran.stdout
    assert ci_gpu(tmp_path, fakes, "--fast").returncode == 2
    assert ci_gpu(tmp_path, fakes, "a", "b").returncode == 2


def test_the_times_of_the_parts_add_up() -> None:
    """To five and a half minutes, or three; the benchmark has what it may take."""
    script = (ROOT / ".ci/gpu").read_text(encoding="utf-8")
    grace = int(re.findall(r"GRACE=(\d+)", script)[0])
    found = limits(script)
    for name, most, bench, seconds in (("full", 330, 200, command.SECONDS), ("short", 180, 60, command.QUICK_SECONDS)):
        assert sum(limit + grace for limit in found[name].values()) <= most
        assert found[name]["bench"] == bench > seconds
