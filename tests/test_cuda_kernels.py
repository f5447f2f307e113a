"""The CUDA kernels, compiled for the host, against the oracle: what a GPU computes, and where it writes."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import host_cuda
import numpy as np
import pytest
from cuda_cases import (
    MORE,
    THREE_GROUPS,
    Guards,
    assert_same,
    assert_updated,
    before,
    meant,
    model,
    normal,
    options_of,
    row_of,
    stored,
)
from cuda_jobs import APART, Clock, Job, Tensor, computed, send
from fastopt.bench import oracle
from fastopt.kernels import cuda
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.tables import CHUNK, MESSAGE, TENSOR, WORDS
from gradient_layouts import STRIDED
from halves import (
    DIGITS,
    INFINITY,
    LEAST,
    assert_converts,
    rounded,
    values,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import pairs, swept
from processes import run_script
from rule_cases import BY_STATES, OPTIONS
from schedule_cases import CASES
from tolerances import TRAJECTORY, assert_close, assert_rounded

from fastopt.checks import LARGEST
from fastopt.rules import RULES
from fastopt.schedules import Cosine, Linear, Warmup
from fastopt.step.gpu_launch import BLOCKS, TILE_THREADS

SIZES = [0, *range(1, 36), 63, 64, 65, 127, 128, 129]
SIZES += [n * TILE_THREADS + d for n in (2, 4, 8, 16) for d in (-1, 0, 1)]  # chunks of all dtypes

names = pytest.mark.parametrize("name", RULES)
by_states = pytest.mark.parametrize("name", BY_STATES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
halves = pytest.mark.parametrize("dtype", DIGITS)


# Updates


@swept(together=1, name=RULES, dtype=DTYPES, options=[OPTIONS, MORE])
def test_sizes(name, dtype, options):
    """Three steps at every size, each from what the last one left, and not an element further."""
    rng = np.random.default_rng(1)
    options = options_of(name, options)
    for size in SIZES:
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, size, dtype), normal(rng, size, dtype))
        for count in (1, 2, 3):
            tensor.grad[...] = normal(rng, size, dtype)
            was = before(tensor, dtype)
            guards.launch(Job(name, dtype, [tensor], [row_of(name, options, count)]))
            assert_updated(name, dtype, tensor, was, options, count)


@dtypes
@by_states
def test_every_alignment(name, dtype):
    """Of parameter, gradient and states, alone and together; 16 bytes at once where all allow it, and only there."""
    rng = np.random.default_rng(2)
    size = 1000
    p, g = normal(rng, size, dtype), normal(rng, size, dtype)
    moved = moves(name, dtype, size)
    options = options_of(name, MORE)
    for offsets in {offsets for k in range(8) for offsets in ((k, 0, 0), (0, k, 0), (0, 0, k), (k, k, k))}:
        guards = Guards()
        tensor = guards.tensor(name, p, g, offsets, state=0.5)
        arrays = (tensor.param, tensor.grad, *tensor.states)
        aligned = all(array.ctypes.data % 16 == 0 for array in arrays)
        was = before(tensor, dtype)
        assert guards.launch(Job(name, dtype, [tensor], [row_of(name, options, 2)])) == (moved if aligned else 0)
        assert_updated(name, dtype, tensor, was, options, 2)


@pytest.mark.parametrize("threads", sorted(threads for _, threads in BLOCKS))
@dtypes
@by_states
def test_every_size_of_a_block(name, dtype, threads):
    """A pack for each thread: sizes around one chunk and two, of which every pack is moved at once."""
    rng = np.random.default_rng(9)
    options, elements = options_of(name, MORE), threads * cuda.pack(dtype)
    for size in (1, elements - 1, elements, elements + 1, 2 * elements + 3):
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, size, dtype), normal(rng, size, dtype), state=0.5)
        was = before(tensor, dtype)
        job = Job(name, dtype, [tensor], [row_of(name, options, 2)], threads=threads)
        assert len(job.chunks) == -(-size // elements)
        assert guards.launch(job) == moves(name, dtype, size)
        assert_updated(name, dtype, tensor, was, options, 2)


def moves(name, dtype, size):
    """How often 16 bytes are moved for so many elements, where all is aligned."""
    pieces = np.dtype(computed(dtype)).itemsize // DTYPES[dtype].itemsize  # of a state's pack
    return size // cuda.pack(dtype) * (3 + 2 * len(RULES[name].states) * pieces)


@dtypes
@by_states
def test_chunks_cut_anywhere(name, dtype):
    """A chunk may begin and end between two packs, wherever its tensor lies."""
    rng = np.random.default_rng(3)
    edges = [0, 1, 4, 12, 13, 48, 64, 81, 160, 167, 200]
    options = options_of(name, MORE)
    for offset in range(8):
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, 200, dtype), normal(rng, 200, dtype), (offset,) * 3, state=0.5)
        was = before(tensor, dtype)
        job = Job(name, dtype, [tensor], [row_of(name, options, 2)])
        job.chunks = np.zeros(len(edges) - 1, CHUNK)
        job.chunks["rows"] = 1
        job.chunks["offset"] = job.chunks["grad_offset"] = edges[:-1]
        job.chunks["length"] = np.diff(edges)
        assert guards.launch(job) > 0 or offset * tensor.param.itemsize % 16 != 0
        assert_updated(name, dtype, tensor, was, options, 2)


@dtypes
@by_states
def test_a_model_of_several_groups(name, dtype):
    """One launch: each tensor goes by its own row, and one without a gradient is left alone."""
    guards = Guards()
    tensors = model(name, dtype, np.random.default_rng(4), guards)
    groups = [options_of(name, options) for options in THREE_GROUPS]
    was = [None if tensor.grad is None else before(tensor, dtype) for tensor in tensors]
    missing = [tensor for tensor in tensors if tensor.grad is None]
    kept = [Tensor(tensor.param.copy(), None, [state.copy() for state in tensor.states]) for tensor in missing]
    guards.launch(Job(name, dtype, tensors, [row_of(name, options, 2) for options in groups]))
    for tensor, values_before in zip(tensors, was, strict=True):
        if values_before is not None:
            assert_updated(name, dtype, tensor, values_before, groups[tensor.hyper], 2)
    assert len(missing) == 3
    assert_same(missing, kept)


@dtypes
@by_states
def test_threads_in_any_order(name, dtype):
    """The same bits: no thread reads what another one writes."""
    results = []
    for seed in range(4):
        guards = Guards()
        tensors = model(name, dtype, np.random.default_rng(5), guards)
        rows = [row_of(name, options_of(name, options), 2) for options in THREE_GROUPS]
        guards.launch(Job(name, dtype, tensors, rows), seed)
        results.append(tensors)
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
@dtypes
@by_states
def test_strided_gradients(name, dtype, strided):
    """The same bits as with a gradient in the parameter's order."""
    rng = np.random.default_rng(6)
    g = strided(normal(rng, (67, 45), dtype))
    assert not g.flags.c_contiguous
    p = normal(rng, g.shape, dtype)
    rows = [row_of(name, options_of(name, MORE), 2)]
    guards = Guards()
    tensors = [guards.tensor(name, p, gradient, state=0.5) for gradient in (g, np.ascontiguousarray(g))]
    for tensor in tensors:
        guards.launch(Job(name, dtype, [tensor], rows))
    assert tensors[0].param.tobytes() != p.tobytes()
    assert_same(tensors[:1], tensors[1:])


@dtypes
@names
def test_infinite_parameters_without_weight_decay(name, dtype):
    """0 * inf would be NaN: without weight decay the parameter is not multiplied with it."""
    p = stored(np.array([np.inf, -np.inf, 1.0] * 7), dtype)
    guards = Guards()
    tensor = guards.tensor(name, p, stored(np.full(p.shape, 0.5), dtype), state=0.5)
    guards.launch(Job(name, dtype, [tensor], [row_of(name, options_of(name, OPTIONS), 2)]))
    got = meant(tensor.param, dtype)
    assert (got[0::3] == np.inf).all()
    assert (got[1::3] == -np.inf).all()
    assert np.isfinite(got[2::3]).all()
    for state in tensor.states:
        assert np.isfinite(state).all()


@dtypes
@names
def test_non_finite_gradients_propagate(name, dtype):
    """A NaN or an infinity reaches its own element and no other."""
    g = np.full(43, 0.5)
    g[[7, 20, 41]] = np.nan, np.inf, -np.inf
    guards = Guards()
    tensor = guards.tensor(name, stored(np.ones(43), dtype), stored(g, dtype))
    guards.launch(Job(name, dtype, [tensor], [row_of(name, options_of(name, OPTIONS), 1)]))
    finite = [np.isfinite(array) for array in (meant(tensor.param, dtype), *tensor.states)]
    if name == "lion":  # whose parameter moves by a sign, that of an infinity too
        assert finite[0][[20, 41]].all()
        finite[0][[20, 41]] = False
    for array in finite:
        assert not array[[7, 20, 41]].any()
        assert np.delete(array, [7, 20, 41]).all()


@dtypes
@names
def test_the_gradients_factor(name, dtype):
    """The inverse of a loss scale, and a sign: as if the gradient were multiplied."""
    rng = np.random.default_rng(7)
    options = options_of(name, {**OPTIONS, "weight_decay": 0.01})
    for factor in (2.0**-10, -0.25, 0.0, 3.0):
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, 500, dtype), normal(rng, 500, dtype), state=0.5)
        was = before(tensor, dtype)
        was[1] *= factor
        guards.launch(Job(name, dtype, [tensor], [(factor, *row_of(name, options, 2)[1:])]))
        assert_updated(name, dtype, tensor, was, options, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@names
def test_a_factor_below_the_normal_numbers(name, dtype):
    """1 over a scale of 2^127 and less, which arithmetic would flush to zero: as if the gradient were multiplied."""
    rng = np.random.default_rng(10)
    options = options_of(name, {**OPTIONS, "weight_decay": 0.01})
    for factor in (2.0**-126, 2.0**-127, -(2.0**-127), 1.25 * 2.0**-128, 2.0**-149, 0.0):
        guards = Guards()
        tensor = guards.tensor(name, normal(rng, 500, dtype), normal(rng, 500, dtype), state=0.5)
        tensor.grad[...] = stored(meant(tensor.grad, dtype) * 2.0**124, dtype)
        was = before(tensor, dtype)
        was[1] *= factor
        guards.launch(Job(name, dtype, [tensor], [(factor, *row_of(name, options, 2)[1:])]))
        assert_updated(name, dtype, tensor, was, options, 2)


@dtypes
@by_states
def test_a_step_that_is_skipped_changes_nothing(name, dtype):
    """Any number but 0 skips it."""
    rows = [row_of(name, options_of(name, options), 2) for options in THREE_GROUPS]
    for flag in (1, -1, 2**31 - 1, 0):
        guards, others = Guards(), Guards()
        tensors = model(name, dtype, np.random.default_rng(8), guards)
        same = model(name, dtype, np.random.default_rng(8), others)
        guards.launch(Job(name, dtype, tensors, rows, skip=np.array([flag], np.int32)))
        if flag == 0:
            others.launch(Job(name, dtype, same, rows))
        assert_same(tensors, same)


# Conversions


def widened(patterns, dtype):
    """Bits as float32, by the kernels' conversion."""
    return host_cuda.convert(f"widen_{dtype}", patterns, np.float32)


def narrowed(x, dtype):
    """The bits of float32 numbers rounded to halves, by the kernels' conversion."""
    return host_cuda.convert(f"narrow_{dtype}", x, np.uint16)


@halves
def test_conversions(dtype):
    """All patterns, and every border between two of them."""
    assert_converts(widened, narrowed, dtype)


@halves
@by_states
def test_all_patterns_pass_through_an_update(name, dtype):
    """Loaded, widened, rounded and stored: with a rate of 0, an update changes no bit but those of NaN.

    And but those of bfloat16's small numbers, which are float32's, and zero as these are; float16's own are not.
    """
    patterns = np.arange(2**16, dtype=np.uint16)
    guards = Guards()
    tensor = guards.tensor(name, patterns, np.full(2**16, rounded(np.ones(1, np.float32), dtype)))
    guards.launch(Job(name, dtype, [tensor], [row_of(name, {**OPTIONS, "lr": 0.0}, 1)]))
    before, after = values(patterns, dtype), values(tensor.param, dtype)
    nan, small = np.isnan(before), np.abs(before) < np.finfo(np.float32).tiny
    np.testing.assert_array_equal(tensor.param[~nan & ~small], patterns[~nan & ~small])
    assert np.isnan(after[nan]).all()
    assert (after[small] == 0).all()
    assert small.sum() == (2 if dtype == "float16" else 256)


@halves
def test_what_is_too_large_becomes_infinity(dtype):
    """The largest half and a half of its last bit are rounded up, to even; with less, it stays."""
    largest = np.full(2, INFINITY[dtype] - 1, np.uint16)
    last_bit = values(largest, dtype)[0] - values(largest - 1, dtype)[0]
    guards = Guards()
    tensor = guards.tensor("sgd", largest, rounded(np.array([-0.5, -0.25], np.float32) * last_bit, dtype))
    guards.launch(Job("sgd", dtype, [tensor], [(1.0, 0.0, 1.0)]))
    assert list(tensor.param) == [INFINITY[dtype], INFINITY[dtype] - 1]


# Sending


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 31, 128, 129, WORDS])
def test_send_writes_one_column(count, seed):
    """Numbers of any sign into the gradient column of a table, and nothing beside it."""
    rng = np.random.default_rng(9)
    table = rng.integers(-(2**62), 2**62, (count + 1, APART))
    numbers = rng.integers(-(2**63), 2**63 - 1, count)
    want = table.copy()
    want[:count, 1] = numbers
    column = TENSOR.fields["grad"][1]
    send(numbers, table.ctypes.data + column, APART, seed=seed)
    np.testing.assert_array_equal(table, want)


def test_send_several_messages_into_one_table():
    """Each has its part of a column that is longer than a message."""
    rows = 3 * WORDS - 7
    table = np.zeros(rows, TENSOR)
    numbers = np.arange(1, rows + 1)
    for start in range(0, rows, WORDS):
        send(numbers[start : start + WORDS], table["grad"][start:].ctypes.data, APART)
    np.testing.assert_array_equal(table["grad"], numbers)
    assert not any(table[name].any() for name in TENSOR.names if name != "grad")


def test_send_keeps_what_is_newer():
    """It writes only if the table's version is below the message's; another message then raises the version."""
    version, target = np.array([4]), np.zeros(3, np.int64)
    for number, value, written in [
        (4, 1, False),
        (3, 2, False),
        (5, 3, True),
        (5, 4, False),
        (-1, 5, False),
        (9, 6, True),
    ]:
        was = target.copy()
        send([value, value + 1], target.ctypes.data, 2, version, number)
        send([number], version.ctypes.data, 1, version, number)
        assert target.tolist() == ([value, 0, value + 1] if written else was.tolist())
    assert version.tolist() == [9]


# Counting steps


@st.composite
def inputs(draw):
    """A rule, options that it may have, and how far its tensors are."""
    name = draw(st.sampled_from(list(RULES)))
    number = st.one_of(st.sampled_from([0.0, 0.1, 1.0, LARGEST]), st.floats(0.0, LARGEST, allow_subnormal=False))
    # Products of the smallest numbers are none that the stand-in for a GPU can represent.
    share = st.one_of(st.sampled_from([0.0, 0.9, 0.999, 1.0 - 2.0**-53]), st.floats(1e-100, 1.0, exclude_max=True))
    special = {
        "maximize": st.booleans(),
        "dampening": st.floats(-LARGEST, LARGEST),
        "alpha": st.just(1.0) | share,
        "betas": st.tuples(share, share),
    }
    options = {option: draw(special.get(option, number)) for option in RULES[name].options}
    return name, options, draw(st.one_of(st.integers(0, 3), st.integers(0, 2**51))), draw(st.booleans())


def row_after(name, options, step, first, carried):
    """The hyper row of a step, by the carried number of the one before."""
    rule = RULES[name]
    return rule.row(rule.with_carried(options, rule.carried_after(options, step, carried)), step, first)


def bits(x):
    """The bits of an array, any NaN as one."""
    return np.where(np.isnan(x), np.nan, x).tobytes()


@settings(max_examples=200, deadline=None)
@given(
    drawn=st.lists(inputs(), max_size=5),
    taken=st.one_of(st.integers(0, 2), st.integers(0, 2**50)),
    scale=st.none() | st.floats(0.0, float(np.finfo(np.float32).max), width=32, allow_subnormal=False),
    skip=st.none() | st.integers(-(2**31), 2**31 - 1),
    block=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_advance_computes_the_rows_of_the_registry(drawn, taken, scale, skip, block, seed):
    """To the bit, and rounded once to float32, in any order; unless the step is skipped. It counts nothing."""
    clock = Clock(len(drawn))
    clock.taken[0] = taken
    clock.scale = None if scale is None else np.array([scale], np.float32)
    clock.skip = None if skip is None else np.array([skip], np.int32)
    clock.hypers[...] = want = np.full(clock.hypers.shape, 7.0)
    clock.rounded[...] = 7.0
    for i, (name, options, steps, first) in enumerate(drawn):
        clock.write(i, name, options, first=first, steps=steps)
        row = np.array(row_after(name, options, steps + taken + 1, first and taken == 0, 1.0))
        if not skip:
            want[i, : len(row)] = row
        if not skip and scale is not None:
            with np.errstate(all="ignore"):
                want[i, 0] *= np.float64(1.0) / np.float64(scale)
    written = clock.inputs.tobytes()
    clock.advance(block, seed)
    small = np.abs(want) < np.finfo(np.float64).tiny  # which are zero here, where kernels on the host flush double, too
    want[small] = np.copysign(0.0, want[small])
    assert bits(clock.hypers) == bits(want)
    with np.errstate(over="ignore"):
        assert bits(clock.rounded) == bits(want.astype(np.float32))
    assert clock.taken[0] == taken
    clock.count()
    assert clock.taken[0] == taken + (not skip)
    assert clock.inputs.tobytes() == written


@pytest.mark.parametrize("start", [0, 440, 10**6 - 20, 10**12 - 20, 2**51 - 70])
def test_advance_evaluates_schedules(start):
    """All of them as a rate, over consecutive steps from anywhere: to the bit what Python's say."""
    clock = Clock(len(CASES))
    for i, schedule in enumerate(CASES):
        clock.write(i, "sgd", {**OPTIONS, "lr": schedule}, schedule_steps=start, steps=3)
    steps = 450 if start == 0 else 60
    rates = np.empty((len(CASES), steps))
    for step in range(steps):
        clock.advance()
        clock.count()
        rates[:, step] = clock.hypers[:, 2]
    wrong = [case for case, got in zip(CASES, rates, strict=True) if (got != case(start + np.arange(steps))).any()]
    assert wrong == []


@names
def test_advance_evaluates_a_schedule_for_every_option(name):
    """Each number may be driven by a schedule, several at once too; the clock is the group's, not the tensors'."""
    schedules = {option: Linear(0.1 + i, 0.01 + i, 50) for i, option in enumerate(RULES[name].options)}
    for driven in ({"lr"}, {"weight_decay"}, set(RULES[name].options) - {"maximize", "betas"}):
        mixed = {**MORE, **{option: schedules[option] for option in driven}}
        clock = Clock(1)
        clock.write(0, name, mixed, first=False, steps=30, schedule_steps=5)
        carried = 1.0
        for step in range(20):
            clock.advance()
            clock.count()
            now = {**MORE, **{option: float(schedules[option](5 + step)) for option in driven}}
            row = row_after(name, now, 31 + step, False, carried)
            carried = RULES[name].carried_after(now, 31 + step, carried)
            assert clock.carried[0] == carried
            assert clock.hypers[0, : len(row)].tolist() == list(row)


# All together


SCALE = 1024.0  # of gradients
SKIPPED = (0, 7, 8, 30)


@swept(together=1, name=RULES, dtype=DTYPES)
def test_a_training_run(name, dtype):
    """Sixty steps of two groups, as a captured graph repeats them: addresses sent, rows computed, parameters updated.

    Gradients are scaled, and alternate between two buffers; schedules drive lr and weight decay; skipped steps are
    not counted, and the update counts the others. float16 and bfloat16 are compared step by step, each from the last
    result; others from the beginning.
    """
    rng = np.random.default_rng(10)
    groups = [
        {**MORE, "lr": Warmup(Cosine(0.1, 40, 0.001), 5)},
        {**OPTIONS, "lr": 0.02, "momentum": 0.5, "weight_decay": Linear(0.1, 0.0, 30)},
    ]
    groups = [options_of(name, options) for options in groups]
    shapes = [(5,), (515,), (13, 10)]
    guards = Guards()
    sets = [[guards.place(normal(rng, shape, dtype)) for shape in shapes] for _ in range(2)]
    tensors = [
        guards.tensor(name, normal(rng, shape, dtype), sets[0][i], hyper=i % 2) for i, shape in enumerate(shapes)
    ]
    job, clock = Job(name, dtype, tensors, [()] * 2, skip=np.zeros(1, np.int32)), Clock(2)
    clock.scale, clock.skip, job.taken = np.array([SCALE], np.float32), job.skip, clock.taken
    job.hypers = clock.hypers if dtype == "float64" else clock.rounded
    for i, options in enumerate(groups):
        clock.write(i, name, options)
    trainer, count = oracle.Trainer([meant(tensor.param, dtype) for tensor in tensors]), 0
    for step in range(60):
        for tensor, g in zip(tensors, sets[step % 2], strict=True):
            tensor.grad = g
            g[...] = stored(rng.standard_normal(g.shape) * SCALE, dtype)
        job.skip[0] = step in SKIPPED
        send([tensor.grad.ctypes.data for tensor in tensors], job.table["grad"].ctypes.data, APART)
        if dtype in DIGITS:
            trainer.params = [meant(tensor.param, dtype) for tensor in tensors]
        if step not in SKIPPED:
            own = RULES[name].carried  # which the trainer keeps
            now = [{o: v(count) if callable(v) else v for o, v in options.items() if o != own} for options in groups]
            trainer.step(
                name,
                [meant(tensor.grad, dtype) / SCALE for tensor in tensors],
                [now[tensor.hyper] for tensor in tensors],
            )
            count += 1
        clock.advance()
        guards.launch(job)
        for tensor, want, states in zip(tensors, trainer.params, trainer.states, strict=True):
            if dtype in DIGITS:
                assert_rounded(meant(tensor.param, dtype), want, DIGITS[dtype], LEAST[dtype], TRAJECTORY)
            else:
                assert_close(tensor.param, want, TRAJECTORY)
            for state, expected in zip(tensor.states, states or [0.0 * want] * len(tensor.states), strict=True):
                assert_close(state, expected, TRAJECTORY)
    assert clock.taken[0] == count == 60 - len(SKIPPED)


# What the launcher refuses, and what the sanitizer finds


def test_the_launcher_refuses_what_a_gpu_would():
    """Launches of no or too many threads, and arguments of another type."""
    message, name = np.zeros((), MESSAGE), cuda.Kind("sgd", "float32").name
    for size in (cuda.SIZES[1], cuda.SIZES[0] - 8):
        with pytest.raises(TypeError, match=f"{name} takes {cuda.SIZES[0]} bytes"):
            host_cuda.launch(name, np.zeros(1, np.dtype((np.void, size))), 1, 32)
    with pytest.raises(TypeError, match="send takes"):
        host_cuda.launch("send", np.zeros(2, MESSAGE), 1, 32)
    for grid, block in ((0, 128), (1, 0), (1, 1025), (2**31, 128)):
        with pytest.raises(ValueError, match="cannot be launched"):
            host_cuda.launch("send", message, grid, block)
    with pytest.raises(ValueError, match="cannot be launched"):
        host_cuda.launch(name, np.zeros(1, np.dtype((np.void, cuda.SIZES[0]))), 1, cuda.MOST_THREADS + 1)
    arrays = np.zeros(513, np.float32), np.zeros(513, np.float32)
    job = Job("sgd", "float32", [Tensor(*arrays, [])], [row_of("sgd", OPTIONS, 1)])
    job.chunks = job.chunks[:1].copy()
    job.chunks["length"] = 513
    with pytest.raises(ValueError, match="more packs than the 128 threads"):
        job.launch()


def test_the_launcher_sees_what_is_not_aligned(monkeypatch, tmp_path):
    """A kernel that takes 16 bytes from anywhere, as a GPU does not."""
    text = cuda.inlined("fused.cu")
    careless = text.replace("return all % 16 == 0;", "return true;")
    assert careless != text
    monkeypatch.setattr(cuda, "inlined", {"fused.cu": careless}.get)
    updates = {name: cuda.Kind(name, "float32").name for name in BY_STATES}
    sources = {"fused": host_cuda.fused(updates.values())}
    careless_library = ctypes.CDLL(str(host_cuda.link(tmp_path, sources)))
    monkeypatch.setattr(host_cuda, "library", lambda: careless_library)
    for name in updates:
        guards = Guards()
        tensor = guards.tensor(name, np.ones(8, np.float32), np.ones(8, np.float32), offsets=(0, 1, 0))
        with pytest.raises(RuntimeError, match="no multiple of 16"):
            Job(name, "float32", [tensor], [row_of(name, OPTIONS, 1)]).launch()


# Kernels with any number of states on arrays that end where their memory does; then, each in a process of its own, one
# element too many.
SANITIZED = """
    import os
    import numpy as np
    from cuda_jobs import Clock, Job, Tensor, computed, send
    from fastopt.kernels import cuda
    from fastopt.kernels.dtypes import DTYPES
    from fastopt.kernels.tables import WORDS
    from fastopt.rules import RULES
    from rule_cases import OPTIONS

    def found(function):
        child = os.fork()
        if child == 0:
            function()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 99

    def job(name, dtype, shape, gradient=lambda g: g, start=0):
        element = DTYPES[dtype].stored
        p, g = (np.zeros(int(np.prod(shape)) + start, element)[start:].reshape(shape) for _ in range(2))
        states = [np.zeros(shape, computed(dtype)) for _ in RULES[name].states]
        return Job(name, dtype, [Tensor(p, gradient(g), states)], [RULES[name].row(OPTIONS, 1, False)])

    def longer(job):
        job.chunks["length"][-1] += 1
        return job.launch

    def more_rows(job):
        job.chunks["rows"][-1] += 1
        return job.launch

    kernels = KERNELS
    sizes = [*range(1, 20), 127, 128, 129, 4095, 4096, 4097, 9001]
    for name, dtype in kernels:
        for size in sizes:
            job(name, dtype, (size,)).launch()
            job(name, dtype, (size,), start=1).launch()
        job(name, dtype, (300, 170), np.asfortranarray).launch()
        assert found(longer(job(name, dtype, (64,)))), name
        assert found(longer(job(name, dtype, (67,)))), name
        assert found(more_rows(job(name, dtype, (30, 17), np.asfortranarray))), name

    for count in (1, 128, WORDS):
        column = np.zeros((count - 1) * 8 + 1, np.int64)
        send(range(count), column.ctypes.data, 8)
        assert found(lambda: send(range(count), column.ctypes.data + 8, 8))

    clock = Clock(len(RULES))
    for i, name in enumerate(RULES):
        clock.write(i, name, OPTIONS)
    clock.advance(block=100)  # threads without a row
    for field in ("inputs", "hypers", "rounded"):
        whole = getattr(clock, field)
        setattr(clock, field, whole[1:])
        if field != "inputs":  # by which the rows are counted
            assert found(clock.advance)
        setattr(clock, field, whole)
    print("passed")
"""


@pytest.mark.exhaustive  # g++ instruments whole kernels
@pytest.mark.parametrize(
    "kernels",
    [[(BY_STATES[0], "float16"), (BY_STATES[-1], "float64")], pairs(name=BY_STATES, dtype=DTYPES)],
    ids=["some", "all"],
)
def test_kernels_stay_within_their_arrays(kernels, tmp_path):
    """The sanitizers of addresses and of undefined behaviour are silent, and not where an array is too short."""
    compiler = shutil.which("g++")
    asked = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        for name in ("libasan.so", "libstdc++.so")
    ]
    here, updates = str(Path(__file__).parent), [cuda.Kind(*kernel).name for kernel in kernels]
    sources = {"fused": host_cuda.fused(updates), "advance": host_cuda.small()}
    environment = {
        host_cuda.BUILT: str(host_cuda.link(tmp_path, sources, *host_cuda.SANITIZED)),
        "LD_PRELOAD": " ".join(os.path.realpath(found.stdout.strip()) for found in asked),
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99",
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
    }
    status, output, errors = run_script(SANITIZED.replace("KERNELS", repr(kernels)), tmp_path, **environment)
    assert (status, output) == (0, "passed\n"), errors
    reports = set(re.findall(r"ERROR: AddressSanitizer: (\S+)", errors))
    assert reports == {"heap-buffer-overflow"}
