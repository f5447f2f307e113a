"""Messages that give advice on schedules, single calls, embedding, commands and installation."""

import ast
import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

import fastopt.bench
import fastopt.kernels
import numpy as np
import pytest
from fastopt.bench import command, embedding
from fastopt.kernels import cuda, pool
from processes import run_script
from test_advice import F32, ones, read_only, refused, trains
from test_cache import copied_package

import fastopt
import fastopt.torch
from fastopt import embed, schedules
from fastopt.schedules import Constant, Cosine, Plateau

PLATEAU = Plateau(0.5)


def adam(**options):
    """Make an optimizer and take a step."""
    p = ones(3)
    opt = fastopt.Adam(p, **options)
    trains(opt, p)
    return opt


def loaded(*rates):
    """Load the state of an optimizer whose two groups have a Plateau each into one whose groups have these rates."""
    groups = lambda rates: [{"params": [ones(2)], "lr": rate} for rate in rates]  # noqa: E731
    saved = fastopt.SGD(groups([Plateau(0.1), Plateau(0.2)])).state_dict()
    opt = fastopt.SGD(groups(rates))
    opt.load_state_dict(saved)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.2]


def shared(first, second):
    """Train two arrays."""
    params = [first, second]
    trains(fastopt.SGD(params, lr=0.5), params)


BOTH = ones(6)
CASES = {  # what is wrong, what the message says, what it advises
    "no schedule yet": (schedules.Schedule, "use one of its classes, as Cosine", lambda: Cosine(0.1, 10)),
    "no optimizer yet": (lambda: fastopt.optimizers.Optimizer(ones(3), {}),
                         "use SGD, Adam or another of its subclasses",
                         lambda: fastopt.SGD(ones(3)) and fastopt.Adam(ones(3))),
    "no parameters": (lambda: fastopt.SGD([]), "give at least one array", lambda: fastopt.SGD([ones(1)])),
    "a Plateau in a pair": (lambda: adam(betas=(PLATEAU, 0.9)), "use a schedule that goes by the step",
                            lambda: adam(betas=(Constant(0.5), 0.9))),
    "a Plateau in a pair, asked": (lambda: adam(betas=(0.5, PLATEAU)),
                                   "or a function that asks the Plateau, as lambda step: plateau.lr",
                                   lambda: adam(betas=(0.5, lambda step: PLATEAU.lr))),
    "one number for a pair": (lambda: adam(betas=0.9), "must be a pair, as (0.9, 0.999)",
                              lambda: adam(betas=(0.9, 0.999))),
    "a Plateau of two groups": (lambda: loaded(PLATEAU, PLATEAU), "give each group its own before loading",
                                lambda: loaded(Plateau(0.5), Plateau(0.5))),
    "too large for float32": (lambda: adam(lr=1e39), "choose smaller ones", lambda: adam(lr=1e30)),
    "parameters that share": (lambda: shared(BOTH[:4], BOTH[2:]), "pass each once, and a copy of what they share",
                              lambda: shared(BOTH[:4], BOTH[2:].copy())),
    "Nesterov alone": (lambda: fastopt.SGD(ones(3), nesterov=True), "requires a momentum and zero dampening",
                       lambda: fastopt.SGD(ones(3), nesterov=True, momentum=0.9)),
    "Nesterov's dampening": (lambda: fastopt.SGD(ones(3), nesterov=True, momentum=0.9, dampening=0.1),
                             "requires a momentum and zero dampening",
                             lambda: fastopt.SGD(ones(3), nesterov=True, momentum=0.9, dampening=0)),
    "a loop's missing number": (lambda: embed.hyper_values("momentum", lr=0.1), "pass momentum=...",
                                lambda: embed.hyper_values("momentum", lr=0.1, momentum=0.9)),
    "a loop's missing step": (lambda: embed.hyper_values("adam", lr=0.1), "pass step=1",
                              lambda: embed.hyper_values("adam", lr=0.1, step=1)),
    "a read-only buffer": (lambda: fastopt.fused.adagrad(ones(3), ones(3), read_only(ones(3)), lr=0.1),
                           "pass a writable .copy()",
                           lambda: fastopt.fused.adagrad(ones(3), ones(3), read_only(ones(3)).copy(), lr=0.1)),
    "a buffer of another dtype": (lambda: fastopt.fused.adagrad(ones(3), ones(3), np.ones(3), lr=0.1),
                                  "pass .astype(np.float32) of it",
                                  lambda: fastopt.fused.adagrad(ones(3), ones(3), np.ones(3).astype(F32), lr=0.1)),
    "a baseline": (lambda: command.check(None, None, "nobody"), f"is not among {', '.join(command.CONTENDERS)}",
                   lambda: [command.check(None, None, name) for name in command.CONTENDERS]),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "advice", "right"), CASES.values(), ids=CASES)
def test_advice_is_good(wrong, advice, right):
    """The message says it, and what it says works."""
    refused(advice, wrong)
    right()


def test_pictures(tmp_path, monkeypatch):
    """Whatever ending the message names."""
    monkeypatch.chdir(tmp_path)
    for ending in command.PICTURES:
        refused(f"its name must end in {', '.join(command.PICTURES)}", command.check, None, "x.docx", "numpy")
        command.check(None, f"x{ending}", "numpy")


def test_compilers(monkeypatch):
    """CXX names another one than the one that is missing."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OSError, match="there is no no-such-compiler; CXX may name another compiler"):
        embedding.compiled_loops()
    monkeypatch.setenv("CXX", next(name for name in ("c++", "g++", "clang++") if shutil.which(name)))
    embedding.compiled_loops()


def test_threads_of_the_environment(monkeypatch):
    """A whole number, or none."""
    for good in ("2", None):
        monkeypatch.setattr(pool, "_num_threads", None)
        monkeypatch.setenv("FASTOPT_NUM_THREADS", "many")
        refused("set it to a whole number of 1 or more, or unset it", fastopt.get_num_threads)
        monkeypatch.setenv("FASTOPT_NUM_THREADS", good) if good else monkeypatch.delenv("FASTOPT_NUM_THREADS")
        assert fastopt.get_num_threads() >= 1
    monkeypatch.setattr(pool, "_num_threads", None)


COMPILE = """
from fastopt import cli, rules
from fastopt.kernels import cpu, dtypes, schedules

# one of the kernels is enough here
rules.RULES, dtypes.DTYPES = {"sgd": rules.RULES["sgd"]}, {"float32": dtypes.DTYPES["float32"]}
schedules.evaluators, schedules.cached = tuple, lambda: True
raise SystemExit(cli.main(["compile"]))
"""


def test_where_nothing_can_be_kept(tmp_path):
    """NUMBA_CACHE_DIR names a folder that can be written, and kernels are there."""
    copied_package(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    nowhere = {name: str(blocked / "home") for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")}
    code, _, errors = run_script(COMPILE, cwd=tmp_path, NUMBA_CACHE_DIR="", **nowhere)
    assert (code, "set NUMBA_CACHE_DIR to one that is" in errors) == (1, True)
    code, words, errors = run_script(COMPILE, cwd=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept"), **nowhere)
    assert code == 0, errors
    assert str(tmp_path / "kept") in words
    assert any((tmp_path / "kept").rglob("*.nbc"))


# What is to be installed

HOMES = {Path(module.__path__[0]) for module in (fastopt, fastopt.kernels, fastopt.bench)}
SOURCES = [path for home in HOMES for path in sorted(home.rglob("*.py")) if not path.name.startswith("test_")]
PROJECTS = {"sklearn": "scikit-learn", "PIL": "pillow", "cupy": "cupy-cuda", "cupy_backends": "cupy-cuda"}  # of modules


def brought(requirements, extra):
    """Name the projects that an extra of a project brings; the base ones without an extra."""
    marked = f'extra == "{extra}"' if extra else ""
    lines = [
        each
        for each in importlib.metadata.requires(requirements) or ()
        if (marked in each if marked else "extra ==" not in each)
    ]
    nested = [name for each in lines for name in re.findall(rf"^{requirements}\[([\w,]+)\]", each)]
    own = [re.match(r"[\w.-]+", each)[0].lower() for each in lines]
    return own + [project for names in nested for name in names.split(",") for project in brought(requirements, name)]


def required(path):
    """The modules that a source asks for by extra."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            module, extra = node.args
            for each in [extra] if isinstance(extra, ast.Constant) else [extra.body, extra.orelse]:
                yield ast.literal_eval(module).partition(".")[0], each.value


def test_extras_bring_what_is_missing():
    """By themselves, or by what they bring: pillow comes with matplotlib."""
    asked = {pair for path in SOURCES for pair in required(path) if path.name != "extras.py"}
    assert len(asked) >= 8
    for module, extra in asked:
        projects = brought("fastopt", extra)
        if module == "PIL":
            projects = [each for project in projects if project == "matplotlib" for each in brought(project, "")]
        assert any(each.startswith(PROJECTS.get(module, module)) for each in projects), (module, extra)


def test_extras_that_messages_name():
    """They are there."""
    named = {name for path in SOURCES for name in re.findall(r"fastopt\[(\w+)\]", path.read_text(encoding="utf-8"))}
    assert {"bench", "cuda12", "cuda13"} <= named <= {*importlib.metadata.metadata("fastopt").get_all("Provides-Extra")}


@pytest.mark.parametrize(
    ("version", "extra"), [("11.8", "cuda12"), ("12.8", "cuda12"), ("13.0", "cuda13"), ("14.1", "cuda13")]
)
def test_the_extra_for_the_cuda_of_torch(version, extra, monkeypatch):
    """The nearest one that there is."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr("torch.version.cuda", version)
    with pytest.raises(ImportError, match=rf"pip install 'fastopt\[{extra}\]'"):
        importlib.import_module("fastopt.backends.torch.device").cupy_of_torch()
    assert any(project.startswith(f"cupy-{extra}x") for project in brought("fastopt", extra))


def test_a_missing_nvrtc():
    """The extra that the message names brings it."""

    class Nvrtc:
        """Finds no library."""

        def getSupportedArchs(self):  # noqa: N802 (CuPy's name)
            raise RuntimeError("libnvrtc.so.13 not found")

    with pytest.raises(ImportError, match=r"pip install 'fastopt\[cuda13\]'"):
        cuda.check_architecture(Nvrtc(), "sm_90")
    assert "nvidia-cuda-nvrtc" in brought("fastopt", "cuda13")
