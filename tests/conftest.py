"""What not every machine has: a GPU, other people's training loops.

Tests that need them are deselected where they are missing, which the summary says. A stand-in takes the GPU's place.
"""

import functools
import importlib
import importlib.util

import pytest

CLIENTS = ["accelerate", "autograd", "ignite", "jax", "lightning", "peft", "scipy", "skorch", "transformers"]


@functools.cache
def missing_gpu():
    """Say why there is no GPU; nothing where there is one."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        cupy.zeros(1)
    except Exception as error:  # an import, a driver, a device: whatever is not there
        return f"{type(error).__name__}: {error}"
    return ""


@functools.cache
def missing_clients():
    """Say which libraries of the extra `clients` are not installed, without importing any; nothing where all are."""
    missing = ", ".join(name for name in CLIENTS if importlib.util.find_spec(name) is None)
    return missing and f"{missing} not installed; the extra `clients` brings them"


NEEDS = {"gpu": ("a GPU", missing_gpu), "clients": ("other people's training loops", missing_clients)}  # by marker
DESELECTED = {}


def pytest_collection_modifyitems(config, items):
    """Leave out what needs something that is missing."""
    for marker, (_, missing) in NEEDS.items():
        needing = [item for item in items if item.get_closest_marker(marker)]
        if needing and missing():
            DESELECTED[marker] = len(needing)
            config.hook.pytest_deselected(items=needing)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


def pytest_terminal_summary(terminalreporter):
    """Say what was left out."""
    for marker, count in DESELECTED.items():
        what, missing = NEEDS[marker]
        terminalreporter.write_line(f"{count} tests that need {what} were deselected: {missing()}")


@pytest.fixture
def stand_in(monkeypatch):
    """The host in the place of a GPU, with nothing on its streams."""
    with importlib.import_module("devices").standing_in(monkeypatch) as device:
        yield device


@pytest.fixture
def pretended(monkeypatch):
    """The same, in which torch believes."""
    tensors = importlib.import_module("cuda_tensors")
    with importlib.import_module("devices").standing_in(monkeypatch):
        tensors.pretend(monkeypatch)
        yield
        tensors.KEPT.clear()


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The host in the place of a GPU, then a real one."""
    if request.param == "stand-in":
        yield request.getfixturevalue("stand_in")
    else:
        device = importlib.import_module("devices").Cuda()
        yield device
        device.synchronize()


@pytest.fixture
def offline(monkeypatch):
    """No network for what loads models from one, and torch's random numbers as they were."""
    import torch

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    with torch.random.fork_rng():
        yield
