"""The rooms of the house: who may know whom, and how much a file may hold."""

import ast
import re
import subprocess
import sys

import pytest
from imports import ROOT, circles, graph, modules

SOURCES = sorted(file.name for file in (ROOT / "kernels").iterdir() if file.suffix in {".py", ".h", ".cpp", ".cu"})
ABOVE = re.compile(r"\b(optimizers?|param_?groups?|groups?)\b", re.IGNORECASE)
MOST_LINES = 420  # of code in a file of fastopt/: about 400


def test_no_import_circle():
    """Lazy imports and those for types count, and the packages that an import runs."""
    assert circles(graph()) == []


def test_circles_are_found():
    """Two that lead to each other, and one that leads to itself; nothing else."""
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(edges) == [["b", "c"], ["e"]]


def test_imports_are_all_found():
    """Those of a process that has imported everything: none was missed in the sources."""
    found = graph()
    assert {"fastopt.step.clock", "fastopt.step.plan"} <= found["fastopt.step.stepper"]
    assert "fastopt.step.device_clock" in found["fastopt.step.stepper"]  # lazily
    assert "fastopt.backends.torch.scheduler" in found["fastopt.schedules"]
    assert "fastopt.torch" in found["fastopt"]


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("fastopt.kernels", ("fastopt.",)),
        ("fastopt.step", ("fastopt.backends", "fastopt.base", "fastopt.optimizers", "fastopt.torch", "fastopt.groups")),
        ("fastopt.backends", ("fastopt.base", "fastopt.optimizers", "fastopt.torch", "fastopt.groups")),
        ("fastopt.schedules", ("fastopt.step", "fastopt.base", "fastopt.optimizers", "fastopt.torch")),
    ],
)
def test_imports_run_one_way(lower, upper):
    """Kernels know nothing of what is above them, the machinery of a step no library, libraries no optimizers."""
    edges = {name: imported for name, imported in graph().items() if name == lower or name.startswith(f"{lower}.")}
    assert edges
    above = {
        (name, other)
        for name, imported in edges.items()
        for other in imported
        if other.startswith(upper) and not other.startswith(lower)
    }
    assert above == set()


@pytest.mark.parametrize("name", SOURCES)
def test_kernels_know_no_optimizers_or_groups(name):
    """They know tables, rules and schedule records: nothing above them, in comments either."""
    lines = (ROOT / "kernels" / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if ABOVE.search(line)] == []


def code_lines(text):
    """Count the lines of code: no blank ones, comments and docstrings."""
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in documented for i, line in lines)


def test_no_file_is_a_drawer():
    """None of fastopt/ has more code than one can keep in mind."""
    files = {path for path in modules().values() if path.is_relative_to(ROOT / "fastopt")}
    long = {str(path.relative_to(ROOT)): code_lines(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in long.items() if lines > MOST_LINES} == {}


def test_a_step_on_the_cpu_imports_nothing_of_gpus():
    """Nor of torch: who trains NumPy arrays does not wait for what he does not use."""
    script = (
        "import sys, numpy as np, fastopt; fastopt.SGD(np.ones(3)).step(np.ones(3));"
        "print([m for m in sys.modules if m in ('fastopt.step.device_clock', 'fastopt.step.gpu', 'torch', 'cupy')])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
