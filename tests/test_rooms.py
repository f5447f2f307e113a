"""Which modules may import which, and how long a file may be."""

import ast
import json
import re

import pytest
from imports import ROOT, ancestors, circles, graph, modules
from processes import run_script

from fastopt.lab import EXPERIMENTS

SOURCES = sorted(file.name for file in (ROOT / "kernels").iterdir() if file.suffix in {".py", ".h", ".cpp", ".cu"})
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ABOVE = re.compile(r"\b(optimizers?|param_?groups?|groups?)\b", re.IGNORECASE)
MOST_LINES = 420  # of code in a file of fastopt/


def test_the_page_for_contributors_says_where_everything_is():
    """Every file but the lab's experiments, of which there is one each."""
    section = CONTRIBUTING.partition("## Where things are")[2].partition("\n## ")[0]
    named = {*re.findall(r"[\w-]+\.(?:py|h|cpp|cu|cmake)\b", section)}
    files = {path for folder in ("fastopt", "kernels", "bench", "tests") for path in (ROOT / folder).rglob("*.*")}
    files = {path for path in files if path.suffix in {".py", ".h", ".cpp", ".cu", ".cmake"}}
    ours = {path.name for path in files if not path.is_relative_to(ROOT / "bench/gpu")} - {"__init__.py"}
    assert named <= ours
    experiments = {f"{name}.py" for name in EXPERIMENTS}
    assert {name for name in ours - named - experiments if not name.startswith("test_")} == set()


def test_no_import_circle():
    """Lazy imports and those for types count, and the packages that an import runs."""
    assert circles(graph()) == []


def test_circles_are_found():
    """Two that lead to each other, and one that leads to itself; nothing else."""
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(edges) == [["b", "c"], ["e"]]


# Notes who imports what while it imports everything; modules that need a library that is not installed are left out.
NOTING = """
import builtins, importlib, importlib.util, json

plain, noted = builtins.__import__, set()

def noting(name, given=None, local=None, wanted=(), level=0):
    importer, package = ((given or {}).get(key) or "" for key in ("__name__", "__package__"))
    if importer.startswith("fastopt"):
        origin = importlib.util.resolve_name("." * level + name, package)
        noted.update((importer, part) for part in (origin, *(f"{origin}.{each}" for each in wanted or ())))
    return plain(name, given, local, wanted, level)

builtins.__import__ = noting
for module in MODULES:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        assert not error.name.startswith("fastopt"), error
print(json.dumps(sorted(noted)))
"""


@pytest.mark.exhaustive  # a process that imports everything
def test_imports_are_all_found(tmp_path):
    """Those that Python makes while it imports everything, and some that it makes later."""
    found = graph()
    code, output, errors = run_script(NOTING.replace("MODULES", repr([*found])), tmp_path)
    assert code == 0, errors
    noted = {(name, other) for name, other in json.loads(output) if name in found and other in found}
    assert ("fastopt.step.stepper", "fastopt.step.clock") in noted
    assert {(name, other) for name, other in noted if other not in found[name] | ancestors(name)} == set()
    assert "fastopt.step.device_clock" in found["fastopt.step.stepper"]
    assert "fastopt.torch" in found["fastopt"]


def levels():
    """Those of CONTRIBUTING's table, from top to bottom: names of modules and packages."""
    table = re.search(r"^Imports run one way.*?\n\n((?:    [^\n]*\n)+)", CONTRIBUTING, re.MULTILINE | re.DOTALL)[1]
    rows = [re.split(" {2,}", line.strip())[0] for line in table.splitlines()]
    return [tuple(f"fastopt.{name}" for name in re.findall(r"(\w+)(?:\.py|/)", row)) for row in rows]


# Imports that run up, each with its reason.
UPWARDS = {
    # Schedule.torch_scheduler, when it is called; what it returns is torch's own class.
    ("fastopt.schedules", "fastopt.backends.torch.scheduler"),
}


def is_in(module, level):
    """Whether a module is one of some modules, or in one of some packages."""
    return any(module == name or module.startswith(f"{name}.") for name in level)


def test_imports_run_one_way():
    """Kernels know nothing of what is above them, the machinery of a step no library, libraries no optimizers."""
    edges, above, upwards = graph(), (), set()
    for level in levels():
        inside = {name: imported for name, imported in edges.items() if is_in(name, level)}
        assert inside, level
        upwards |= {(name, other) for name, imported in inside.items() for other in imported if is_in(other, above)}
        above += level
    around = {(name, package) for name, other in UPWARDS for package in ancestors(other)}  # which that import runs, too
    assert upwards - around == set()
    assert upwards >= UPWARDS
    assert level == ("fastopt.kernels",)
    assert all(is_in(other, level) for imported in inside.values() for other in imported)


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


def test_no_file_is_too_long():
    """None of fastopt/ has more code than one can keep in mind."""
    files = {path for path in modules().values() if path.is_relative_to(ROOT / "fastopt")}
    long = {str(path.relative_to(ROOT)): code_lines(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in long.items() if lines > MOST_LINES} == {}
    assert f"at most {MOST_LINES} lines of code" in CONTRIBUTING


def test_a_step_on_the_cpu_imports_nothing_of_gpus(tmp_path):
    """Nor of torch: who trains NumPy arrays does not wait for what he does not use."""
    script = """
        import sys, numpy as np, fastopt

        fastopt.SGD(np.ones(3)).step(np.ones(3))
        gpu = ("fastopt.step.device_clock", "fastopt.step.gpu", "fastopt.step.gpu_launch", "fastopt.step.gpu_rows")
        print([m for m in sys.modules if m in (*gpu, "torch", "cupy")])
    """
    assert run_script(script, tmp_path) == (0, "[]\n", "")
