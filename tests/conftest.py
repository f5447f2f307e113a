"""Selects which tests run, and how many processes run them.

Tests that need a GPU or other people's training loops are deselected if these are missing, exhaustive sweeps unless
they are requested; the summary says so. A stand-in replaces the GPU.
"""

import functools
import gc
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
from chromium import missing_chromium
from once import folder_of_the_run

LIMIT = 5  # minutes that `pytest` may take on two cores, as CONTRIBUTING says
MOST_PROCESSES = 8  # each takes a gigabyte or two
START = time.monotonic()
CLIENTS = ["accelerate", "autograd", "ignite", "jax", "lightning", "peft", "scipy", "skorch", "transformers"]


@functools.cache
def missing_gpu():
    """Say why there is no GPU; return "" if there is one."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        cupy.zeros(1)
    except Exception as error:  # an import, a driver or a device may be missing
        return f"{type(error).__name__}: {error}"
    return ""


@functools.cache
def missing_clients():
    """Say which libraries of the extra `clients` are not installed, without importing any; return "" if all are."""
    missing = ", ".join(name for name in CLIENTS if importlib.util.find_spec(name) is None)
    return missing and f"{missing} not installed; the extra `clients` brings them"


NEEDS = {
    "gpu": ("need a GPU", missing_gpu),
    "clients": ("need other people's training loops", missing_clients),
    "browser": ("need a browser", missing_chromium),
}
MARKED_IN_FILES = ("browser", "clients")  # by each file for its own tests, so that its text says whether it has any
DESELECTED = {}  # by marker: how many, and why
NEVER_MADE = []  # how many cases of each function were left out before they became tests
KERNELS = set()  # what identifies those that the tests of all processes have used

# Waiting OpenMP threads sleep instead of spinning: pytest's processes would compete for the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser):
    """Add the option for exhaustive sweeps."""
    parser.addoption("--exhaustive", action="store_true", help="run the exhaustive sweeps too, as .ci/run does")


def pytest_xdist_auto_num_workers():
    """Run one process per core that this one may use."""
    return min(importlib.import_module("fastopt.kernels.limits").processors(), MOST_PROCESSES)


def pytest_configure(config):
    """Let the processes that this one starts share what they compile; read no more files than are asked for."""
    folder_of_the_run()
    marker = config.option.markexpr
    if marker in MARKED_IN_FILES and config.args_source is config.ArgsSource.TESTPATHS:
        config.args = files_with(marker)


def files_with(marker):
    """Return the files whose tests have a marker: to import all others takes each process half a minute."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    return [str(file) for file in files if f"pytest.mark.{marker}" in file.read_text(encoding="utf-8")]


def exhaustively(config):
    """Whether exhaustive sweeps were requested."""
    return config.option.exhaustive or "exhaustive" in config.option.markexpr


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc):
    """Leave out exhaustive cases before pytest makes tests of them, for seconds; but one that is named is found."""
    yield
    if not (exhaustively(metafunc.config) or any("::" in arg for arg in metafunc.config.args)):
        cases = metafunc._calls
        left = [case for case in cases if not any(mark.name == "exhaustive" for mark in case.marks)] or cases[:1]
        NEVER_MADE.append(len(cases) - len(left))
        cases[:] = left


def pytest_collection_modifyitems(config, items):
    """Deselect tests whose requirements are missing, and sweeps that were not requested."""
    marked = {marker: [] for marker in (*NEEDS, "exhaustive")}  # found in one pass over all tests
    for item in items:
        for mark in item.iter_markers():
            if mark.name in marked:
                marked[mark.name].append(item)
    gone = set()
    for marker, (need, missing) in NEEDS.items():
        if marked[marker] and missing():
            deselect(config, gone, marker, marked[marker], f"{need}: {missing()}")
    if not exhaustively(config):
        why = "are exhaustive sweeps: pytest --exhaustive runs them too"
        deselect(config, gone, "exhaustive", marked["exhaustive"], why, sum(NEVER_MADE))
    items[:] = [item for item in items if item not in gone]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect tests, and no garbage: their modules and parameters stay, and each collection would walk them all."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def deselect(config, gone, marker, marked, why, others=0):
    """Deselect the tests with a marker, but for those that are gone already; and say so, and how many others are."""
    left = [item for item in dict.fromkeys(marked) if item not in gone]
    if len(left) + others:
        DESELECTED[marker] = (len(left) + others, why)
        config.hook.pytest_deselected(items=left)
        gone.update(left)


def pytest_sessionfinish(session):
    """Tell the process that shows the summary, if another one does."""
    KERNELS.update(kernels_used())
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"deselected": DESELECTED, "kernels": list(KERNELS)}
    elif of_all_tests(session.config) and too_many_kernels():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Get a pytest-xdist process's deselected tests; one that has crashed reports none."""
    told = getattr(node, "workeroutput", {})
    DESELECTED.update(told.get("deselected", {}))
    kinds = told.get("kernels", ())  # in which lists were tuples
    KERNELS.update(tuple(tuple(part) if isinstance(part, list) else part for part in kind) for kind in kinds)


def pytest_terminal_summary(terminalreporter, config):
    """Say what was left out, and how long all tests took."""
    for count, why in DESELECTED.values():
        terminalreporter.write_line(f"{count} tests were deselected, which {why}")
    if of_all_tests(config):
        if too_many_kernels():
            terminalreporter.write_line(f"FAILED: {too_many_kernels()}", red=True)
        minutes, seconds = divmod(round(time.monotonic() - START), 60)
        terminalreporter.write_line(f"all tests: {minutes} min {seconds} s; on two cores at most {LIMIT} min")


def of_all_tests(config):
    """Whether all tests were selected."""
    return config.args_source is config.ArgsSource.TESTPATHS and not (config.option.markexpr or config.option.keyword)


def kernels_used():
    """Return what `kernels.cpu.kernel` was asked for in this process."""
    cpu = sys.modules.get("fastopt.kernels.cpu")
    return () if cpu is None else cpu._kernels


def too_many_kernels():
    """Say so if kernels with stages, with states of 16 bits or with random bits outnumber those with none of these."""
    kinds = [kind_of(*kernel) for kernel in KERNELS]
    found = {kind: kinds.count(kind) for kind in ("stages", "states of 16 bits", "random bits", "none of these")}
    if max(found.values()) == found["none of these"]:
        return ""
    counted = ", ".join(f"{count} with {kind}" for kind, count in found.items())
    return (
        f"tests use these kernels: {counted}; each is compiled once: let all of these meet on two rules, and on the "
        "others a few pairs"
    )


def kind_of(rule, dtype, stages, states, gradient="", master="", rounding=""):
    """Say what a kernel has beside its rule."""
    if rounding:
        return "random bits"
    return "states of 16 bits" if states else "stages" if stages else "none of these"


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_collected():
    """Freeze modules and tests, which every full garbage collection would walk for half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def stand_in(monkeypatch):
    """The host instead of a GPU, with nothing on its streams."""
    with importlib.import_module("devices").standing_in(monkeypatch) as device:
        yield device


@pytest.fixture
def pretended(monkeypatch):
    """The same, and torch takes it for a GPU."""
    tensors = importlib.import_module("cuda_tensors")
    with importlib.import_module("devices").standing_in(monkeypatch):
        tensors.pretend(monkeypatch)
        yield
        tensors.KEPT.clear()


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The host instead of a GPU, then a real one."""
    if request.param == "stand-in":
        yield request.getfixturevalue("stand_in")
    else:
        device = importlib.import_module("devices").Cuda()
        yield device
        device.synchronize()


@pytest.fixture
def offline(monkeypatch):
    """Without a network for libraries that load models, and with torch's random state restored."""
    import torch

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    with torch.random.fork_rng():
        yield
