"""Fixtures for the benchmark's tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend that the machine is quiet: the tests that run beside these would disturb every measurement."""
    monkeypatch.setattr("fastopt.bench.quiet.STAT", tmp_path / "nothing")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The host instead of a GPU, with the stand-ins for CuPy and for torch's CUDA from the folder of tests."""
    import torch
    from fastopt.bench.gpu.device import Device

    monkeypatch.setattr("gc.collect", lambda generation=2: 0)  # which would take much of the time
    cupy, tensors, devices = map(importlib.import_module, ("cupy_stand_in", "cuda_tensors", "devices"))
    with devices.standing_in(monkeypatch):
        tensors.pretend(monkeypatch)
        yield Device(cupy, torch)
        tensors.KEPT.clear()
