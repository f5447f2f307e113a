"""Jobs on torch's OpenMP threads: the pool's results to the bit, from any thread, after fork, at exit; one team."""

import ctypes
import faulthandler
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch_cases
from fastopt.kernels import cpu, pool, team
from fastopt.kernels.extension import _pool
from pairs import swept
from processes import DEADLOCK, run_script
from torch.nn import Parameter
from torch_cases import KINDS, bits, states

import fastopt.torch as subject
from fastopt.backends.torch.threads import THREADS, TorchThreads

SHAPES = [(300_003,), (400, 600), (5,), (32, 64, 3, 3)]


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = torch.get_num_threads()
    faulthandler.dump_traceback_later(3 * DEADLOCK, exit=True)  # nothing else ends a deadlock inside the extension
    yield
    faulthandler.cancel_dump_traceback_later()
    torch.set_num_threads(before)


SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Spy:
    """A Python kernel that records who runs what; each thread's first claim waits until enough threads have come."""

    def __init__(self, together=1):
        self.claims = []  # begin, end, worker, thread
        self.come = threading.Barrier(together)
        self.function = SIGNATURE(self.run)
        self.ctypes = self.function
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value

    def run(self, job, begin, end, worker):
        """Note a claim."""
        thread = threading.get_native_id()
        first = thread not in [claim[-1] for claim in self.claims]
        self.claims.append((begin, end, worker, thread))
        if first and self.come.parties > 1:
            self.come.wait(DEADLOCK)

    def threads(self):
        """The threads that took part; each must have been one worker, and no two the same one."""
        pairs = {claim[2:] for claim in self.claims}
        assert len(pairs) == len({worker for worker, _ in pairs}) == len({thread for _, thread in pairs})
        return {thread for _, thread in pairs}


def test_torchs_team_is_there():
    """Whatever is tested here can be entered."""
    assert torch.backends.openmp.is_available()
    assert THREADS.parallel


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3, 8])
def test_every_chunk_runs_once(threads):
    """Over numbers of chunks and grains, those that do not divide each other among them; each worker is one thread."""
    for chunks in (0, 1, 2, 7, 64, 500):
        for grain in (1, 2, 3, 64, 499, 10**6, 2**40):
            spy = Spy()
            team.runner(spy, 0, THREADS.parallel)(chunks, grain, threads)
            spy.threads()
            assert sorted(i for begin, end, *_ in spy.claims for i in range(begin, end)) == list(range(chunks))
            assert all(0 <= worker < max(threads, 1) for _, _, worker, _ in spy.claims)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_really_run_together(threads):
    """So many chunks that wait for each other are done, which takes as many threads, the caller among them."""
    spy = Spy(together=threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        team.runner(spy, 0, THREADS.parallel)(threads, 1, threads)
    finally:
        torch.set_num_threads(before)
    assert not spy.come.broken
    assert len(spy.threads()) == threads
    assert threading.get_native_id() in spy.threads()


def run(kind, shapes, lay, steps=4, seed=0):
    """Parameters and states after some steps, the last of which differ only in their gradients."""
    name, options = KINDS[kind]
    params = torch_cases.parameters(shapes, seed=seed)
    optimizer = torch_cases.make(name, params, **options)
    gradients = [lay(torch_cases.noise(p.shape, p.dtype, i)) for i, p in enumerate(params)]
    for _ in range(steps):
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
    return [tensor.detach() for p in params for tensor in (p, *states(optimizer, p).values())]


LAYOUTS = {
    "dense": lambda g: g,
    "axes reversed": lambda g: g.permute(*reversed(range(g.dim()))).contiguous().permute(*reversed(range(g.dim()))),
    "every second": lambda g: g.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda g: g[:1].expand(g.shape),
}


@swept(1, kind=KINDS, layout=LAYOUTS)
def test_the_same_bits_as_on_the_pool(kind, layout, monkeypatch):
    """Large tensors of several chunks and odd ends; gradients that are gathered have a scratch for each worker."""
    on_team = run(kind, SHAPES, LAYOUTS[layout])
    monkeypatch.setattr(THREADS, "parallel", 0)
    on_pool = run(kind, SHAPES, LAYOUTS[layout])
    assert len(on_team) == len(on_pool)
    assert all(map(torch.equal, on_team, on_pool))


@swept(1, kind=KINDS, threads=[1, 2, 3, 8])
def test_threads_do_not_change_a_bit(kind, threads):
    """Whatever torch's number of threads is, larger than the number of processors too."""
    torch.set_num_threads(threads)
    results = run(kind, [(700, 900)], LAYOUTS["axes reversed"])
    torch.set_num_threads(1)
    assert all(map(torch.equal, results, run(kind, [(700, 900)], LAYOUTS["axes reversed"])))


def test_torchs_number_of_threads_may_change_between_steps():
    """Also to more than there were when the scratch for gathered gradients was made."""
    p = Parameter(torch.zeros(1500, 1400))
    p.grad = torch_cases.noise((1400, 1500), torch.float32, 1).T
    optimizer = subject.SGD([p], lr=1.0)
    want = torch.zeros(1500, 1400)
    for threads in (2, 8, 1, 64, 3):
        torch.set_num_threads(threads)
        optimizer.step()
        want -= p.grad
        assert torch.equal(p, want)


def test_the_number_of_threads_is_torchs(monkeypatch):
    """Steps run on as many as torch is set to, the first and its repetitions alike; fastopt's own number is not it."""
    before = pool.get_num_threads()
    monkeypatch.setattr(pool, "_num_threads", 5)
    for threads in (1, 3, 2, 1):
        torch.set_num_threads(threads)
        spy = Spy(together=threads)
        monkeypatch.setitem(cpu._kernels, ("sgd", "float32", (), (), "", "", ""), spy)
        p = Parameter(torch.zeros(1_000_000))
        optimizer = subject.SGD([p])
        for _ in range(4):
            p.grad = torch.zeros(1_000_000)
            spy.claims.clear()
            optimizer.step()
            assert not spy.come.broken
            assert len(spy.threads()) == threads
            assert sum(end - begin for begin, end, *_ in spy.claims) == optimizer._stepper.plan.launches[0].count
        assert torch.get_num_threads() == threads
    monkeypatch.setattr(pool, "_num_threads", before)


def test_small_steps_stay_on_their_thread(monkeypatch):
    """They are done before a team would wake up."""
    spy = Spy()
    monkeypatch.setitem(cpu._kernels, ("sgd", "float32", (), (), "", "", ""), spy)
    p = Parameter(torch.zeros(150_000))
    optimizer = subject.SGD([p])
    for _ in range(3):
        p.grad = torch.zeros(150_000)
        optimizer.step()
    assert spy.threads() == {threading.get_native_id()}


def test_an_optimizer_for_each_of_many_threads():
    """Each Python thread enters a team of its own, and trains as if it were alone; torch works beside."""

    def train(seed):
        lay = LAYOUTS["axes reversed" if seed % 3 == 0 else "dense"]
        start.wait(DEADLOCK)
        torch.ones(200, 200) @ torch.ones(200, 200)
        return run(list(KINDS)[seed % len(KINDS)], [(600, 500), (7,)], lay, steps=8, seed=seed)

    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as executor:
        together = list(executor.map(train, range(8)))
    start = threading.Barrier(1)
    for seed, results in enumerate(together):
        assert all(map(torch.equal, results, train(seed)))


def test_one_optimizer_for_many_threads():
    """Steps wait for each other: none is lost, none is half done. Other threads read the state meanwhile."""
    p = Parameter(torch.zeros(300_000))
    p.grad = torch.ones(300_000)
    optimizer = subject.Adagrad([p], lr=1.0, initial_accumulator_value=1.0)

    def train(_):
        start.wait(DEADLOCK)
        for _ in range(25):
            optimizer.step()
            optimizer.state_dict()

    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(train, range(8)))
    assert float(optimizer.state[p]["step"]) == 200
    assert (optimizer.state[p]["sum"] == 201).all()
    assert (p == p[0]).all()


# Which runtime


def test_libraries_without_a_runtime():
    """One that is not there, that is no library, that is linked to none, or has nothing of that name: 0."""
    for library in (Path("/nonexistent/libtorch_cpu.so"), Path(__file__), Path(_pool.__file__)):
        assert team.parallel_of(library) == 0
    assert team.parallel_of(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so") == THREADS.parallel


@pytest.mark.parametrize("absent", ["runtime", "extension"])
def test_the_pool_where_there_is_no_team(absent, monkeypatch):
    """A torch whose runtime cannot be entered; without the extension the calling thread is alone."""
    want = run("momentum", [(700, 900)], LAYOUTS["every second"])
    if absent == "runtime":
        monkeypatch.setattr(team, "parallel_of", lambda library: 0)
    else:
        monkeypatch.setattr(pool, "available", False)
    threads = TorchThreads()
    assert threads.parallel == 0
    assert threads.get_num_threads() == torch.get_num_threads()
    spy = Spy(together=1 if absent == "extension" else 2)
    threads.runner(spy, 0)(2, 1, 2)
    assert not spy.come.broken
    assert len(spy.threads()) == spy.come.parties
    monkeypatch.setattr(THREADS, "parallel", 0)
    assert all(map(torch.equal, want, run("momentum", [(700, 900)], LAYOUTS["every second"])))


SEVERAL_RUNTIMES = """
    import os, sys

    def tasks():
        return len(os.listdir("/proc/self/task"))

    def runtimes():
        # Where the files are that hold an OpenMP runtime, and which addresses each is mapped to.
        found = {}
        for line in open("/proc/self/maps"):
            span, path = line.split()[0], line.split()[-1]
            if any(name in path for name in ("libgomp", "libiomp", "libomp")):
                found.setdefault(path, []).append([int(end, 16) for end in span.split("-")])
        return found

    def train_with_numpy():
        p = np.ones(1_000_000, np.float32)
        opt = fastopt.SGD(p, lr=0.5, momentum=0.9)
        opt.step(np.ones(1_000_000, np.float32))
        fastopt.fused.sgd(p, p + 1, lr=0.1)
        assert fastopt.schedules.Cosine(0.1, 20)(np.arange(9)).size == 9

    # NumPy's optimizers load no runtime, and beside torch they wake none, nor do the small steps of torch's own.
    import numpy as np
    import fastopt
    fastopt.set_num_threads(1)
    train_with_numpy()
    assert tasks() == 1 and runtimes() == {} and "torch" not in sys.modules

    # Another library's runtime, which comes first, is not the one that is used.
    import sklearn
    from sklearn.utils import _openmp_helpers
    others = runtimes()
    assert others and not any("torch" in path for path in others), others
    import torch, fastopt.torch
    from fastopt.backends.torch.threads import THREADS
    mine = [path for path in runtimes() if path not in others]
    assert len(mine) == 1, runtimes()
    assert any(begin <= THREADS.parallel < end for begin, end in runtimes()[mine[0]])

    train_with_numpy()
    p = torch.nn.Parameter(torch.ones(100))
    opt = fastopt.torch.Adagrad([p])
    for _ in range(3):
        p.grad = torch.ones(100)
        opt.step()
    assert tasks() == 1

    # A large step starts no thread beside those that a product has started.
    torch.set_num_threads(3)
    torch.randn(1000, 1000) @ torch.randn(1000, 1000)
    torch.randn(3_000_000).sum()
    before = tasks()
    assert before >= 3
    p, q = (torch.nn.Parameter(torch.ones(1000, 1000)) for _ in range(2))
    opt = fastopt.torch.SGD([p, q], lr=1.0, momentum=0.5)
    for _ in range(4):
        p.grad, q.grad = torch.full((1000, 1000), 0.5), torch.full((1000, 1000), 0.5).T
        opt.step()
    for _ in range(3):
        p.grad = q.grad = None
        (p * q).sum().backward()
        opt.step()
    assert tasks() == before, (before, tasks())
    assert torch.get_num_threads() == 3
    assert torch.equal(p, q)
    print("passed")
"""


@pytest.mark.exhaustive
def test_one_team_among_several_runtimes(tmp_path):
    """Nothing of OpenMP is loaded or woken before it is needed, and then it is torch's, of which there is no second."""
    alone = {"OPENBLAS_NUM_THREADS": "1"}  # which NumPy and SciPy bring
    assert run_script(SEVERAL_RUNTIMES, tmp_path, **alone) == (0, "passed\n", "")


# Fork and exit


FORK = """
    import os, select, threading, warnings, torch, fastopt.torch
    warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads

    def made(kind, strided):
        p = torch.nn.Parameter(torch.ones(1000, 400))
        opt = fastopt.torch.Adagrad([p], lr=0.5) if kind else fastopt.torch.SGD([p], lr=0.5, momentum=0.5)
        p.grad = torch.full((400, 1000), 0.25).T if strided else torch.full((1000, 400), 0.25)
        return p, opt

    def digest(models):
        return [opt_p[0].detach().numpy().tobytes() for opt_p in models]

    def step(models):
        for _, opt in models:
            opt.step()

    torch.set_num_threads(4)
    torch.randn(1000, 1000) @ torch.randn(1000, 1000)
    models = [made(kind, strided) for kind in (0, 1) for strided in (0, 1)]
    alone = [made(kind, strided) for kind in (0, 1) for strided in (0, 1)]
    want = []
    for _ in range(8):
        step(alone)
        want.append(digest(alone))
    step(models)
    step(models)
    assert digest(models) == want[1]

    def child():
        before = len(os.listdir("/proc/self/task"))
        for i in range(2, 6):
            step(models)
            assert digest(models) == want[i], i
        for _, opt in models:
            opt.state_dict()
            opt.param_groups[0]["lr"] = 0.1
        step(models)
        assert len(os.listdir("/proc/self/task")) == before == 1
        return True

    def in_child(function, seconds=30):
        # A child that hangs never closes its end of the pipe.
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                os.write(writer, b"1" if function() else b"0")
            except BaseException as error:
                os.write(writer, repr(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        ready = select.select([reader], [], [], seconds)[0]
        said = os.read(reader, 1000) if ready else b"nothing"
        if not ready:
            os.kill(pid, 9)
        os.waitpid(pid, 0)
        assert said == b"1", said

    in_child(child)
    in_child(lambda: in_child(child) is None)  # a grandchild
    assert digest(models) == want[1]
    step(models)
    assert digest(models) == want[2]

    # While another thread of the parent is inside its own team's steps.
    stop, started = threading.Event(), threading.Event()

    def keep_stepping():
        others = [made(0, 0), made(1, 1)]
        while not stop.is_set():
            step(others)
            started.set()

    thread = threading.Thread(target=keep_stepping, daemon=True)
    thread.start()
    assert started.wait(30)
    for _ in range(5):
        in_child(lambda: step(models) is None and digest(models) == want[3])
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    for i in range(3, 8):
        step(models)
        assert digest(models) == want[i], i
    print("passed")
"""


EXIT = """
    import threading, torch, fastopt.torch

    def keep_stepping(size, started):
        p = torch.nn.Parameter(torch.ones(size))
        p.grad = torch.ones(size)
        opt = fastopt.torch.SGD([p], lr=0.01, momentum=0.5)
        for _ in range(5):
            opt.step()
        started.set()
        while True:
            opt.step()

    for size in (400_000, 500_000, 1000):
        started = threading.Event()
        threading.Thread(target=keep_stepping, args=[size, started], daemon=True).start()
        assert started.wait(50)
    print("passed", flush=True)
"""


@pytest.mark.exhaustive  # processes that compile alone
def test_fork_and_exit(tmp_path):
    """A child has no team, and steps on its own thread; parent and child go on as if there were no other.

    In the end the interpreter ends quietly though threads are inside a step that repeats the last one, on a team or
    alone. In others torch's own functions are called, in which a daemon thread that is ended then aborts the process.
    """
    assert run_script(FORK + EXIT, tmp_path) == (0, "passed\npassed\n", "")


@pytest.mark.exhaustive
def test_exit_while_daemon_threads_step(tmp_path):
    """The same again, of two processes at a time."""
    with ThreadPoolExecutor(2) as executor:
        for done in executor.map(lambda _: run_script(EXIT, tmp_path), range(2)):
            assert done == (0, "passed\n", "")


def test_the_bits_are_compared():
    """Large tensors are compared element by element, and a difference is seen."""
    one, other = run("sgd", [(3,)], LAYOUTS["dense"]), run("sgd", [(3,)], LAYOUTS["dense"], steps=5)
    assert bits(one) != bits(other)
    assert not all(map(torch.equal, one, other))
