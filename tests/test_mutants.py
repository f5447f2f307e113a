"""The faults with which `.ci/mutants.py` tests these tests can still be made."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def faults():
    """The list of mutants, which is no package."""
    spec = importlib.util.spec_from_file_location("faults", ROOT / ".ci" / "faults.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MUTANTS = faults().MUTANTS


def test_there_are_mutants_everywhere():
    """Each under a name of its own, some in each part."""
    places = [mutant.file.rpartition("/")[0] for mutant in MUTANTS]
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
    assert places.count("kernels") >= 12
    assert places.count("fastopt/torch") >= 12
    assert places.count("fastopt") >= 16
    assert places.count("fastopt/step") >= 16
    assert places.count("fastopt/backends/torch") >= 8


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_can_be_made(mutant):
    """Its text occurs once in its file, the mutated code differs, and parses if it is Python, and its tests exist."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    mutated = mutant.applied(text)
    assert mutated != text
    if mutant.file.endswith(".py"):
        ast.parse(mutated)
    sources = [(ROOT / path).read_text(encoding="utf-8") for path in mutant.tests]
    names = [name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)]
    chosen = [part.split()[0] for part in mutant.only.split(" or ") if part]
    assert all(any(word in name for name in names) for word in chosen)


def test_a_text_that_is_gone_is_named():
    with pytest.raises(ValueError, match=f"{MUTANTS[0].name}: its text stands 0 times in kernels/cpu.py, not once"):
        MUTANTS[0].applied("")
