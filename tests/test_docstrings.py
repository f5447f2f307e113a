"""What `help` shows of what users hold."""

import inspect
import re

import pytest

import fastopt
import fastopt.torch
from fastopt.schedules import SCHEDULES

CLASSES = {f"{module.__name__}.{name}": getattr(module, name)
           for module in (fastopt, fastopt.torch)
           for name in ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW")}  # fmt: skip


@pytest.mark.parametrize("cls", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedules_signature_has_short_names(cls):
    """How its fields are checked is not for the reader."""
    assert "Annotated" not in str(inspect.signature(cls))


def referred(cls):
    """Of a docstring's arguments that are described elsewhere: ``{name: where}``."""
    entries = re.findall(r"^    (\w[^\n]*)\n +As for `(\w+)`", cls.__doc__, re.MULTILINE)
    return {name: where for names, where in entries for name in names.partition(" : ")[0].split(", ")}


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_described_elsewhere_is_described_there(name):
    """Nobody is sent on from there."""
    module = name.rpartition(".")[0]
    for argument, where in referred(CLASSES[name]).items():
        assert argument not in referred(CLASSES[f"{module}.{where}"])
        assert re.search(rf"^    (\w+, )*{argument}\b", CLASSES[f"{module}.{where}"].__doc__, re.MULTILINE), argument
