"""Tests of GPUs: on a stand-in, and on a real one; deselected where CuPy sees none, which the summary says."""

import functools
import importlib

import pytest


@functools.cache
def missing():
    """Say why there is no GPU; nothing where there is one."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        cupy.zeros(1)
    except Exception as error:  # an import, a driver, a device: whatever is not there
        return f"{type(error).__name__}: {error}"
    return ""


DESELECTED = []


def pytest_collection_modifyitems(config, items):
    """Leave out what needs a GPU, where there is none."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and missing():
        DESELECTED.extend(needing)
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


def pytest_terminal_summary(terminalreporter):
    """Say what was left out."""
    if DESELECTED:
        terminalreporter.write_line(f"{len(DESELECTED)} tests that need a GPU were deselected: {missing()}")


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
