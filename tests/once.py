"""Compiles things once per run of the tests, in the first process that needs them; no tests here."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

FOLDER = "FASTOPT_TESTS"  # in the environment, which the processes that a run starts inherit
KEPT = []


def folder_of_the_run():
    """Return the folder of all of this; the first process that asks creates it, and it is deleted with that process."""
    if FOLDER not in os.environ:
        KEPT.append(tempfile.TemporaryDirectory())
        os.environ[FOLDER] = KEPT[-1].name
    return Path(os.environ[FOLDER])


def once(name, make):
    """Return the folder of a name, which ``make(folder)`` has filled, once for all processes of a run.

    What fails leaves nothing behind, and fails again for the next that asks.
    """
    made = folder_of_the_run() / name
    with open(made.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which is let go of even where a process is killed
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(made)
    return made
