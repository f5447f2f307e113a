"""Commands that are interrupted, or whose output cannot be written or is not read: what they leave behind."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastopt.kernels import cpu
from processes import DEADLOCK

from fastopt import cli, files, lab, progress


def names(folder):
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    """Whatever happens meanwhile, the old one stays, and nothing beside it; links and devices stay as well."""
    path = tmp_path / "numbers.json"
    path.write_text("old")

    def fail(error):
        with files.replacing(path) as beside:
            beside.write_text("ne")
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert (path.read_text(), names(tmp_path)) == ("old", ["numbers.json"])
    with files.replacing(path) as beside:
        assert (beside.suffix, beside.parent) == (".json", tmp_path)
        beside.write_text("new")
        assert path.read_text() == "old"
    assert (path.read_text(), names(tmp_path)) == ("new", ["numbers.json"])
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with files.replacing(link) as beside:
        beside.write_text("through")
    assert (link.is_symlink(), path.read_text()) == (True, "through")
    with files.replacing(files.Path(os.devnull)) as beside:
        beside.write_text("nowhere")
    assert not files.Path(os.devnull).is_file()
    for wrong in (tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(OSError, match=r"folder|nothing can be written"), files.replacing(wrong):
            raise AssertionError
    assert names(tmp_path) == ["link.json", "numbers.json"]


@pytest.mark.parametrize("folder", ["bounce.png", "bounce.json", "bounce.gif"])
def test_lab_writes_all_or_nothing(folder, tmp_path, capsys):
    """A folder with a file's name is an error before the experiment runs, and no other file is left."""
    (tmp_path / folder).mkdir()
    assert cli.main(["lab", "bounce", "--animate", "--out", str(tmp_path)]) == 1
    assert f"{folder} is a folder" in capsys.readouterr().err
    assert names(tmp_path) == [folder]


@pytest.mark.parametrize("moment", ["picture", "animation"])
def test_an_interrupted_lab_leaves_what_was_there(moment, tmp_path, monkeypatch):
    """Neither half a file nor one of three."""

    def interrupted(figure, path):
        path.write_bytes(b"GIF89a")
        raise KeyboardInterrupt

    if moment == "animation":
        monkeypatch.setattr(lab, "animate", interrupted)
    else:
        monkeypatch.setattr("fastopt.lab.picture.Picture.savefig", interrupted)
    (tmp_path / "bounce.gif").write_text("old")
    assert cli.main(["lab", "bounce", "--animate", "--out", str(tmp_path), "--steps", "8", "--runs", "1"]) == 130
    assert names(tmp_path) == ["bounce.gif"]
    assert (tmp_path / "bounce.gif").read_text() == "old"


CALLED_BACK = """
def compile(done):
    signal.raise_signal(signal.SIGINT)
    done.append("called back")
"""


def test_an_interrupt_waits_while_llvm_calls_back(monkeypatch):
    """There it would be swallowed: it comes after that; at once elsewhere. Signals are as before in the end."""
    before, llvm, done = signal.getsignal(signal.SIGINT), {"__name__": "llvmlite.binding", "signal": signal}, []
    exec(CALLED_BACK, llvm)

    def kernel(name, *kind):
        done.append(name)
        llvm["compile"](done)
        threading.Event().wait(DEADLOCK)
        done.append("never")

    monkeypatch.setattr(cpu, "kernel", kernel)
    assert cli.main(["compile"]) == 130
    assert done == ["sgd", "called back"]
    monkeypatch.setattr(cpu, "kernel", lambda *key: signal.raise_signal(signal.SIGINT))
    assert cli.main(["compile"]) == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_in_a_thread():
    """No signal arrives there, and none is asked for."""
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(cli.main, ["lab", "--list"]).result() == 0
    assert signal.getsignal(signal.SIGINT) is before


INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == "fastopt.kernels.reader":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from fastopt.cli import main
"""


@pytest.mark.parametrize(("name", "code"), [("fastopt", 130), ("program", -signal.SIGINT)])
def test_the_command_is_interrupted_while_it_is_imported(name, code, tmp_path):
    """It ends as it does later; what imports fastopt and is no command of ours learns of it as ever."""
    (tmp_path / name).write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLOCK, check=False
    )
    assert done.returncode == code
    assert ("KeyboardInterrupt" in done.stderr) == (code != 130)


def run(arguments, folder, output):
    """Run the command with its output going to a file, and return its exit status and its words."""
    command = [sys.executable, "-m", "fastopt.cli", *arguments]
    done = subprocess.run(
        command, cwd=folder, stdout=output, stderr=subprocess.PIPE, text=True, timeout=DEADLOCK, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", ["--includes", "info", "lab", "lab all"])
def test_output_that_nobody_reads(arguments, tmp_path):
    """The status says so, and not a word is said, as of other commands."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(arguments.split(), tmp_path, writing) == (141, "")
    finally:
        os.close(writing)


def test_errors_that_nobody_reads(tmp_path):
    """As with `2>&1 | head`: no traceback of a second try, and the status is that of the error."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fastopt.cli", "compile", "--out", "x"]
    try:
        done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=writing, timeout=DEADLOCK, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 1


def test_tables_that_nobody_reads():
    """A console of rich raises what print raises, so that all commands end alike."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), os.fdopen(writing, "w") as nowhere:
        progress.console(file=nowhere).print("a table")


@pytest.mark.parametrize("argument", ["--includes", "lab"])
def test_output_that_cannot_be_written(argument, tmp_path):
    """A line, no traceback."""
    with open("/dev/full", "w") as full:
        code, errors = run([argument], tmp_path, full)
    assert code == 1
    assert errors.startswith("fastopt: error: ")
    assert "No space left" in errors
    assert len(errors.splitlines()) == 1
