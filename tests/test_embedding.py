"""The page about embedding: each example as printed, from the compiler's command to the program's output."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from processes import run_commands
from tolerances import TRAJECTORY, assert_close

from fastopt import SGD, fused
from fastopt.rules import RULES

PAGE = (Path(__file__).parent.parent / "docs/embedding.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"([^\n]*\n)\n```(\w+)\n(.*?)```", re.DOTALL)
NAME = re.compile(r"`([\w.]+\.\w+)`[^`]*:$")


def examples(section):
    """The files that a section prints, by their names, or numbers where there are none, and its commands."""
    files, commands = {}, []
    for before, language, text in BLOCK.findall(SECTIONS[section]):
        if language == "sh":
            commands.append(text)
        else:
            named = NAME.search(before.strip())
            files[named[1] if named else len(files)] = text
    return files, commands


def run(section, folder):
    """Write a section's files, run its commands in a shell, and return what each of them prints."""
    files, commands = examples(section)
    for name, text in files.items():
        (folder / str(name)).write_text(text, encoding="utf-8")
    printed = []
    for command in commands:
        code, output, errors = run_commands(command, folder)
        assert code == 0, output + errors
        printed.append(output)
    return printed


def test_numba(capsys):
    """It finds the truth."""
    code, _, _ = examples("Numba")[0].values()
    exec(compile(code, "docs/embedding.md", "exec"), {})
    assert furthest(capsys) < 1e-3


@pytest.mark.exhaustive
def test_numba_trains_a_network(capsys):
    """The three trainings end with the same accuracy; all schedules are compiled for two of them."""
    _, code, _ = examples("Numba")[0].values()
    exec(compile(code, "docs/embedding.md", "exec"), {})
    shares = re.findall(r"^(.*): [\d.]+ s, ([\d.]+)% of the images right$", capsys.readouterr().out, re.MULTILINE)
    loops = ["Python, NumPy's update", "Numba, NumPy's update", "Numba, fastopt's update"]
    assert [name for name, _ in shares] == loops
    assert len({share for _, share in shares}) == 1
    assert float(shares[0][1]) > 90


def furthest(capsys):
    """What an example says of its result, at its end."""
    return float(capsys.readouterr().out.split()[-1])


def test_numba_with_adam(capsys):
    """It finds the truth, and takes the steps that the single call does."""
    *_, code = examples("Numba")[0].values()
    defined = {}
    exec(compile(code, "docs/embedding.md", "exec"), defined)
    assert furthest(capsys) < 1e-3
    x, y = np.eye(3), np.arange(1.0, 4.0)
    w, want, m, v = (np.zeros(3) for _ in range(4))
    defined["fit"](x, y, w, 20, 0.05, 0.8, 0.99, 1e-3)
    for step in range(1, 21):
        gradient = 2 * (x @ want - y) @ x / len(x)
        fused.adam(want, gradient, m, v, lr=0.05, step=step, betas=(0.8, 0.99), eps=1e-3)
    assert_close(w, want, TRAJECTORY)


def losses(printed):
    """The losses that a program prints."""
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]


@pytest.mark.exhaustive  # compiles by g++ for long
def test_cpp(tmp_path):
    """By the compiler alone and by CMake, to the same end; nothing of Python's is linked."""
    alone, by_cmake, adam = run("C++ without Python", tmp_path)
    assert adam == "w = 3.000, -1.000\n"
    assert losses(alone)[-1] < 0.02 < 1 < losses(alone)[0]
    assert losses(by_cmake) == losses(alone)
    for program in ("linear", "build/linear"):
        linked = subprocess.run(["ldd", tmp_path / program], capture_output=True, text=True, check=True).stdout
        assert "libstdc++" in linked
        assert "python" not in linked.lower()


def assert_average_is_closer(printed):
    """It is near the truth, and the last point is not; points that are far off do no harm."""
    last, average = map(float, re.search(r"last ([\d.]+), the average ([\d.]+)$", printed.strip()).groups())
    assert 2 * average < last < 1
    assert average < 0.1


@pytest.mark.exhaustive  # compiles by g++ for long
def test_clipping_and_averages(tmp_path, capsys):
    """In Numba and in C++; the loop does what the optimizer does with these options."""
    code = examples("Clipping and averages")[0][0]
    defined = {}
    exec(compile(code, "docs/embedding.md", "exec"), defined)
    assert_average_is_closer(capsys.readouterr().out)
    (printed,) = run("Clipping and averages", tmp_path)
    assert_average_is_closer(printed)

    rng = np.random.default_rng(3)
    x, y, w, want = rng.standard_normal((20, 3)), 5 * rng.standard_normal(20), np.zeros(3), np.zeros(3)
    mean = w.copy()
    defined["fit"](x, y, w, mean, 1)
    opt = SGD(want, lr=0.01, momentum=0.9, nesterov=True, clip_grad_value=1.0, ema_decay=0.999)
    for i in range(20):
        opt.step((x[i] @ want - y[i]) * x[i])
    assert_close(w, want, TRAJECTORY)
    assert_close(mean, opt.state[0]["ema"], TRAJECTORY)


def cuda_source():
    """What the page's section on CUDA compiles."""
    (code,) = examples("CUDA")[0].values()
    return code, re.search(r'r"""(.*?)"""', code, re.DOTALL)[1]


def test_cuda(stand_in, capsys):
    """On a stand-in for CuPy, whose kernels run on the host."""
    exec(compile(cuda_source()[0], "docs/embedding.md", "exec"), {})
    assert furthest(capsys) < 1e-3


@pytest.mark.gpu
def test_cuda_on_a_gpu(capsys):
    """By CuPy itself."""
    exec(compile(cuda_source()[0], "docs/embedding.md", "exec"), {})
    assert furthest(capsys) < 1e-3


def test_the_rules_of_the_page():
    """All of them, with as many states, and their hyperparameters in the registry's order."""
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|", PAGE, re.MULTILINE)
    printed = [
        (name, len(states.split(",")) if states.strip() else 0, tuple(re.findall(r"`(\w+)`", hypers)))
        for name, states, hypers in rows
    ]
    assert printed == [(name, len(rule.states), rule.hypers) for name, rule in RULES.items()]


def test_c(tmp_path):
    """The loss is far below log(2), where it began."""
    (printed,) = run("C by pointer", tmp_path)
    assert losses(printed)[-1] < 0.1
