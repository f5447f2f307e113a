"""The pool: every chunk once, from any thread, with the GIL released, and nobody else's state."""

import ctypes
import faulthandler
import functools
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastopt.kernels import cpu, limits, pool
from fastopt.kernels.extension import ffi, lib
from numba import carray, cfunc
from pairs import usually
from pool_kernels import fetch_add, waiting_kernel
from processes import DEADLOCK, assert_passes
from rule_cases import BY_STATES, OPTIMIZERS

import fastopt

MOST_THREADS = 1024


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = pool.get_num_threads()
    faulthandler.dump_traceback_later(3 * DEADLOCK, exit=True)  # nothing else ends a deadlock inside the extension
    yield
    faulthandler.cancel_dump_traceback_later()
    pool.set_num_threads(before)


def normal(*shape, seed=0, dtype=np.float32):
    """Random numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype)


# Kernels that are not updates, to see what the pool does with them


HEAD = 3  # numbers before the flags and counts of a job


def count_chunks(job, begin, end, worker):
    """Count each chunk's executions, and errors.

    The job is an array of int64: numbers of chunks, of threads, of errors, a flag for each worker, the counts.
    """
    chunks, threads = carray(cpu.pointer(job), HEAD, np.int64)[0], carray(cpu.pointer(job), HEAD, np.int64)[1]
    errors = job + 8 * 2
    if worker < 0 or worker >= threads or begin < 0 or begin > end or end > chunks:
        fetch_add(errors, 1)
        return
    inside = job + 8 * (HEAD + worker)
    if fetch_add(inside, 1) != 0:  # two threads at once with one worker's scratch
        fetch_add(errors, 1)
    for chunk in range(begin, end):
        fetch_add(job + 8 * (HEAD + MOST_THREADS + chunk), 1)
    fetch_add(inside, -1)


@functools.cache
def counting():
    """Compile `count_chunks`, where a test needs it."""
    return cfunc(cpu.SIGNATURE)(count_chunks)


class Count:
    """A job for `count_chunks`."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.job = np.zeros(HEAD + MOST_THREADS + chunks, np.int64)

    def run(self, grain, threads):
        """Run all chunks again."""
        self.job[:2] = self.chunks, max(1, min(threads, MOST_THREADS))
        kernel = ffi.cast("fastopt_kernel", counting().address)
        lib.fastopt_run(kernel, ffi.cast("fastopt_job *", self.job.ctypes.data), self.chunks, grain, threads)

    def assert_once(self, times=1):
        """Assert that every chunk ran the right number of times, and that workers were distinct and within range."""
        assert self.job[2] == 0
        assert (self.job[HEAD : HEAD + MOST_THREADS] == 0).all()
        assert (self.job[HEAD + MOST_THREADS :] == times).all()


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3, 8, 64, 5000])
def test_every_chunk_runs_once(threads):
    """Over numbers of chunks and grains, those that do not divide each other among them."""
    for chunks in (0, 1, 2, 3, 7, 64, 65, 1000, 4097):
        for grain in (-1, 0, 1, 2, 3, 64, 1000, 4096, 4097, 10**6, 2**62):
            count = Count(chunks)
            count.run(grain, threads)
            count.assert_once()


def test_more_chunks_than_a_ticket_counts():
    """Beyond 2**24 chunks the grain grows by itself."""
    count = Count(2**24 + 5)
    count.run(1, 2)
    count.assert_once()


def test_many_small_jobs_after_each_other():
    """Workers that wake too late find the next job, with another size and other workers."""
    rng = np.random.default_rng(0)
    counts = [Count(chunks) for chunks in (2, 3, 5, 17, 40)]
    times = np.zeros(len(counts), int)
    for which, grain, threads in zip(
        rng.integers(len(counts), size=20_000), rng.integers(1, 4, 20_000), rng.integers(1, 9, 20_000), strict=True
    ):
        counts[which].run(grain, threads)
        times[which] += 1
    for count, expected in zip(counts, times, strict=True):
        count.assert_once(expected)


def test_jobs_from_many_threads_at_once():
    """One caller has the workers, the others run alone; none runs another's job."""

    def jobs(chunks):
        count = Count(chunks)
        start.wait(DEADLOCK)
        for times in range(1, 1001):
            count.run(1 + times % 3, 2 + times % 7)
        count.assert_once(1000)

    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(jobs, (2, 3, 5, 8, 13, 50, 99, 200)))


def test_threads_really_run_together():
    """Three chunks that wait for each other are done, which takes three threads."""
    gates = np.zeros(2, np.int64)

    @cfunc(cpu.SIGNATURE)
    def meet(job, begin, end, worker):
        fetch_add(job, 1)
        for _ in range(2**31):
            if fetch_add(job, 0) >= 3:
                return
        fetch_add(job + 8, 1)

    pool.runner(meet, gates.ctypes.data)(3, 1, 3)
    assert gates.tolist() == [3, 0]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_gil_is_released(threads, monkeypatch):
    """A step stays inside its kernel until another Python thread, which needs the GIL, opens the gate."""
    gates = np.zeros(2, np.int64)
    kernel = waiting_kernel(gates)
    monkeypatch.setitem(cpu._kernels, ("sgd", "float32", (), (), "", "", ""), kernel)
    fastopt.set_num_threads(threads)
    opt = fastopt.SGD(np.zeros(1_000_000, np.float32))

    def open_gate():
        while gates[0] == 0:
            pass
        gates[1] = 1

    opener = threading.Thread(target=open_gate, daemon=True)
    opener.start()
    opt.step(np.zeros(1_000_000, np.float32))
    gates[0] += 1  # else the opener would wait forever if the kernel never ran
    opener.join(DEADLOCK)
    assert 1 < gates[0] < 2**32


# Updates


@pytest.mark.parametrize("name", usually(BY_STATES[-1:], BY_STATES))
def test_threads_do_not_change_a_bit(name):
    """Any number of threads, changing between steps, on sizes of many chunks and an odd last one."""
    sizes = (1_000_003, 2_500_000, 5_000_000)
    make, options = OPTIMIZERS[name]
    grads = [normal(size, seed=size) for size in sizes]
    results = []
    for threads in ([1] * 6, [2, 3, 8, 64, 1, 2]):
        params = [normal(size, seed=size + 1) for size in sizes]
        opt = make(params, **options)
        for n in threads:
            fastopt.set_num_threads(n)
            opt.step(grads)
        results.append([*params, *(array for state in opt.state.values() for array in list(state.values())[1:])])
    for one, many in zip(*results, strict=True):
        assert one.tobytes() == many.tobytes()


@pytest.mark.parametrize("threads", [2, 3, 8, 64])
def test_threads_with_gradients_in_another_order(threads):
    """Tiles are gathered into each worker's own scratch; more threads than at the first step change nothing."""
    p, g = np.zeros((1500, 1400), np.float32), np.asfortranarray(normal(1500, 1400))
    opt = fastopt.SGD(p, lr=1.0)
    fastopt.set_num_threads(2)
    opt.step(g)
    np.testing.assert_array_equal(p, -g)
    fastopt.set_num_threads(threads)
    opt.step(g)
    np.testing.assert_array_equal(p, -g - g)


@pytest.mark.parametrize("threads", [2, 8])
def test_single_calls_on_threads(threads):
    """The single calls use the pool too."""
    fastopt.set_num_threads(threads)
    p, g, v = np.zeros(1_000_001, np.float32), normal(1_000_001), np.zeros(1_000_001, np.float32)
    fastopt.fused.momentum(p, g, v, lr=1.0, momentum=0.5)
    np.testing.assert_array_equal(p, -g)
    np.testing.assert_array_equal(v, g)


def test_an_optimizer_for_each_of_many_threads():
    """Each trains as if it were alone; single calls go on beside."""

    def train(seed):
        make, options = OPTIMIZERS[("sgd", "momentum", "nesterov", "adagrad")[seed % 4]]
        p, q, g = normal(300_000, seed=seed), normal(300_000, seed=seed), normal(300_000, seed=seed + 100)
        state = np.zeros_like(p)
        opt = make({"p": p}, **options)
        start.wait(DEADLOCK)
        for _ in range(10):
            opt.step({"p": g})
            if make is fastopt.Adagrad:
                fastopt.fused.adagrad(q, g, state, **options)
            else:
                momentum = {"momentum": 0.0, "nesterov": False, **options}
                fastopt.fused.momentum(q, g, state, **momentum)
        assert opt.state["p"]["step"] == 10
        np.testing.assert_array_equal(p, q)

    fastopt.set_num_threads(4)
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(train, range(8)))


@pytest.mark.parametrize("size", [5, 300_000])
@pytest.mark.parametrize("bound", [False, True])
def test_one_optimizer_for_many_threads(size, bound):
    """Steps wait for each other: none is lost, none is half done. Other threads read the state meanwhile."""
    p, g = np.zeros(size, np.float32), np.ones(size, np.float32)
    opt = fastopt.SGD(p, lr=lambda step: 1.0 if step % 2 else 2.0, momentum=1.0, dampening=1.0)
    opt.bind(g)

    def train(_):
        start.wait(DEADLOCK)
        for _ in range(25):
            opt.step() if bound else opt.step(g)
            opt.state_dict()

    fastopt.set_num_threads(4)
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(train, range(8)))
    assert opt.state[0]["step"] == opt.param_groups[0]["step"] == 200
    # The buffer stays at the first gradient: half of the steps take 2, half 1.
    np.testing.assert_array_equal(p, np.float32(-300))


def test_an_optimizer_may_be_asked_about_itself_during_a_step():
    """A schedule, or a signal's handler, that reads the state of the optimizer that it is called by does not hang."""

    def schedule(step):
        asked.append(len(opt.state_dict()["state"]) if step else 0)
        return 0.5

    asked = []
    p = np.ones(3, np.float32)
    opt = fastopt.SGD(p, lr=schedule)

    def train():
        opt.step(np.ones(3, np.float32))
        opt.step(np.ones(3, np.float32))

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert asked[-1] == 1
    assert (p == 0).all()


def test_workers_take_no_signals(tmp_path):
    """A signal to the process reaches the interpreter's own thread and its handler."""
    assert_passes(
        """
        import signal, numpy as np, fastopt
        got = []
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
        fastopt.set_num_threads(4)
        p = np.ones(1_000_000, np.float32)
        opt = fastopt.SGD(p, lr=0.5)
        opt.step(np.ones_like(p))
        masks = []
        import os
        if os.path.isdir("/proc/self/task"):
            for task in os.listdir("/proc/self/task"):
                status = open(f"/proc/self/task/{task}/status").read()
                blocked = int(status.split("SigBlk:")[1].split()[0], 16)
                masks.append(blocked >> (signal.SIGUSR1 - 1) & 1)
            assert sorted(masks)[-3:] == [1, 1, 1] and masks.count(0) >= 1, masks
        assert (p == 0.5).all()
        print("passed")
        """,
        tmp_path,
    )


# Settings


def test_set_num_threads():
    """Whole numbers of 1 or more, in any integer type; the bad ones change nothing."""
    for n in (1, 7, 64, 10**6, np.int64(3), np.uint8(2)):
        assert fastopt.set_num_threads(n) is None
        assert fastopt.get_num_threads() == n
        assert type(fastopt.get_num_threads()) is int
    fastopt.set_num_threads(5)
    for n, error in [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)]:
        with pytest.raises(error, match="number of threads must be"):
            fastopt.set_num_threads(n)
    for n in (None, np.float64(2), np.array(2.5), np.array([2]), 2j):
        with pytest.raises(TypeError, match="number of threads must be"):
            fastopt.set_num_threads(n)
    assert fastopt.get_num_threads() == 5


def test_absurd_numbers_of_threads():
    """More threads than the system gives, or than a C int holds, are as many as there are."""
    for n in (1024, 1025, 2**31, 2**40):
        fastopt.set_num_threads(n)
        p = np.zeros(1_000_000, np.float32)
        fastopt.fused.sgd(p, p + 1, lr=1.0)
        assert (p == -1).all()
        optimizer = fastopt.SGD([p], lr=1.0)
        for _ in range(3):  # the last of which repeat the first
            optimizer.step([np.ones_like(p)])
        assert (p == -4).all()


def set_environment(monkeypatch, text):
    """As if the process had started with this FASTOPT_NUM_THREADS."""
    monkeypatch.setenv("FASTOPT_NUM_THREADS", text)
    monkeypatch.setattr(pool, "_num_threads", None)


@pytest.mark.parametrize(("text", "threads"), [("3", 3), (" 2 ", 2), ("1", 1), ("64", 64), ("", None), ("  ", None)])
def test_threads_from_the_environment(text, threads, monkeypatch):
    """FASTOPT_NUM_THREADS counts; empty is as if unset; set_num_threads goes before it."""
    set_environment(monkeypatch, text)
    assert fastopt.get_num_threads() == (threads or limits.processors())
    p = np.ones(1_000_000)
    fastopt.fused.sgd(p, p / 2, lr=1.0)
    assert (p == 0.5).all()
    fastopt.set_num_threads(5)
    assert fastopt.get_num_threads() == 5


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1e3", "2 3", "0x2", "\u00b2"])
def test_bad_threads_in_the_environment(text, monkeypatch):
    """They raise where the number is needed, by name, before anything changes; set_num_threads mends it."""
    set_environment(monkeypatch, text)
    small, large, velocity = np.ones(10, np.float32), np.ones(1_000_000), np.zeros(1_000_000)
    grads = [small / 2, large / 2]
    opt = fastopt.SGD([small, large], lr=lambda step: 1.0 - step / 2, momentum=0.5)
    for call in (
        fastopt.get_num_threads,
        lambda: opt.step(grads),
        lambda: fastopt.fused.momentum(large, grads[1], velocity, lr=1.0, momentum=0.5),
    ):
        with pytest.raises(ValueError, match=f"FASTOPT_NUM_THREADS is '{re.escape(text)}'; set it to"):
            call()
        assert (small == 1).all()
        assert (large == 1).all()
        assert (velocity == 0).all()
        assert dict(opt.state) == {}
        assert opt.param_groups[0]["step"] == 0
    fastopt.set_num_threads(2)
    opt.step(grads)
    assert (small == 0.5).all()
    assert (large == 0.5).all()


def test_the_environment_of_a_process(tmp_path):
    """The variable is read when the number is first needed, not at import."""
    script = """
        import os, fastopt
        assert fastopt.get_num_threads() == 3
        os.environ["FASTOPT_NUM_THREADS"] = "4"
        assert fastopt.get_num_threads() == 3
        print("passed")
    """
    assert_passes(script, tmp_path, FASTOPT_NUM_THREADS="3")


def test_nobody_elses_settings_change(tmp_path):
    """Numba's and torch's threads, warnings, random state, error state, signals, environment: all as before."""
    assert_passes(
        """
        import os, random, signal, sys, threading, warnings, numba, numpy as np, torch
        from numba.np.ufunc import parallel
        warnings.simplefilter("error")

        def settings():
            return [
                numba.config.THREADING_LAYER, numba.config.NUMBA_NUM_THREADS, numba.config.CACHE_DIR, numba.config.OPT,
                torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(),
                torch.random.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate(),
                list(warnings.filters), np.geterr(), np.get_printoptions(), dict(os.environ), os.getcwd(),
                [signal.getsignal(number) for number in signal.valid_signals()], sys.getswitchinterval(),
                threading.stack_size(), threading.excepthook, sys.excepthook, sys.path[:], sys.getrecursionlimit(),
            ]

        before = settings()
        import fastopt
        fastopt.set_num_threads(3)
        for dtype in (np.float32, np.float64):
            p, g, s = (np.ones((1000, 200), dtype) for _ in range(3))
            opt = fastopt.Adagrad({"p": p}, lr=0.1)
            opt.step({"p": g.T.copy().T})
            fastopt.fused.nesterov(p, g, s, lr=0.1, momentum=0.9)
            opt.load_state_dict(opt.state_dict())
        assert settings() == before
        assert not parallel._is_initialized  # Numba's own threads were never started
        assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
        print("passed")
        """,
        tmp_path,
    )


# The extension


def test_a_runner_without_the_extension_releases_the_gil(monkeypatch):
    """Numba's own call of a kernel, through ctypes, does so too."""
    gates = np.zeros(2, np.int64)
    kernel = waiting_kernel(gates)
    monkeypatch.setattr(pool, "available", False)
    thread = threading.Thread(target=pool.runner(kernel, 0), args=(1, 1, 1), daemon=True)
    thread.start()
    while gates[0] == 0 and thread.is_alive():
        pass
    gates[1] = 1
    thread.join(DEADLOCK)
    assert gates[0] == 1


def test_the_pool_is_there():
    """Whatever is tested here was built."""
    assert pool.available
    assert lib.fastopt_abi() > 0
    assert ctypes.sizeof(ctypes.c_void_p) == 8
