"""Runs scripts of Python or a shell in processes of their own; no tests here."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

DEADLOCK = 60  # seconds until a wait counts as a deadlock; no script takes one


def run_script(script, cwd, **environment):
    """Run a script in a Python process of its own: exit status, output, errors; a deadlock there is a failure here."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=DEADLOCK)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.kill()
        raise
    return process.returncode, output, errors


def assert_passes(script, cwd, **environment):
    """Assert that a script ends well, and wrote "passed" and nothing else."""
    assert run_script(script, cwd, **environment) == (0, "passed\n", "")


def run_commands(text, cwd):
    """Run the lines that a user types, in a shell that stops at the first that fails: exit status, output and errors.

    Commands that were installed with fastopt come first; CMake needs no `make`.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=cwd,
        env={**os.environ, "PATH": path, "CMAKE_GENERATOR": "Ninja"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
