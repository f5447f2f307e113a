"""The workloads and contenders under pytest-benchmark; each contender is checked against NumPy before it is timed.

``pytest bench`` checks; ``pytest bench --benchmark-enable`` times as well, the large workloads too.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fastopt.bench import (
    command,
    contenders,
    embedding,
    gpu_host,
    in_jax,
    installed,
    iteration,
    limit,
    measure,
    oracle,
    quiet,
    report,
    rounds,
    schedules,
    sparse,
    stages,
    storages,
    tensors,
    torch_iteration,
    torch_report,
    torch_stages,
    trainer,
)
from fastopt.bench.contenders import CONTENDERS, OPTIMIZERS, RULES
from fastopt.bench.measure import MODES, Pace
from fastopt.bench.workloads import ITEMSIZE, WORKLOADS, Arrays, Workload
from fastopt.kernels import extension, limits, pool
from fastopt.kernels.tables import SHARED

import fastopt
from fastopt import extras
from fastopt.rules import RULES as REGISTRY
from fastopt.schedules import SCHEDULES

# Of many parallel regions or elements. Beside any other load, torch's fused step of 2,000 tensors waits for its second
# thread 2,000 times, and XLA compiles them for many seconds.
LARGE = ("tensors_2000", "resnet50", "gpt2")
STEPS = 3
TOLERANCE = 1e-6  # a few roundings of numbers around 1; a step moves them by 1e-3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every contender on every workload; the large workloads only if time is measured.

    By default others run one rule.
    """
    if "workload" in metafunc.fixturenames:
        timing = metafunc.config.getoption("benchmark_enable") or not metafunc.config.getoption("benchmark_disable")
        workloads = [name for name in WORKLOADS if timing or name not in LARGE]
        cases = [
            pytest.param(
                *case, marks=[] if case[1] == "adam" or case[2].startswith("fastopt") else pytest.mark.exhaustive
            )
            for case in itertools.product(workloads, RULES, CONTENDERS)
        ]
        metafunc.parametrize(("workload", "rule", "contender"), cases)


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing again, which `test_rounds` tests, and collect no garbage, which takes half of the time."""
    monkeypatch.setattr(measure, "AGAIN", 0)
    monkeypatch.setattr(gc, "collect", lambda: 0)


def trained(contender: str, rule: str, arrays: Arrays) -> Arrays:
    """Take some steps, with gradients written anew for each as in training, since torch may overwrite them."""
    copy = arrays.copy()
    step = CONTENDERS[contender](copy, rule)
    for _ in range(STEPS):
        for grad, source in zip(copy.grads, arrays.grads, strict=True):
            grad[...] = source
        step()
    if isinstance(step, in_jax.OptaxStep):
        step.read(copy)  # gradients, which jax has copied, are the same at each step
    return copy


@pytest.mark.benchmark(min_time=measure.RUN_SECONDS, disable_gc=True)  # several short steps are one round
def test_step(benchmark: Any, workload: str, rule: str, contender: str) -> None:
    arrays = Arrays.draw(WORKLOADS[workload])
    expected = trained("numpy", rule, arrays)
    found = trained(contender, rule, arrays)
    for got, wanted, start in zip(found.params, expected.params, arrays.params, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        assert not np.array_equal(got, start)
    del expected, found

    benchmark.extra_info["bytes"] = REGISTRY[rule].bytes_moved(4) * WORKLOADS[workload].elements
    benchmark.extra_info["threads"] = fastopt.get_num_threads()
    benchmark.group = f"{workload}, {rule}"
    step = contenders.make(contender, rule, arrays)
    step()  # allocates states, which would count as the time of a step
    benchmark(step)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["mlp", "tensor_300k"])
def test_contenders_in_torch_train_as_numpy_does(name: str, rule: str) -> None:
    arrays = Arrays.draw(WORKLOADS[name])
    expected = np.concatenate([param.ravel() for param in trained("numpy", rule, arrays).params])
    for contender in tensors.CONTENDERS:
        own = tensors.Tensors.of(arrays)
        step = tensors.make(contender, rule, own.params)
        for _ in range(STEPS):
            own.backward()
            step()
        found = np.concatenate([param.detach().numpy().ravel() for param in own.params])
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.benchmark(disable_gc=True)
@pytest.mark.parametrize("name", schedules.EXAMPLES)
def test_schedule(benchmark: Any, name: str) -> None:
    schedule, steps = schedules.EXAMPLES[name], np.arange(schedules.STEPS)
    values = schedule(steps)
    for t in (0, 1, schedules.ONE, schedules.STEPS // 2, schedules.STEPS - 1):
        assert values[t] == schedule(t)
    assert np.isfinite(values).all()
    assert (len(np.unique(values)) > 1) == (name != "Constant")
    del values

    benchmark.group = f"{schedules.STEPS:,} steps of a schedule"
    benchmark(schedule, steps)


@pytest.fixture(scope="module")
def compiled_loops() -> Any:
    """The loops in C++ and C."""
    return embedding.compiled_loops()


@pytest.mark.benchmark(disable_gc=True)
@pytest.mark.parametrize("loop", [embedding.NUMBA, embedding.HEADER, embedding.POINTER])
@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule == "adagrad" else pytest.mark.exhaustive) for rule in RULES]
)
def test_loop(benchmark: Any, rule: str, loop: str, compiled_loops: Any) -> None:
    arrays = Arrays.draw(embedding.WORKLOAD)
    expected = trained("numpy", rule, arrays)
    found = arrays.copy()
    embedding.loops(compiled_loops, found, rule, STEPS)[loop]()
    for got, wanted, start in zip(found.params, expected.params, arrays.params, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        assert not np.array_equal(got, start)

    benchmark.extra_info["steps"] = embedding.STEPS
    benchmark.group = f"{embedding.STEPS} steps of {embedding.WORKLOAD.name}, {rule}, in one loop"
    step = embedding.loops(compiled_loops, arrays, rule)[loop]
    step()
    benchmark(step)


@pytest.mark.exhaustive  # compiles loops of Numba and of C++
def test_loops_are_measured_beside_an_optimizer_and_numpy(compiled_loops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = ("momentum", "adam")
    monkeypatch.setattr(embedding, "RULES", rules)
    found = embedding.embedded(compiled_loops, Pace(seconds=0, fewest=2, most=2))
    names = [embedding.NUMBA, embedding.HEADER, embedding.POINTER]
    assert [(row["rule"], row["loop"]) for row in found["rows"]] == list(itertools.product(rules, names))
    for row in found["rows"]:
        assert measured(row, "seconds", "of_step", "of_numpy")
    assert found["parameters"] == 4801
    assert measured(found, "call_seconds")


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-compiler", "there is no no-such-compiler"), ("false", "does not compile")]
)
def test_without_a_compiler_numbas_loops_are_measured(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(embedding, "RULES", ("momentum",))
    found = command.in_loops(Pace(seconds=0, fewest=2, most=2))
    assert re.search(rf"loops in C\+\+ and C are left out: .*{message}", capsys.readouterr().err)
    assert [row["loop"] for row in found["rows"]] == [embedding.NUMBA]
    assert (found["call_seconds"], found["unstable"]) == (None, {})
    assert report.single_call(found) == ""


needs_extension = pytest.mark.skipif(not pool.available, reason="the extension is not built")


@needs_extension
@pytest.mark.parametrize("tensors", gpu_host.TENSORS)
@pytest.mark.parametrize("rule", gpu_host.RULES)
def test_the_host_of_a_gpu_step_does_all_of_its_work(rule: str, tensors: int) -> None:
    """With a driver that does nothing: the row of the step, and the gradients' addresses, are in the argument."""
    step = gpu_host.Repeated(rule, tensors, gpu_host.Gpu())
    new, staying = step.new(), step.staying()
    places, rows = [], []
    for take in (new, staying, new, staying):
        assert take() is True
        places.append(step.gradients.copy())
        rows.append(step.rows.copy())
    assert step.repetition.taken == 4
    assert [np.array_equal(places[0], found) for found in places] == [True, True, False, False]
    assert np.array_equal(places[2], places[3])
    numbers = embedding.hypers(rule, 5)[1:]  # the first step is the one that is repeated
    np.testing.assert_allclose(np.array(rows)[:, SHARED : SHARED + numbers.shape[1]], numbers, rtol=TOLERANCE)
    assert all(row[:SHARED].tolist() == [1, 0] for row in rows)


@needs_extension
def test_hosts_of_gpu_steps_are_measured_for_rows_that_stay_and_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_host, "TENSORS", (1, 3))
    found = gpu_host.hosts(Pace(seconds=0, fewest=2, most=2))
    assert [(row["rule"], row["tensors"]) for row in found] == [*itertools.product(gpu_host.RULES, (1, 3))]
    assert all(measured(row, "staying_gradients", "new_gradients") for row in found)
    assert [REGISTRY[rule].moves(gpu_host.options_of(rule)) for rule in gpu_host.RULES] == [False, True]


def test_without_the_extension_the_host_of_a_gpu_step_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extension, "lib", None)
    monkeypatch.setattr(extension, "error", "No module named 'fastopt.kernels._pool'")
    assert command.hosts_of_gpus(Pace(seconds=0, fewest=2, most=2)) is None
    said = capsys.readouterr().err
    assert "the host of a GPU step is not measured: fastopt's extension is not there (No module named" in said


def test_there_is_an_example_of_every_schedule() -> None:
    assert {name: type(schedule) for name, schedule in schedules.EXAMPLES.items()} == SCHEDULES


@pytest.mark.parametrize("rule", RULES)
def test_numpy_follows_the_rule(rule: str) -> None:
    """The reference of the others, once more in float64 by the oracle's formula."""
    arrays = Arrays.draw(Workload("small", "small", ((5, 3), (7,))))
    trainer = oracle.Trainer(arrays.params)
    for _ in range(STEPS):
        trainer.step(rule, arrays.grads, OPTIMIZERS[rule][1])
    for got, expected in zip(trained("numpy", rule, arrays).params, trainer.params, strict=True):
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("mlp", 6, 4_801),
        ("tensors_2000", 2_000, 128_000),
        ("tensor_300k", 1, 300_000),
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
    ],
)
def test_shapes_are_those_of_the_models(name: str, tensors: int, elements: int) -> None:
    assert len(WORKLOADS[name].shapes) == tensors
    assert WORKLOADS[name].elements == elements


def test_arrays_are_aligned_and_do_not_overlap() -> None:
    arrays = Arrays.draw(WORKLOADS["mlp"])
    every = arrays.params + arrays.grads
    assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in every)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(every, 2))


def test_fresh_gradients_have_other_addresses_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[Any]] = []
    monkeypatch.setattr(fastopt.SGD, "step", lambda self, grads: given.append(grads))
    step = contenders.make("fastopt-fresh", "momentum", Arrays.draw(WORKLOADS["mlp"]))
    step()
    step()
    assert all(not np.shares_memory(a, b) and np.array_equal(a, b) for a, b in zip(*given, strict=True))


def test_gradients_in_torch_are_new_tensors_with_the_same_numbers() -> None:
    own = tensors.Tensors.of(Arrays.draw(WORKLOADS["mlp"]))
    own.backward()
    first = [param.grad for param in own.params]
    own.backward()
    for param, before, source in zip(own.params, first, own.sources, strict=True):
        assert before is not None
        assert param.grad is not None
        assert len({tensor.data_ptr() for tensor in (param.grad, before, source)}) == 3
        assert torch.equal(param.grad, source)


def test_contenders_in_torch_share_parameters_and_leave_the_gradients_numbers_alone() -> None:
    """So that any number of steps finds the same; foreach's Nesterov writes into gradients, but not into these."""
    own = tensors.Tensors.of(Arrays.draw(WORKLOADS["mlp"]))
    sources = [source.clone() for source in own.sources]
    pace = Pace(seconds=0, fewest=2, most=2)
    found = list(tensors.compared(own, "nesterov", pace))
    assert [one["implementation"] for one in found] == list(tensors.CONTENDERS)
    assert all(one["rounds"] == 2 for one in found)
    assert found[0]["ratio"] == 1
    assert all(map(torch.equal, own.sources, sources))
    assert all(torch.isfinite(param).all() for param in own.params)


def test_deepspeed_is_measured_for_adam_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the rounds of the others, and in a column of its own, which other rules leave empty."""
    made: list[dict[str, Any]] = []

    def stand_in(params: Any, adamw_mode: bool, **options: Any) -> torch.optim.Optimizer:
        made.append({"adamw_mode": adamw_mode, **options})
        return torch.optim.Adam(params, **options)

    small, pace = Workload("small", "small", ((5,),)), Pace(seconds=0, fewest=2, most=2)
    monkeypatch.setattr(tensors, "RULES", ("momentum", "adam"))
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")  # however busy this machine is
    found = {}
    for there in (False, True):
        monkeypatch.setattr(installed, "deepspeed_adam", lambda there=there: stand_in if there else None)
        found[there] = list(itertools.chain.from_iterable(tensors.rows([small], pace)))
    everyone = [(rule, name) for rule in ("momentum", "adam") for name in tensors.CONTENDERS]
    assert [(row["rule"], row["implementation"]) for row in found[False]] == everyone
    assert [(row["rule"], row["implementation"]) for row in found[True]] == [*everyone, ("adam", "deepspeed")]
    assert made == [{"adamw_mode": False, **contenders.OPTIMIZERS["adam"][1]}]
    headings, momentum, adam = torch_report.comparison(found[True])
    assert headings[-2:] == ["against the fastest", "deepspeed"]
    assert momentum[-1] == ""
    assert adam[-1].endswith("x")
    assert torch_report.comparison(found[False])[0] == headings[:-1]


@pytest.mark.parametrize(
    ("peer", "module", "broken"),
    [
        (installed.deepspeed_adam, "deepspeed.ops.adam", SimpleNamespace(DeepSpeedCPUAdam=lambda params: 1 / 0)),
        (installed.bitsandbytes, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace())),
    ],
)
def test_what_cannot_be_had_of_a_peer_is_no_error(
    peer: Any, module: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not installed, or its operation does not compile or needs a GPU."""
    for found in (None, broken):
        peer.cache_clear()
        monkeypatch.setitem(sys.modules, module, found)
        assert peer() is None
    peer.cache_clear()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_numbers_stay_finite_however_long_it_takes(contender: str, rule: str) -> None:
    arrays = Arrays.draw(Workload("small", "small", ((64,),)))
    step = contenders.make(contender, rule, arrays)
    for _ in range(300):
        step()
    assert all(np.isfinite(array).all() for array in arrays.params + arrays.grads)


@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize("available", sorted({False, pool.available}))
def test_the_limit_reads_and_writes_every_element_with_the_pool_and_without(
    monkeypatch: pytest.MonkeyPatch, available: bool, states: int
) -> None:
    monkeypatch.setattr(pool, "available", available)
    streams: list[Any] = []

    def allocated(shape: tuple[int, ...]) -> Any:
        streams.append(np.empty(shape, np.float32))
        return streams[-1]

    monkeypatch.setattr(limit, "aligned", allocated)
    steps = limit.limits(3 * limit.BLOCK + 5, states)
    p, g, s = streams
    assert len(s) == states
    for count, step in enumerate(steps.values(), start=1):
        step()
        assert (p == 1 - count % 2).all()
        assert (s == 1 - count % 2).all()
    assert (g == 1).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_limit_has_the_traffic_of_the_rule(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """It allocates what the rule reads: parameters, gradients and states."""
    arrays = Arrays.draw(small := Workload("small", "small", ((64,),)))
    shapes: list[tuple[int, ...]] = []

    def allocated(shape: tuple[int, ...]) -> Any:
        shapes.append(shape)
        return np.empty(shape, np.float32)

    monkeypatch.setattr(limit, "aligned", allocated)
    timing = next(command.steps_of(small, rule, arrays, Pace(seconds=0, fewest=2, most=2), "numpy"))
    written = sum(math.prod(shape) for shape in (shapes[0], shapes[2]))
    read = sum(math.prod(shape) for shape in shapes)
    assert timing.bytes_moved == ITEMSIZE * (read + written)


def test_every_contestant_runs_once_per_round_in_changing_order() -> None:
    calls: list[str] = []
    contestants = {name: lambda name=name: calls.append(name) for name in "abc"}
    before = random.getstate()
    found = measure.measure(contestants, measure.one_by_one, Pace(seconds=0, fewest=8, most=20))
    assert random.getstate() == before
    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1
    assert [[*round_] for round_ in found] == 8 * [["a", "b", "c"]]


def test_rounds_end_with_the_budget_or_at_most_at_a_number() -> None:
    found = measure.measure({"a": lambda: None}, measure.one_by_one, Pace(seconds=60, fewest=1, most=5))
    assert len(found) == 5


@pytest.mark.parametrize("mode", MODES.values())
def test_modes_give_seconds_per_step(mode: Any) -> None:
    found = measure.measure({"a": lambda: None}, mode, Pace(seconds=0, fewest=2, most=2))
    assert all(0 < round_["a"] < 1 for round_ in found)


def test_what_comes_before_a_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measure, "timed", lambda step: step() or 1e-4)
    monkeypatch.setattr(measure, "RUN_SECONDS", 2e-4)
    step: Any = lambda: calls.append("step")  # noqa: E731
    clocks = measure.each_after(lambda: calls.append("before"))({"a": step})
    calls.clear()
    assert clocks["a"](step) == 1e-4
    assert calls == ["before", "step"] * 3  # the first is not counted

    monkeypatch.setattr(measure, "timed", lambda step: step() or 1.0)
    calls.clear()
    assert clocks["a"](step) == 1.0
    assert calls == ["before", "step"]


def test_short_steps_are_timed_by_the_run_and_long_ones_alone() -> None:
    assert measure.steps_per_run(lambda: None, lambda step, count: 1e-6) == 200
    assert measure.steps_per_run(lambda: None, lambda step, count: 1.0) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    seen = []
    try:
        measure.measure({"a": lambda: seen.append(gc.isenabled())}, measure.one_by_one, Pace(0, 1, 1))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert seen == [False]


def measured(entry: Any, *names: str) -> bool:
    """Say whether each figure is a number above 0, or unstable for a reason."""
    return all(name in entry["unstable"] if entry[name] is None else entry[name] > 0 for name in names)


def test_an_iteration_is_measured_with_either_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration, "RULES", ("momentum",))
    found = iteration.iterations(Pace(seconds=0, fewest=2, most=2))
    assert found["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    (gain,) = found["rules"]
    assert measured(gain, "gain", "seconds_before", "seconds_after", "share_before", "share_after")
    shares = gain["share_before"], gain["share_after"]
    assert all(share is None or share < 1 for share in shares)


def test_an_iteration_in_torch_is_measured_with_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_iteration, "RULES", ("momentum",))
    found = torch_iteration.iterations(Pace(seconds=0, fewest=2, most=2))
    assert found["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    rows = {row["implementation"]: row for row in found["rows"]}
    assert tuple(rows) == torch_iteration.IMPLEMENTATIONS
    assert all(measured(row, "gain", "seconds") for row in rows.values())
    assert rows["step_in_backward"]["share"] is None
    assert all((row["share"] or 0) < 1 and measured(row, "share") for row in list(rows.values())[:3])
    assert 1 in (rows["torch-default"]["gain"], rows["torch-fused"]["gain"])


@pytest.mark.parametrize("rule", RULES)
def test_iterations_in_torch_train_to_the_same_parameters(rule: str) -> None:
    batches = iteration.digits()
    models = {}
    for name in torch_iteration.IMPLEMENTATIONS:
        models[name] = torch_iteration.new_network()
        training = torch_iteration.training(batches, name, rule, models[name])
        for _ in range(STEPS):
            training()
    expected = [*models["torch-default"].parameters()]
    assert not torch.equal(expected[0], next(torch_iteration.new_network().parameters()))
    for model in models.values():
        for got, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_new_networks_leave_torchs_random_state_alone() -> None:
    before = torch.get_rng_state()
    torch_iteration.new_network()
    assert torch.equal(torch.get_rng_state(), before)


def test_schedules_are_measured_as_a_vector_by_the_call_and_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "EXAMPLES", {"Linear": schedules.EXAMPLES["Linear"]})
    found = schedules.evaluations(Pace(seconds=0, fewest=2, most=2))
    (row,) = found["rows"]
    assert row["schedule"] == "Linear"
    assert measured(row, "seconds", "ratio", "call_seconds")
    added = found["added_seconds"]
    assert "added_seconds" in found["unstable"] if added is None else np.isfinite(added)
    assert measured(found, "torch_seconds")


@pytest.fixture
def one_small_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure one of each kind that the command measures itself; the rest, which has its own tests, is replaced."""
    monkeypatch.setattr(command, "WORKLOADS", {"mlp": WORKLOADS["mlp"]})
    monkeypatch.setattr(command, "RULES", ("adagrad",))
    monkeypatch.setattr(command, "QUICK", Pace(seconds=0, fewest=2, most=2))
    monkeypatch.setattr(command, "FULL", command.QUICK)
    monkeypatch.setattr(command, "iterations", lambda pace: {"parameters": 2410, "batch": 64, "rules": []})
    monkeypatch.setattr(embedding, "RULES", ())
    monkeypatch.setattr(embedding, "compiled_loops", lambda: None)
    monkeypatch.setattr(gpu_host, "TENSORS", (1,))
    monkeypatch.setattr(tensors, "RULES", ("adagrad",))
    monkeypatch.setattr(tensors, "COUNTS", (1, 10))
    monkeypatch.setattr(command, "DISTRIBUTED", Workload("dtensors_500", "a few", ((2, 2),) * 3))
    monkeypatch.setattr(torch_iteration, "RULES", ())
    monkeypatch.setattr(stages, "NUMPY_RULES", ("momentum",))
    monkeypatch.setattr(torch_stages, "in_torch", lambda workloads, pace: [])
    monkeypatch.setattr(storages, "in_torch", lambda workloads, rules, pace: [])
    monkeypatch.setattr(trainer, "iterations", lambda pace: [])
    monkeypatch.setattr(schedules, "EXAMPLES", {"Linear": schedules.EXAMPLES["Linear"]})
    monkeypatch.setattr(sparse, "TABLES", ((50, 2),))
    monkeypatch.setattr(sparse, "RULES", {"adagrad": sparse.RULES["adagrad"]})
    monkeypatch.setattr(sparse, "CURVE_TABLES", ((50, 2), (60, 2), (70, 2)))
    monkeypatch.setattr(sparse, "TOUCHES", (4, 8))
    monkeypatch.setattr(quiet, "wait", lambda say: say("quiet"))


@pytest.mark.usefixtures("one_small_workload")
def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    command.run(False, str(data), str(chart), baseline="fastopt", tables=True)
    assert "against fastopt" in capsys.readouterr().out
    found = json.loads(data.read_text(encoding="utf-8"))
    parts = ["iteration", "schedules", "embedded", "gpu_host", "torch", "stages", "storages", "masters", "sparse"]
    assert list(found) == ["machine", "rows", "ratios", *parts, "touched"]
    assert [row["implementation"] for row in found["stages"]] == ["fastopt", "numpy-in-place", "numpy-copied"]
    assert list(found["embedded"]) == ["parameters", "rows", "elements", "call_seconds", "unstable"]
    assert list(found["torch"]) == ["threads", "rows", "curve", "iteration"]
    rows = [(row["workload"], row["implementation"]) for row in found["torch"]["rows"]]
    assert rows == list(itertools.product(["mlp", "dtensors_500"], tensors.CONTENDERS))
    assert [point["tensors"] for point in found["torch"]["curve"]] == [1] * 4 + [10] * 4
    assert [row["schedule"] for row in found["schedules"]["rows"]] == ["Linear"]
    assert {row["workload"] for row in found["rows"]} == {"mlp", "mlp, after other work"}
    assert [row["implementation"] for row in found["rows"]] == [*CONTENDERS, *CONTENDERS]
    assert all(row["speedup"] == 1 for row in found["rows"] if row["implementation"] == "fastopt")
    assert all(measured(row, "seconds", "speedup", "gbps", "of_limit") for row in found["rows"])
    assert chart.stat().st_size > 0
    assert (tmp_path / "bench-torch.png").stat().st_size > 0
    assert (tmp_path / "bench-sparse.png").stat().st_size > 0


@pytest.mark.usefixtures("one_small_workload")
def test_a_quick_run_measures_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rule of large models, in one mode; and a message names missing contenders."""
    monkeypatch.setattr(command, "HAS_TORCH", False)
    monkeypatch.setattr(command, "HAS_OPTAX", False)
    monkeypatch.setattr(command, "RULES", ("momentum", "adam"))
    monkeypatch.setattr(command, "LARGE", 100)
    stand_in = Workload("gpt2", "GPT-2 124M", ((64, 2),))
    monkeypatch.setattr(command, "WORKLOADS", {"mlp": Workload("mlp", "an MLP", ((8,),)), "gpt2": stand_in})
    data, chart = tmp_path / "bench.json", tmp_path / "bench.svg"
    command.run(True, str(data), str(chart))
    found = json.loads(data.read_text(encoding="utf-8"))
    rest = ["iteration", "schedules", "embedded", "gpu_host", "torch", "stages", "storages", "masters"]
    rest += ["sparse", "touched"]
    assert [found[name] for name in rest] == [None] * len(rest)
    assert list(report.compared(found)) == [
        ("mlp", "momentum"),
        ("mlp, after other work", "momentum"),
        ("mlp", "adam"),
        ("mlp, after other work", "adam"),
        ("gpt2", "adam"),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.svg"}
    assert "GPT-2 124M" in capsys.readouterr().out.rstrip().splitlines()[-2]


@pytest.mark.usefixtures("one_small_workload")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "HAS_TORCH", False)
    monkeypatch.setattr(command, "HAS_OPTAX", False)
    command.name_missing()
    said = capsys.readouterr().err
    assert "fastopt[bench]" in said
    assert "fastopt[optax]" in said
    monkeypatch.setitem(sys.modules, "optax", None)
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(extras.MissingExtraError, match=r"'fastopt\[optax\]'"):
        contenders.optax_step(Arrays.draw(Workload("small", "small", ((8,),))), "adam")


def test_torch_has_no_more_threads_than_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(limits, "processors", lambda: before - 1 or 1)
    with command.threads_of_torch():
        assert torch.get_num_threads() == max(1, before - 1)
    assert torch.get_num_threads() == before
    assert ("torch is limited" in capsys.readouterr().err) == (before > 1)


@pytest.mark.usefixtures("one_small_workload")
def test_what_cannot_work_is_said_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="baseline 'nobody' is not among numpy, fastopt"):
        command.run(True, None, None, baseline="nobody")
    with pytest.raises(ValueError, match=r"x.docx is no picture"):
        command.run(True, None, str(tmp_path / "x.docx"))
    with pytest.raises(OSError, match="nowhere"):
        command.run(True, str(tmp_path / "nowhere" / "bench.json"), None)


def test_a_workload_too_large_for_the_memory_is_left_out_visibly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "HAS_OPTAX", False)
    monkeypatch.setattr(command, "CONTENDERS", dict.fromkeys(range(7)))
    monkeypatch.setattr(limits, "memory", lambda: 4 * 10**9)
    assert command.fits(WORKLOADS["resnet50"])
    assert not command.fits(WORKLOADS["gpt2"])
    said = capsys.readouterr().err
    assert "GPT-2 124M is left out: it needs 12.4 GB of memory" in said
    assert "the 4.0 GB that this process may use" in said
    monkeypatch.setattr(limits, "memory", lambda: None)
    assert command.fits(WORKLOADS["gpt2"])
