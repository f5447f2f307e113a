"""The pool in processes of their own: after fork, at exit, and without the extension."""

import inspect
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from pool_kernels import fetch_add
from processes import assert_passes, run_script

# Fork
FORK = """
    import os, select, threading, numpy as np, fastopt
    from numba import cfunc, types
    from numba.extending import intrinsic
    from fastopt.kernels import cpu, pool

    fastopt.set_num_threads(4)

    def trains(size=1_000_000):
        p, g = np.ones(size, np.float32), np.full(size, 0.25, np.float32)
        q, h = np.ones((1100, 1000), np.float64), np.full((1100, 1000), 0.25, order="F")
        opt = fastopt.SGD([p, q], lr=1.0, momentum=1.0)
        opt.step([g, h])
        opt.step([g, h])
        return bool((p == 0.25).all() and (q == 0.25).all() and opt.state[0]["step"] == 2)

    FETCH_ADD

    @cfunc(cpu.SIGNATURE)
    def meet(job, begin, end, worker):
        fetch_add(job, 1)
        for _ in range(2**29):
            if fetch_add(job, 0) >= 2:
                return
        fetch_add(job, -1000)

    def meets():
        # Two chunks that wait for each other need two threads.
        job = np.zeros(8, np.int64)
        fastopt.kernels.pool.runner(meet, job.ctypes.data)(2, 1, 2)
        return job[0] == 2

    def in_child(function, seconds=30):
        # A child that hangs never closes its end of the pipe.
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                ok = function()
                os.write(writer, b"1" if ok else b"0")
            finally:
                os._exit(0)
        os.close(writer)

        def result():
            ready = select.select([reader], [], [], seconds)[0]
            said = os.read(reader, 1) if ready else b"nothing"
            if not ready:
                os.kill(child, 9)
            os.waitpid(child, 0)
            os.close(reader)
            assert said == b"1", f"the child said {said}"
        return result
"""
FORKS = {
    "before first use": """
        result = in_child(trains)
        assert trains()
        result()
        """,
    "after use, grandchildren too, and with one optimizer in both": """
        assert trains()
        assert meets()
        result = in_child(lambda: trains() and meets())
        assert trains() and meets()
        result()
        assert trains() and meets()

        def child():
            ok = trains()
            in_child(lambda: trains() and meets())()
            return ok and trains() and meets()
        in_child(child)()
        assert trains()

        p, g = np.ones(1_000_000, np.float32), np.full(1_000_000, 0.25, np.float32)
        opt = fastopt.SGD(p, lr=1.0, momentum=1.0)
        opt.bind(g)
        opt.step()
        def child():
            opt.step()
            opt.step(g * 0)
            return (p == -0.25).all() and opt.state[0]["step"] == 3
        result = in_child(child)
        opt.step()
        result()
        assert (p == 0.25).all() and opt.state[0]["step"] == 2
        """,
    "while another thread is inside a step": """
        import ctypes
        from unittest import mock

        inside, leave = threading.Event(), threading.Event()
        signature = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

        @signature
        def wait(job, begin, end, worker):
            inside.set()
            assert leave.wait(50)

        kernel = mock.Mock(ctypes=wait, address=ctypes.cast(wait, ctypes.c_void_p).value)
        p, g = np.ones(1_000_000, np.float32), np.ones(1_000_000, np.float32)
        opt = fastopt.SGD(p, lr=1.0)
        assert trains()
        with mock.patch.dict(cpu._kernels, {("sgd", "float32", (), (), "", "", ""): kernel}):
            thread = threading.Thread(target=opt.step, args=[g])
            thread.start()
            assert inside.wait(50)
        def child():
            with mock.patch.dict(cpu._kernels):
                cpu._kernels.pop(("sgd", "float32", (), (), "", "", ""), None)
                opt.param_groups[0]["momentum"] = 0.5  # a rule with a kernel that does not wait
                opt.step(g)
                return trains() and (p == 0).all() and meets()
        result = in_child(child)
        assert trains()
        result()
        leave.set()
        thread.join(50)
        assert not thread.is_alive() and opt.param_groups[0]["step"] == 1
        assert trains() and meets()
        """,
    "while other threads step": """
        stop = threading.Event()
        started = threading.Barrier(4)

        def keep_stepping():
            p, g = np.ones(1_000_000, np.float32), np.zeros(1_000_000, np.float32)
            opt = fastopt.SGD(p, lr=1.0, momentum=1.0)
            started.wait(50)
            while not stop.is_set():
                opt.step(g)
            assert (p == 1).all()

        assert trains()
        threads = [threading.Thread(target=keep_stepping, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait(50)
        for _ in range(10):
            in_child(trains)()
        assert trains()
        stop.set()
        for thread in threads:
            thread.join(50)
            assert not thread.is_alive()
        """,
    "while another thread compiles": """
        compiling, compile_kernel = threading.Event(), cpu.cache.compile_kept

        def announced(function, wrap):
            compiling.set()
            return compile_kernel(function, wrap)

        cpu.cache.compile_kept = announced
        thread = threading.Thread(target=trains)
        thread.start()
        assert compiling.wait(50)
        done = threading.Event()
        result = in_child(trains)
        thread.join(50)
        assert not thread.is_alive()
        p = np.ones(3)
        fastopt.fused.sgd(p, p / 2, lr=1.0)  # another kernel, while the child lives
        assert (p == 0.5).all()
        result()
        """,
}


USUAL = ("while another thread is inside",)  # each takes some seconds


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(FORKS[name], id=name, marks=[] if name.startswith(USUAL) else pytest.mark.exhaustive)
        for name in FORKS
        if hasattr(os, "fork")
    ],
)
def test_fork(script, tmp_path):
    """Parent and child train on their own threads, whatever the parent's were doing."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} if "_compile" in script else {}
    before = textwrap.dedent(FORK).replace("FETCH_ADD", inspect.getsource(fetch_add._defn))
    done = run_script(before + textwrap.dedent(script) + "\nprint('passed')\n", tmp_path, **cache)
    assert done[:2] == (0, "passed\n"), done[2]  # newer Pythons warn of forks beside threads


FORK_DURING_IMPORT = """
    import os, sys, threading, numpy as np, fastopt

    def trains():
        p = np.ones(3)
        fastopt.SGD(p, lr=1.0).step(p / 2)
        return (p == 0.5).all()

    thread = threading.Thread(target=trains)
    thread.start()
    while "numba" not in sys.modules:
        pass
    child = os.fork()
    if child == 0:
        os._exit(0 if trains() else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert trains()
    print("passed")
"""


@pytest.mark.exhaustive  # processes that start anew
@pytest.mark.parametrize("script", [FORK_DURING_IMPORT] if hasattr(os, "fork") else [])
def test_fork_while_another_thread_imports_numba(script, tmp_path):
    """The first step imports Numba; a child that is forked meanwhile imports it as well."""
    done = run_script(textwrap.dedent(script), tmp_path)
    assert done[:2] == (0, "passed\n"), done[2]


# Exit

EXIT = """
    import os, sys, threading, numpy as np, fastopt

    fastopt.set_num_threads(4)

    def keep_stepping(rule, started):
        p, g, s = (np.ones(400_000, np.float32) for _ in range(3))
        h = np.ones((1000, 400), np.float32).T
        opt = fastopt.Adagrad(p, lr=0.01) if rule else fastopt.SGD(p, lr=0.01, momentum=0.5)
        opt.bind(g)
        while True:
            opt.step()
            opt.step(g)
            fastopt.fused.adagrad(p, g, s, lr=0.1)
            fastopt.fused.sgd(p.reshape(400, 1000), h, lr=0.1)
            started.set()

    for rule in range(3):
        started = threading.Event()
        threading.Thread(target=keep_stepping, args=[rule % 2, started], daemon=True).start()
        assert started.wait(50)
    print("passed", flush=True)
"""


@pytest.mark.exhaustive  # processes that start anew
@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_exit_while_daemon_threads_step(times, tmp_path):
    """The interpreter ends quietly though threads are inside the extension, in whichever way; several at once."""
    ends = ["", "sys.exit()", "del fastopt, np"] * times
    with ThreadPoolExecutor(3) as executor:
        for done in executor.map(lambda end: run_script(textwrap.dedent(EXIT) + end, tmp_path), ends):
            assert done == (0, "passed\n", "")


def test_exit_inside_a_kernel(tmp_path):
    """Threads that stay inside a kernel neither keep the interpreter from ending nor lose the code they run."""
    script = """
        import threading, numpy as np, fastopt
        from numba import carray, types
        from numba.extending import intrinsic
        from fastopt.kernels import cpu, tables

        FETCH_ADD
        unread = tables.JOB.fields["scratch_bytes"][1]

        def stay(job, begin, end, worker):
            while fetch_add(job + unread, 1) >= 0:  # which this kernel does not read
                pass

        cpu._kernels["sgd", "float32", (), (), "", "", ""] = cpu.cache.compile_kept(stay, cpu.make_cfunc)
        fastopt.set_num_threads(2)
        opt = fastopt.SGD(np.ones(1_000_000, np.float32))
        threading.Thread(target=opt.step, args=[np.ones(1_000_000, np.float32)], daemon=True).start()
        while not (opt._stepper.plan.launches and opt._stepper.plan.launches[0].job["scratch_bytes"]):
            pass
        print("passed", flush=True)
    """
    assert_passes(textwrap.dedent(script).replace("FETCH_ADD", inspect.getsource(fetch_add._defn)), tmp_path)


# Without the extension
WITHOUT = """
    import sys
    sys.modules["fastopt.kernels._pool"] = None
    import numpy as np, fastopt, threading
    from fastopt.kernels import extension, pool, reader
    assert extension.lib is None and not pool.available
"""


@pytest.mark.exhaustive  # by default threads train without it
def test_training_without_the_extension(tmp_path):
    """The same bits as with it, in every layout, for every rule, bound or not, single calls too."""
    script = """
        import hashlib, numpy as np, fastopt
        rng = np.random.default_rng(0)
        shapes = [(), (0,), (7,), (120_001,), (200, 300), (7, 5, 9), (3, 1, 4, 2)]
        flip = lambda a: a[..., ::-1] if a.ndim else a
        layouts = [np.array, lambda a: np.array(a, order="F"), lambda a: flip(np.array(flip(a)))]
        gradients = [*layouts, lambda a: np.repeat(a[..., None], 2, -1)[..., 0]]
        gradients += [lambda a: np.broadcast_to(a[..., :1] if a.ndim else a, a.shape)]
        normal = lambda dtype: [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]

        def train(opt, params, dtype, lay):
            for lay_gradient in gradients:
                opt.step([lay_gradient(g) for g in normal(dtype)])
            opt.step([None] * len(shapes))
            opt.bind([np.ones_like(p) for p in params])
            opt.step()
            state = lay(np.ones(shapes[4], dtype))
            fastopt.fused.adagrad(params[4], np.asarray(params[4] * 2, order="F"), state, lr=0.1)
            opt.load_state_dict(opt.state_dict())
            return [*params, state]

        def refuses(opt, params, dtype):
            for bad in (np.ones(7, np.int32), params[2], np.ones(6, dtype), params[3][:7]):
                before = params[3].copy()
                try:
                    opt.step([bad if i == 2 else np.ones_like(p) for i, p in enumerate(params)])
                except (TypeError, ValueError) as error:
                    assert "parameter" in str(error)
                else:
                    raise AssertionError("accepted")
                assert (params[3] == before).all()

        results = []
        for make, options in (
            (fastopt.SGD, {"lr": 0.1}),
            (fastopt.SGD, {"lr": lambda step: 0.1 / (1 + step), "momentum": 0.9, "weight_decay": 0.01}),
            (fastopt.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
            (fastopt.Adagrad, {"lr": 0.1}),
        ):
            for dtype in (np.float32, np.float64):
                for lay in layouts:
                    params = [lay(p) for p in normal(dtype)]
                    opt = make(params, **options)
                    results += train(opt, params, dtype, lay)
                    refuses(opt, params, dtype)
        print(hashlib.sha256(b"".join(array.tobytes() for array in results)).hexdigest())
    """
    done = [run_script(textwrap.dedent(head) + textwrap.dedent(script), tmp_path) for head in ("", WITHOUT)]
    assert [(status, errors) for status, _, errors in done] == [(0, "")] * 2
    assert done[0] == done[1]


def test_threads_without_the_extension(tmp_path):
    """Steps from several Python threads, the GIL released, a number of threads that can be set and does nothing."""
    assert_passes(
        textwrap.dedent(WITHOUT)
        + textwrap.dedent(
            """
            fastopt.set_num_threads(8)
            assert fastopt.get_num_threads() == 8
            p, g = np.zeros(300_000, np.float32), np.ones(300_000, np.float32)
            opt = fastopt.SGD(p, lr=1.0)
            threads = [threading.Thread(target=lambda: [opt.step(g) for _ in range(10)]) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (p == -80).all() and opt.param_groups[0]["step"] == 80
            print("passed")
            """
        ),
        tmp_path,
    )


def test_an_extension_of_another_abi_is_refused(tmp_path):
    """A stale build says so instead of being called."""
    status, _, errors = run_script(
        """
        import sys, types
        stale = types.ModuleType("fastopt.kernels._pool")
        stale.ffi, stale.lib = None, types.SimpleNamespace(fastopt_abi=lambda: -1)
        sys.modules["fastopt.kernels._pool"] = stale
        import fastopt
        """,
        tmp_path,
    )
    assert status == 1
    assert "ABI -1" in errors
    assert "install fastopt again" in errors
