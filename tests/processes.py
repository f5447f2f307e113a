"""Scripts in a Python process of their own, for tests; no tests here."""

import os
import signal
import subprocess
import sys
import textwrap

DEADLOCK = 60  # seconds after which something that waits is called a deadlock; nothing here takes one


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
