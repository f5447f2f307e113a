"""fastopt.torch under torch's distributed engines: DDP, ZeRO, FSDP1, FSDP2 and their checkpoints.

Two ranks, launched once, run the checks of the files that distributed_ranks.py names, since torch takes long to load;
each one is a test.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time

import distributed_ranks
import pytest
from distributed_workers import CHECKS, with_what_they_need
from once import once

DEADLOCK = 120  # seconds without a check that ends, after which the ranks are taken for deadlocked
ALONE = 10  # seconds that a rank is given once the other one has crashed


def kill(process):
    """End a rank that has not ended by itself, and its children; it may still say where it was."""
    if process.poll() is None:
        process.send_signal(signal.SIGABRT if os.name == "posix" else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ALONE)
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.wait()


def run_ranks(names, folder):
    """Run both ranks with some checks, of which each rank writes the outcomes into a folder, and how they ended."""
    processes = []
    try:
        for rank in range(2):
            with open(folder / f"{rank}.txt", "w") as output:
                command = [sys.executable, distributed_ranks.__file__, str(rank), *names]
                processes.append(
                    subprocess.Popen(
                        command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                    )
                )
        ended, deadline = 0, time.monotonic() + DEADLOCK
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if ended < (now := sum(file.stat().st_size for file in folder.glob("*.jsonl"))):
                ended, deadline = now, time.monotonic() + DEADLOCK
            if any(process.poll() for process in processes):
                deadline = min(deadline, time.monotonic() + ALONE)
            time.sleep(0.1)
    finally:
        for process in processes:
            kill(process)
    (folder / "statuses.json").write_text(json.dumps([process.returncode for process in processes]))


@pytest.fixture(scope="module")
def ranks(request):
    """Run both ranks, with the checks that were selected: of each, the outcomes by name, and how it ended.

    The processes of a test run share this, since each has the same tests before it, of which it runs some.
    """
    selected = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    names = with_what_they_need(selected)
    folder = once("ranks", functools.partial(run_ranks, names))
    found = []
    for rank, status in enumerate(json.loads((folder / "statuses.json").read_text())):
        lines = folder / f"{rank}.jsonl"
        outcomes = dict(map(json.loads, lines.read_text().splitlines() if lines.exists() else []))
        found.append((outcomes, f"ended with status {status}\n{(folder / f'{rank}.txt').read_text()[-3000:]}"))
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] if check.exhaustive else []) for name, check in CHECKS.items()],
)
def test_ranks(ranks, name):
    taking_part = CHECKS[name].ranks
    failed = [
        f"rank {rank}: {outcomes.get(name, ending)}"
        for rank, (outcomes, ending) in enumerate(ranks[:taking_part])
        if outcomes.get(name) != "ok"
    ]
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)
