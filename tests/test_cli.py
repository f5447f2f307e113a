"""The command, as a user types it."""

import importlib
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from fastopt.kernels import cache, cpu, extension, limits, schedules

import fastopt
from fastopt import cli, extras, info, lab, rules

COMPILE = """
import sys
from fastopt import cli, rules
rules.RULES = {name: rules.RULES[name] for name in sys.argv[1:]}
sys.exit(cli.main(["compile"]))
"""
LOAD = """
import sys
import numpy as np
import fastopt
from fastopt.kernels import cpu, schedules
from fastopt.kernels.dtypes import DTYPES
assert all(evaluator.stats.cache_hits for evaluator in schedules.evaluators())
assert all(cpu.kernel(name, dtype).cache_hits == 1 for name in sys.argv[1:] for dtype in DTYPES)
p = np.ones(5)
fastopt.fused.sgd(p, np.ones(5), lr=0.5)
assert (p == 0.5).all()
print("loaded")
"""


def start(script, names, folder):
    """Start a script in a process of its own, with the names of rules and an empty cache."""
    command, environment = [sys.executable, "-c", script, *names], {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_info_names_everything(capsys):
    """Versions, processor, threads, pool, cache, and the GPUs, or what is missing."""
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(None, 1) for line in lines if not line.startswith(" "))
    assert facts["fastopt"] == fastopt.__version__
    assert facts["numpy"] == np.__version__
    assert facts["threads"].startswith(str(fastopt.get_num_threads()))
    assert facts["pool"] == "built"
    assert facts["cache"] == str(cache.directory())
    assert facts["GPU"].startswith("not usable")
    assert {"python", "numba", "cffi", "torch", "cupy", "processor", "memory", "compiled"} <= set(facts)


def test_info_is_no_wider_than_a_page(monkeypatch):
    """Also where all kernels are compiled: rules that are compiled for the same dtypes share a line."""
    monkeypatch.setattr(cpu, "cached", lambda name, dtype: name != "adam" or dtype == "float32")
    monkeypatch.setattr(schedules, "cached", lambda: True)
    monkeypatch.setattr(cache, "directory", lambda: "/cache")
    lines = info.lines()
    assert max(map(len, lines)) <= info.WIDTH
    shown = " ".join(line.strip() for line in lines)
    count = (len(rules.RULES) - 1) * 4 + 2
    assert f"{count} of {count + 3}: sgd, momentum, " in shown
    assert "in float32, float64, float16, bfloat16; adam in float32; schedules" in shown


def test_info_tells_what_limits_the_process(monkeypatch):
    """A container's quota, its memory and the processors that it may run on."""
    monkeypatch.setattr(limits, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(limits, "physical_memory", lambda: 64 * 10**9)
    monkeypatch.setattr(limits, "memory_limit", lambda: 2 * 10**9)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    text = "\n".join(info.lines())
    assert "of 64 processors (4 allowed by affinity, a quota of 1.5)" in text
    assert "64.0 GB (2.0 GB allowed to this process)" in text


def test_info_without_pool_and_cache(monkeypatch):
    """It says what follows."""
    monkeypatch.setattr(info.pool, "available", False)
    monkeypatch.setattr(cache, "directory", lambda: None)
    text = "\n".join(info.lines())
    assert "updates run on the calling thread" in text
    assert "steps in torch are slow" in text
    assert "NUMBA_CACHE_DIR" in text
    assert extension.lib is not None


@pytest.mark.exhaustive  # processes that compile alone
@pytest.mark.parametrize("names", [["sgd"], [*rules.RULES]], ids=["one rule", "all rules"])
def test_compile_twice_at_once(names, tmp_path):
    """Both succeed, and a new process finds every kernel in the cache, and right; of one rule, and so of all."""
    started = [start(COMPILE, names, tmp_path) for _ in range(2)]
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert str(tmp_path) in out
    loaded = start(LOAD, names, tmp_path)
    assert loaded.communicate(timeout=300) == ("loaded\n", "")


def test_compile_where_nothing_can_be_kept(monkeypatch, capsys):
    """One line that says what to set."""
    monkeypatch.setattr(cache, "directory", lambda: None)
    assert cli.main(["compile"]) == 1
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err


def test_compile_for_the_options_of_an_optimizer(monkeypatch, capsys):
    """Kernels with the stages that the options ask for, and those of the norm."""
    asked = []
    monkeypatch.setattr(rules, "RULES", {"sgd": rules.RULES["sgd"]})
    monkeypatch.setattr(cpu, "kernel", lambda *key: asked.append(key) or types.SimpleNamespace(cache_hits=1))
    monkeypatch.setattr(cpu, "cached", lambda *key: True)
    assert cli.main(["compile", "--max-grad-norm", "--clip-grad-value", "--ema-decay"]) == 0
    assert {(name, *stages[:1]) for name, _, *stages in asked} == {("sgd", ("value", "average")), ("norm",)}
    assert "8 kernels" in capsys.readouterr().out


def test_compile_for_states_of_16_bits(monkeypatch, capsys):
    """For as many as a rule has; squares are rounded stochastically, beside small parameters of 16 bits too."""
    asked = []
    monkeypatch.setattr(rules, "RULES", {name: rules.RULES[name] for name in ("sgd", "adam")})
    monkeypatch.setattr(cpu, "kernel", lambda *key: asked.append(key) or types.SimpleNamespace(cache_hits=1))
    monkeypatch.setattr(cpu, "cached", lambda *key: True)
    assert cli.main(["compile", "--state-dtype", "bfloat16"]) == 0
    assert {(key[0], key[3], key[6]) for key in asked} == {
        ("sgd", (), ""),
        ("adam", ("bfloat16", "bfloat16"), "stochastic"),
        ("adam", (), "stochastic"),
    }
    assert {key[1] for key in asked if key[0] == "adam" and not key[3]} == {"bfloat16", "float16"}
    assert "10 kernels" in capsys.readouterr().out


def test_compile_where_the_disk_is_full(monkeypatch, capsys):
    """What could not be kept is named, and is an error."""
    monkeypatch.setattr(rules, "RULES", {name: rules.RULES[name] for name in ("sgd", "adagrad")})
    monkeypatch.setattr(cpu, "kernel", lambda *key: types.SimpleNamespace(cache_hits=0))
    monkeypatch.setattr(schedules, "evaluators", lambda: None)
    monkeypatch.setattr(cpu, "cached", lambda name, *kind: name != "adagrad")
    monkeypatch.setattr(schedules, "cached", lambda: False)
    assert cli.main(["compile"]) == 1
    err = capsys.readouterr().err
    assert "adagrad float32, adagrad float64, adagrad float16, adagrad bfloat16, schedules" in err
    assert "sgd" not in err


def test_an_interrupt_shows_no_traceback(monkeypatch):
    """The exit status says what happened."""

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "lines", interrupted)
    assert cli.main(["info"]) == 130


def test_info_sees_what_is_installed_and_no_mere_folder(monkeypatch, tmp_path):
    """A folder named as a library is none; a library without metadata, or one that fails, is no reason to fail."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imagined").mkdir()
    assert info.library("imagined") == "not installed"
    (tmp_path / "imagined" / "__init__.py").write_text("")
    importlib.invalidate_caches()
    assert info.library("imagined").startswith("unknown, from ")


def test_info_names_the_gpus(monkeypatch, tmp_path):
    """Their names; else what is missing, or whatever CuPy raised."""
    names = [b"NVIDIA H100", b"Tesla T4"]
    runtime = types.SimpleNamespace(getDeviceCount=lambda: len(names), getDeviceProperties=lambda i: {"name": names[i]})
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(info, "library", lambda name: "14.2.0")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert info.gpu() == "NVIDIA H100, Tesla T4"
    names.clear()
    assert info.gpu() == "not usable: CuPy sees no device"
    runtime.getDeviceCount = lambda: 1 / 0
    assert info.gpu() == "not usable: CuPy sees no device (division by zero)"
    monkeypatch.setattr(info, "library", lambda name: "not installed")
    assert "fastopt[cuda13]" in info.gpu()


def test_lab_lists_its_experiments(capsys):
    """A name and a line for each."""
    for arguments in (["lab", "--list"], ["lab"]):
        assert cli.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == [*lab.EXPERIMENTS, "play"]
        assert lines[0].startswith("landscape  which")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab", "nothing"], "choose from"),
        (["lab", "digits", "--speed", "3"], "unrecognized arguments: --speed 3"),
        (["info", "--verbose"], "unrecognized arguments: --verbose"),
        (["train"], "invalid choice"),
        ([], "required"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message, capsys):
    """And says what there is."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab", "digits", "--epochs", "0"], "epochs must be 1 or more, and below 2**20, not 0"),
        (["lab", "digits", "--seed", "-1"], "seed"),
        (["lab", "housing", "--csv", "no.csv"], "no.csv"),
        (["bench", "--baseline", "nobody"], "'nobody' is not among numpy, fastopt"),
        (["bench", "--json", "no/such/folder/x.json"], "no/such/folder/x.json"),
        (["bench", "--json", "."], "'.'"),
        (["bench", "--plot", "x.docx"], "x.docx"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    """With exit status 1, and no traceback."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err.strip()
    assert err.startswith("fastopt: error: ")
    assert message in err
    assert "\n" not in err


def test_a_missing_extra_is_named(monkeypatch, capsys, tmp_path):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert cli.main(["lab", "digits", "--out", str(tmp_path)]) == 1
    assert "pip install 'fastopt[lab]'" in capsys.readouterr().err
    with pytest.raises(ImportError, match=r"no_such_module is not installed: pip install 'fastopt\[x\]'"):
        extras.require("no_such_module", "x")


def test_a_command_imports_what_it_needs_and_no_more(tmp_path):
    """Nothing but argparse for the help."""
    code = "import sys, fastopt.cli; print({'numba', 'matplotlib', 'rich', 'sklearn', 'torch'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
