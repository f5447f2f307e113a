"""What tests of the benchmark on GPUs share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other tests run beside these, which would disturb all that is measured here."""
    monkeypatch.setattr("fastopt.bench.quiet.STAT", tmp_path / "nothing")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The host in the place of a GPU: with stand-ins for CuPy and for torch's CUDA, from the folder of tests."""
    import torch
    from fastopt.bench.gpu.device import Device

    monkeypatch.setattr("gc.collect", lambda generation=2: 0)  # which would take a good part of the time
    cupy, tensors, devices = map(importlib.import_module, ("cupy_stand_in", "cuda_tensors", "devices"))
    with devices.standing_in(monkeypatch):
        tensors.pretend(monkeypatch)
        yield Device(cupy, torch)
        tensors.KEPT.clear()
