"""Compiling and caching: processes that share an empty cache, no cache, lazy imports, second steps, machine code."""

import functools
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rule_cases
from compilation import Recorder
from fastopt.bench import oracle
from fastopt.kernels import cpu, dtypes
from fastopt.kernels.tables import ABI
from instructions import FUSED, OUTLINED, any_arithmetic, operations, packed
from numba import cfunc
from numba.core import event
from once import once
from pairs import pairs, usually
from tolerances import ONE_STEP

import fastopt

DTYPES = ("float32", "float64")
EVERY = [(name, dtype) for name in cpu.STATES_OF for dtype in DTYPES]
VARIANTS = pairs(together=1, name=rule_cases.BY_STATES, dtype=DTYPES)
variants = pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*variant, marks=[] if variant in VARIANTS else pytest.mark.exhaustive) for variant in EVERY],
)
TIMEOUT = 120

# After two steps every rule gives a different number, so a wrong kernel shows. Gradients that get smaller tell
# AMSGrad from Adam.
OPTIONS = {**rule_cases.OPTIONS, "betas": (0.5, 0.5), "alpha": 0.5, "eps": 0.5, "weight_decay": 0.1}
GRADIENTS = (0.5, 0.25)


def after_two_steps(name):
    """What the oracle makes of a parameter of 1."""
    p, states = np.ones(()), None
    for step, g in enumerate(GRADIENTS, 1):
        p, states = oracle.RULES[name](p, g, states, step, OPTIONS)
    return float(p)


EXPECTED = {name: after_two_steps(name) for name in oracle.RULES}

CHECK = f"""
    import json, os, sys, numpy as np

    def check(name, dtype):
        import fastopt
        from fastopt.backends.numpy.device import CPU
        from fastopt.step.launch import Variant
        rule, epsilon = fastopt.rules.RULES[name], np.finfo(dtype).eps
        for size in (3, 1000):
            p, g, *states = arrays = [np.full(size, x, dtype) for x in (1.0, 0.0, *[0.0] * len(rule.states))]
            for step, gradient in enumerate({GRADIENTS}, 1):
                g[:] = gradient
                row = rule.row({OPTIONS}, step, step == 1)
                CPU.update(Variant(rule.name, dtype), size, [array.ctypes.data for array in arrays], {{}}, row)
            assert (abs(p - {EXPECTED}[name]) < {ONE_STEP} * epsilon).all(), (name, dtype, p)

    def check_all(shift=0):
        from fastopt.kernels import cpu, dtypes
        variants = {VARIANTS}
        for name, dtype in variants[shift:] + variants[:shift]:
            check(name, dtype)
        return cpu
"""


def start(script, *arguments, cwd, **environment):
    """Start a script after the checks above in a Python process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHECK) + textwrap.dedent(script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """What a process wrote, once it has ended without an error or a word on stderr."""
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    return output.split()


def run(script, *arguments, cwd, **environment):
    """Run a script and return the words it wrote."""
    return ended(start(script, *arguments, cwd=cwd, **environment))


# The disk cache


@pytest.fixture(scope="module")
def filled():
    """A cache directory that several processes have filled."""
    return once("cache", fill) / "numba"


def fill(folder):
    """Let several processes, started at once, fill a cache: each in another order of all.

    Each leaves the assembly of what it compiled itself, since code from the cache cannot be inspected.
    """
    cache = folder / "numba"
    script = """
        import fastopt.kernels.cpu
        print("ready", flush=True)
        sys.stdin.readline()
        cpu = check_all(int(sys.argv[1]))
        new = {"-".join((*key[:2], *key[2])): kernel for key, kernel in cpu._kernels.items() if kernel.cache_hits == 0}
        with open(f"assembly{sys.argv[1]}.json", "w") as file:
            json.dump({key: kernel._library.get_asm_str() for key, kernel in new.items()}, file)
        print("passed")
    """
    processes = [start(script, str(i), cwd=cache.parent, NUMBA_CACHE_DIR=str(cache)) for i in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [ended(process) for process in processes] == [["passed"]] * len(processes)


@pytest.mark.exhaustive  # processes that compile alone
def test_concurrent_cold_starts_compile_each_kernel_once(filled):
    """One index and one kernel for each variant, whose names say which, and one process that compiled it."""
    compiled = [key for path in filled.parent.glob("assembly*.json") for key in json.loads(path.read_text())]
    assert sorted(compiled) == sorted(map("-".join, VARIANTS))
    for suffix in ("nbi", "nbc"):
        names = sorted(path.name for path in filled.rglob(f"*.{suffix}"))
        assert len(names) == len(VARIANTS), names
        for name, dtype in VARIANTS:
            assert sum(f".{name}_{dtype}_abi{ABI}-" in found for found in names) == 1, name


@pytest.mark.exhaustive  # processes that compile alone
def test_a_fresh_process_gets_every_kernel_from_the_cache(filled, tmp_path):
    """All are hits, all are right, and nothing is written."""
    before = sorted((path.name, path.stat().st_mtime_ns) for path in filled.rglob("*.nb?"))
    script = """
        cpu = check_all()
        print(sum(kernel.cache_hits for kernel in cpu._kernels.values()), len(cpu._kernels))
        print(all(cpu.cached(*key) for key in cpu._kernels))
    """
    assert run(script, cwd=tmp_path, NUMBA_CACHE_DIR=str(filled)) == [str(len(VARIANTS))] * 2 + ["True"]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in filled.rglob("*.nb?")) == before


DAMAGES = {
    "garbage": ("nbi", lambda path, data: path.write_bytes(bytes(reversed(data)))),
    "kernel empty": ("nbc", lambda path, data: path.write_bytes(b"")),
    "empty": ("nbi", lambda path, data: path.write_bytes(b"")),
    "a directory": ("nbi", lambda path, data: path.mkdir()),
}


@pytest.mark.exhaustive  # a process that compiles alone
@pytest.mark.parametrize("count", [2, len(DAMAGES)])
def test_a_damaged_cache_is_not_believed(filled, tmp_path, count):
    """What a full or lost disk leaves behind costs only time; each kernel is damaged in another way."""
    cache = tmp_path / "cache"
    shutil.copytree(filled, cache)
    for (name, dtype), (suffix, damage) in zip(VARIANTS[:count], DAMAGES.values(), strict=False):
        (path,) = cache.rglob(f"*.{name}_{dtype}_abi{ABI}-*.{suffix}")
        data = path.read_bytes()
        path.unlink()
        damage(path, data)
    assert run("check_all(); print('passed')", cwd=tmp_path, NUMBA_CACHE_DIR=str(cache)) == ["passed"]


EVALUATE = """
    from fastopt.schedules import Cosine, Warmup
    from fastopt.kernels import schedules

    if sys.argv[1:]:
        print("ready", flush=True)
        sys.stdin.readline()
    schedule = Warmup(Cosine(0.5, 100), 10)
    assert [schedule(0), schedule(10), schedule([5, 60, 110]).tolist()] == [0.0, 0.5, [0.25, schedule(60), 0.0]]
    print(*(sum(evaluator.stats.cache_hits.values()) for evaluator in schedules.evaluators()))
"""


def fill_with_schedules(folder):
    """Let two processes, started at once, evaluate schedules: one of them compiles, the other finds it."""
    processes = [start(EVALUATE, "wait", cwd=folder, NUMBA_CACHE_DIR=str(folder)) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(ended(process) for process in processes) == [["0", "0"], ["1", "1"]]


@pytest.mark.exhaustive  # processes that compile alone
def test_schedules_are_compiled_once(tmp_path):
    """By one of two processes that start at once; later ones find them."""
    cache = once("schedules", fill_with_schedules)
    for suffix in ("nbi", "nbc"):
        names = [path.name for path in cache.rglob(f"*.{suffix}")]
        assert len(names) == 2, names
        assert all(f"_abi{ABI}-" in name for name in names)
    assert run(EVALUATE, cwd=tmp_path, NUMBA_CACHE_DIR=str(cache)) == ["1", "1"]


@pytest.mark.exhaustive  # in which the schedules are compiled twice
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_schedules_are_compiled(tmp_path):
    """It waits until they are, whatever locks the modules have that compiling imports, and the child goes on.

    They are compiled since files in the cache are damaged, which are not believed.
    """
    cache = tmp_path / "numba"
    shutil.copytree(once("schedules", fill_with_schedules), cache)
    for path in cache.rglob("*.nbc"):
        path.write_bytes(b"")
    script = """
        import threading
        import fastopt
        from fastopt.kernels import lazy
        from fastopt.schedules import Cosine

        thread = threading.Thread(target=lambda: Cosine(0.5, 10)(0))
        thread.start()
        while "numba" not in sys.modules:
            pass
        child = os.fork()
        if child == 0:
            os._exit(0 if Cosine(0.5, 10)(0) == 0.5 else 1)
        print(os.waitpid(child, 0)[1])
        thread.join()
        from fastopt.kernels import schedules
        print(*(sum(evaluator.stats.cache_hits.values()) for evaluator in schedules.evaluators()))
    """
    assert run(script, cwd=tmp_path, NUMBA_CACHE_DIR=str(cache)) == ["0", "0", "0"]


def copied_package(folder):
    """Copy the package, as if installed, to where nobody can put a cache beside it."""
    package = folder / "fastopt"
    without = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(Path(fastopt.__file__).parent, package, ignore=without)
    shutil.copytree(Path(cpu.__file__).parent, package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "kernels" / "__pycache__").write_text("a file, so not even root can make a directory of it")


@pytest.mark.exhaustive  # by default, test_advice_elsewhere.py has no such directory
@pytest.mark.parametrize("directory", ["file/below", None])
def test_without_a_writable_cache(directory, tmp_path):
    """Kernels are compiled in each process, and say so; nothing is left behind, nothing complains."""
    copied_package(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    nowhere = {name: str(blocked / "home") for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")}
    given = {"NUMBA_CACHE_DIR": str(tmp_path / directory) if directory else ""}
    files = sorted(tmp_path.rglob("*"))
    script = """
        import fastopt
        check("momentum", "float32")
        from fastopt.kernels import cache, cpu
        print(os.path.dirname(os.path.dirname(fastopt.__file__)) == os.getcwd())
        print(cache.directory(), cpu.cached("momentum", "float32"), cpu.kernel("momentum", "float32").cache_hits)
    """
    assert run(script, cwd=tmp_path, **nowhere, **given) == ["True", "None", "False", "0"]
    assert sorted(tmp_path.rglob("*")) == files


def test_a_wrong_kernel_would_show():
    """By more than rounding, in either dtype."""
    numbers = sorted(EXPECTED.values())
    assert np.diff(numbers).min() > 2 * ONE_STEP * np.finfo(np.float32).eps


def flat(values):
    """All that is in tuples, in tuples of these, or beside them."""
    for value in values:
        yield from flat(value) if isinstance(value, tuple) else (value,)


def test_kernels_have_names_of_their_own():
    """No two variants share a cache index; the names say rule, dtype and ABI; closures hold plain constants."""
    every = [(name, dtype, (), ()) for name in cpu.STATES_OF for dtype in dtypes.DTYPES]
    every += [
        ("adam", "float32", (), states) for states in (("bfloat16",) * 2, ("float16",) * 2, ("float16", "float32"))
    ]
    types = {kind for dtype in dtypes.DTYPES.values() for kind in (dtype.stored, dtype.real)}
    kernels = [cpu.make_kernel(*variant) for variant in every]
    for (name, dtype, _, states), kernel in zip(every, kernels, strict=True):
        assert kernel.__qualname__ == kernel.__name__ == "_".join((name, dtype, *states, f"abi{ABI}"))
        for value in flat(inspect.getclosurevars(kernel).nonlocals.values()):
            assert value is None or isinstance(value, int | float | str) or value in types
    assert len({kernel.__qualname__ for kernel in kernels}) == len(every)


def test_threads_that_ask_at_once_get_one_kernel(monkeypatch):
    """A kernel is compiled once, by whoever comes first."""
    monkeypatch.setattr(cpu, "_kernels", {})
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(lambda variant: cpu.kernel(*variant), VARIANTS * 8))
    assert len(set(map(id, found))) == len(cpu._kernels) == len(VARIANTS)


# Imports


def test_import_brings_numpy_and_little_else(tmp_path):
    """Numba comes with the first kernel; what commands need, and torch, do not come at all."""
    script = """
        heavy = {"numba", "llvmlite", "torch", "matplotlib", "rich", "sklearn", "cupy", "pytest"}
        import fastopt
        fastopt.set_num_threads(fastopt.get_num_threads())
        print(*(heavy & set(sys.modules)), "|")
        check("sgd", "float32")
        print(*(heavy & set(sys.modules)))
    """
    words = run(script, cwd=tmp_path)
    assert words[0] == "|"
    assert set(words[1:]) == {"numba", "llvmlite"}


# The second step

KINDS = {
    **{rule: rule_cases.OPTIMIZERS[rule] for rule in ("sgd", "momentum", "nesterov", "adagrad", "adam")},
    "decaying": rule_cases.optimizer_of("adagrad", lr=0.1, lr_decay=0.1),
    "scheduled": rule_cases.optimizer_of("momentum", lr=lambda step: 0.1 / (1 + step)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def compiles(act):
    """What Numba compiles while something is done."""
    recorder = Recorder()
    with (
        event.install_listener("numba:compiler_lock", recorder),
        event.install_listener("numba:compile", recorder),
        event.install_listener("numba:run_pass", recorder),
        event.install_listener("numba:llvm_lock", recorder),
    ):
        act()
    return recorder.events


@pytest.mark.parametrize("kind", usually(["momentum", "scheduled"], KINDS))
def test_the_second_step_compiles_nothing(kind, monkeypatch):
    """Nothing is compiled or loaded after the first step, whatever the values, sizes and layouts then."""
    make, options = KINDS[kind]
    params = [np.ones((30, 20), np.float32), np.ones(70_000), np.ones((), np.float32)]
    grads = [np.ones((30, 20), np.float32), np.ones(70_000), np.ones((), np.float32)]
    opt = make(params, **options)
    monkeypatch.setattr(cpu, "_kernels", {})
    assert compiles(lambda: opt.step(grads))  # the test can see what it tests for
    before = dict(cpu._kernels)

    def go_on():
        opt.step(grads)
        opt.step([None, grads[1], None])
        opt.step([grads[0].T.copy().T, np.ones(140_000)[::2], np.float32(1)])
        opt.bind(grads)
        opt.param_groups[0]["lr"] = 0.01
        opt.step()
        opt.load_state_dict(opt.state_dict())
        opt.step()
        make([np.ones(9), np.ones((4, 5), np.float32)], **options).step([np.ones(9), np.ones((4, 5), np.float32)])

    assert compiles(go_on) == []
    assert cpu._kernels == before


def peak_bytes(act):
    """How much more memory Python and NumPy hold at the worst moment of something than before it."""
    act()  # compiled untraced, which is several times as quick
    tracemalloc.start()
    try:
        act()  # what is allocated once is there now
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        act()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_peak_bytes_sees_arrays():
    """NumPy's own memory counts, and so does what is freed at once."""
    assert peak_bytes(lambda: np.ones(1000).sum()) >= 8000
    assert peak_bytes(lambda: None) < 300


@kinds
@pytest.mark.parametrize(("count", "size"), [(1, 500_000), (6, 1000), (1000, 8)])
def test_a_bound_step_allocates_no_array(kind, count, size):
    """Whatever the number of tensors and elements, a few small Python objects at the most."""
    make, options = KINDS[kind]
    params = [np.ones(size, np.float32) for _ in range(count)]
    opt = make(params, **options)
    opt.bind([np.ones(size, np.float32) for _ in range(count)])
    opt.step()
    assert peak_bytes(opt.step) < 1500


@pytest.mark.parametrize("kind", usually(["momentum", "scheduled"], KINDS))
def test_a_bound_step_in_another_order_allocates_no_array(kind):
    """Neither do gradients that are gathered: the scratch is kept."""
    make, options = KINDS[kind]
    opt = make(np.ones((700, 500)), **options)
    opt.bind(np.ones((700, 500), order="F"))
    opt.step()
    assert peak_bytes(opt.step) < 1500


@kinds
@pytest.mark.parametrize(("count", "size"), [(1, 500_000), (6, 50_000)])
def test_a_step_with_fresh_gradients_allocates_no_array(kind, count, size):
    """Some bytes of addresses for each tensor."""
    make, options = KINDS[kind]
    opt = make([np.ones(size, np.float32) for _ in range(count)], **options)
    several = [[np.ones(size, np.float32) for _ in range(count)] for _ in range(2)]
    opt.step(several[0])
    assert peak_bytes(lambda: [opt.step(grads) for grads in several]) < 2500


@pytest.mark.parametrize(
    ("name", "states", "options"),
    [
        ("sgd", 0, {}),
        ("momentum", 1, {"momentum": 0.9}),
        ("nesterov", 1, {"momentum": 0.9}),
        ("adagrad", 1, {}),
        ("rmsprop", 3, {"momentum": 0.9}),
        ("adam", 2, {"step": 1}),
        ("adamw", 3, {"step": 1}),
    ],
)
def test_a_single_call_allocates_no_array(name, states, options):
    """A second call of the same size keeps its tables."""
    p, g, *given = (np.ones(500_000, np.float32) for _ in range(2 + states))
    assert peak_bytes(lambda: getattr(fastopt.fused, name)(p, g, *given, lr=0.1, **options)) < 2500


# The code


@pytest.fixture
def code(filled, name, dtype):
    """The code of a kernel, as some process compiled it, or as this one does."""
    for path in filled.parent.glob("assembly*.json"):
        if found := json.loads(path.read_text()).get(f"{name}-{dtype}"):
            return found
    return compiled_here(name, dtype)


@functools.cache
def compiled_here(name, dtype):
    """The code of a kernel that no process had to compile."""
    return cpu.make_cfunc(cache=False)(cpu.make_kernel(name, dtype))._library.get_asm_str()


@pytest.mark.exhaustive  # processes that compile alone
@variants
def test_loops_are_vectorised(code, name, dtype):
    """Multiplications and subtractions are packed; with AdaGrad, roots and divisions too."""
    for operation in operations(name):
        assert re.search(packed(operation, dtype), code), operation
    assert not re.search(OUTLINED, code)


@pytest.mark.exhaustive  # processes that compile alone
@variants
def test_loops_stay_in_their_precision(code, dtype):
    """No arithmetic in the other precision; a hyper row's doubles are converted to float, never floats to double."""
    other = any_arithmetic("float64" if dtype == "float32" else "float32")
    assert [line.strip() for line in code.splitlines() if re.search(other, line)] == []


@pytest.mark.exhaustive  # processes that compile alone
@variants
def test_nothing_is_contracted(code):
    """No fused multiply-add: the same bits on every processor."""
    assert re.findall(FUSED, code) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_patterns_find_what_they_look_for(dtype):
    """Loops that do all that the kernels must not are seen to do it."""
    other = "float64" if dtype == "float32" else "float32"
    real = np.dtype(other).type

    def mixed(job, begin, end, worker):
        x = cpu.carray(cpu.pointer(job), end, real)
        for i in range(end):
            x[i] = np.sqrt(x[i] * x[i] - x[i]) / (x[i] + real(3))

    def contracted(job, begin, end, worker):
        x = cpu.carray(cpu.pointer(job), end, real)
        for i in range(end):
            x[i] = x[i] * x[i] + x[i]

    code = cfunc(cpu.SIGNATURE, error_model="numpy")(mixed)._library.get_asm_str()
    for operation in operations("adagrad"):
        assert re.search(packed(operation, other), code)
        assert not re.search(packed(operation, dtype), code)
    assert re.search(any_arithmetic(other), code)
    assert not re.search(FUSED, code)
    code = cfunc(cpu.SIGNATURE, error_model="numpy", fastmath={"contract"})(contracted)._library.get_asm_str()
    features = cfunc(cpu.SIGNATURE)(contracted)._library.codegen._get_host_cpu_features()
    if "+fma" in features or platform.machine() in ("aarch64", "arm64"):
        assert re.search(FUSED, code)
