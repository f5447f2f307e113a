"""Test the tests: put one fault after the other into a copy of the checkout, and check that a test fails.

The faults are in ``faults.py``. The tests that reach a fault's line run against it; if they pass, all tests do, unless
``--quick``. First, the chosen tests must pass without any fault. A mutant whose tests take more than a minute counts as
killed.

The copy is installed in its own environment, which sees the packages of this one. Nothing is written in the checkout,
and the copies are deleted at the end. Only for POSIX.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastopt.kernels import cache
from faults import MUTANTS, Mutant
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from fastopt.files import replacing

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 60.0  # seconds for the chosen tests
SUITE_LIMIT = 1800.0  # for all tests
CORES = os.cpu_count() or 1
LEFT_BEHIND = (".git", ".*_cache", ".hypothesis", ".benchmarks", "build", "dist", "__pycache__", "*.egg-info", "*.so")

# These compare the text of the code, and fail after any change, whatever it does.
OF_TEXT = ("tests/test_mutants.py", "tests/test_rules.py::test_the_worked_example_is_the_code")
CHOICES = ["-q", "-x", "-n0", "-p", "no:cacheprovider", *(f"--deselect={test}" for test in OF_TEXT)]

RUN_PYTEST = "import sys\n\nimport pytest\n\nsys.exit(pytest.main())\n"  # from a folder with nothing else to import
WHERE = "import fastopt; print(fastopt.__file__)"
CACHE = "from fastopt.kernels import cache; print(cache.directory())"
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


class JudgingError(Exception):
    """Mutants cannot be judged; the message says why."""


@dataclass(frozen=True)
class Run:
    """The result of running tests.

    Attributes
    ----------
    outcome : str
        "survived" if all passed, "killed", "hung" if they took too long, or "not built".
    seconds : float
    by : str
        The test that failed, or what happened instead.
    output : str
        pytest's output.
    """

    outcome: str
    seconds: float
    by: str = ""
    output: str = ""


class Copy:
    """A copy of the checkout, installed in its own environment.

    Parameters
    ----------
    folder : Path
        Empty, for this copy only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "checkout"
        self.python = folder / "venv" / "bin" / "python"
        self.running: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def make(self) -> None:
        """Copy, install, and compile every kernel, so that this does not count towards a mutant's minute."""
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        venv.create(self.folder / "venv", symlinks=True)
        # Through a .pth file: those of this environment are not read, so its fastopt is not found.
        packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (own,) = self.folder.glob("venv/lib/python*/site-packages")
        (own / "packages.pth").write_text("\n".join(packages) + "\n", encoding="utf-8")
        (self.folder / "bin").mkdir()
        (self.folder / "bin" / "run_pytest.py").write_text(RUN_PYTEST, encoding="utf-8")
        self.install()
        where = self.call("-c", WHERE).strip()
        if not Path(where).is_relative_to(self.root):
            raise JudgingError(f"{where} would be tested, not the copy: uninstall fastopt, or install it with -e")
        self.take_kernels()
        self.call("-m", "fastopt.cli", "compile")

    def take_kernels(self) -> None:
        """Copy this environment's cache; Numba checks by a source's time and size whether an entry is valid."""
        here, there = cache.directory(), self.call("-c", CACHE).strip()
        if here is not None and here.is_dir():
            shutil.copytree(here, there, ignore=shutil.ignore_patterns("*.pyc"), dirs_exist_ok=True)

    def install(self) -> None:
        """Install the copy, and build its extension from the current sources."""
        for path in self.extension:
            path.unlink()  # not overwritten: a process that is still running may have mapped it
        self.call("-m", "pip", "install", "-q", "--no-deps", "-e", str(self.root))
        if not self.extension:  # pip does not fail then
            raise JudgingError("the extension does not compile")

    @property
    def extension(self) -> list[Path]:
        """Return the extension's file, if there is one."""
        return [*self.root.glob("kernels/_pool.*.so")]

    def call(self, *arguments: str) -> str:
        """Run Python in the copy's environment, and return its output; raise JudgingError if it fails."""
        status, output = self.run(arguments)
        if status != 0:
            raise JudgingError(f"{' '.join(arguments)} failed in {self.root}:\n{output[-4000:]}")
        return output

    def test(self, selection: Sequence[str], fresh: bool, limit: float) -> Run:
        """Run tests.

        Parameters
        ----------
        selection : sequence of str
            pytest's arguments.
        fresh : bool
            Whether to begin with an empty cache of kernels.
        limit : float
            Seconds after which the tests are killed.
        """
        if fresh:
            shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        start = time.monotonic()
        arguments = (str(self.folder / "bin" / "run_pytest.py"), *CHOICES, *selection)
        status, output = self.run(arguments, "fresh" if fresh else "cache", self.root, limit)
        seconds = time.monotonic() - start
        if status is None:
            return Run("hung", seconds, f"ended after {limit:g} s", output)
        if status == 0:
            return Run("survived", seconds, "", output)
        failed = FAILED.search(output)
        return Run("killed", seconds, failed[1] if failed else f"pytest ended with {status}", output)

    def run(
        self, arguments: Sequence[str], kernels: str = "cache", where: Path | None = None, limit: float | None = None
    ) -> tuple[int | None, str]:
        """Run Python with a cache of kernels; return its exit status, None if it took too long, and its output."""
        if self.stopped:
            raise JudgingError("stopped")
        # No bytecode: it is checked by a source's size and time in whole seconds, which two mutants may share.
        own = {"NUMBA_CACHE_DIR": str(self.folder / kernels), "PYTHONDONTWRITEBYTECODE": "1"}
        written = self.folder / "output"  # not a pipe, which a surviving child process would keep open
        with written.open("w") as file:
            self.running = subprocess.Popen(
                [self.python, *arguments],
                cwd=where or self.folder,  # in the checkout its folders would shadow the package
                env={**os.environ, **own},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            status = self.running.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            self.stop_running()
        if self.stopped:
            raise JudgingError("stopped")
        return status, written.read_text(encoding="utf-8", errors="replace")

    def stop_running(self) -> None:
        """Kill what is running, with its child processes."""
        running, self.running = self.running, None
        if running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()

    def stop(self) -> None:
        """Kill what is running, from another thread, and start nothing more."""
        self.stopped = True
        self.stop_running()

    @contextlib.contextmanager
    def with_fault(self, mutant: Mutant) -> Iterator[None]:
        """Put a fault into the copy, and take it out again."""
        path = self.root / mutant.file
        before, times = path.read_text(encoding="utf-8"), path.stat()
        built = {path: path.read_bytes() for path in self.extension}
        path.write_text(mutant.applied(before), encoding="utf-8")
        try:
            if mutant.in_extension:
                self.install()
            yield
        finally:
            path.write_text(before, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # Numba checks these
            if mutant.in_extension:
                for extension, content in built.items():
                    extension.unlink(missing_ok=True)
                    extension.write_bytes(content)

    def judge(self, mutant: Mutant, selection: Sequence[str], limit: float) -> Run:
        """Run tests against a fault."""
        try:
            with self.with_fault(mutant):
                return self.test(selection, mutant.in_numba, limit)
        except JudgingError as trouble:
            if self.stopped:
                raise
            return Run("not built", 0.0, str(trouble).splitlines()[-1])


def each(
    copies: Sequence[Copy], what: str, items: Sequence[Any], work: Callable[[Copy, Any], Any]
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with its result, in any order, working on one thread per copy; show the progress."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def with_a_copy(item: Any) -> Any:
        copy = free.get()
        try:
            return work(copy, item)
        finally:
            free.put(copy)

    with Progress(console=Console(stderr=True)) as progress, ThreadPoolExecutor(len(copies)) as threads:
        task = progress.add_task(what, total=len(items))
        futures = {threads.submit(with_a_copy, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
                progress.advance(task)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.stop()
            raise


def check_without_faults(copies: Sequence[Copy], mutants: Sequence[Mutant]) -> None:
    """Raise JudgingError if the chosen tests do not pass in time without a fault."""
    wrong = []
    chosen = dict.fromkeys((mutant.selection, mutant.in_numba) for mutant in mutants)
    for key, run in each(copies, "Without faults", [*chosen], lambda copy, key: copy.test(*key, LIMIT)):
        if run.outcome != "survived":
            wrong.append(f"without a fault, {' '.join(key[0])}: {run.outcome}, {run.by}\n{run.output[-2000:]}")
    if wrong:
        raise JudgingError("\n".join(wrong))


def judged(copies: Sequence[Copy], mutants: Sequence[Mutant], quick: bool) -> dict[str, Run]:
    """Return the result for each mutant, by name, in their order."""
    runs: dict[str, Run] = dict.fromkeys((mutant.name for mutant in mutants), Run("survived", 0.0))
    found = each(copies, "Mutants", mutants, lambda copy, mutant: copy.judge(mutant, mutant.selection, LIMIT))
    for mutant, run in found:
        runs[mutant.name] = run
    survivors = [mutant for mutant in mutants if runs[mutant.name].outcome == "survived"]
    if survivors and not quick:
        everything = ["-n", str(CORES)]
        suite = each(
            copies[:1], "All tests", survivors, lambda copy, mutant: copy.judge(mutant, everything, SUITE_LIMIT)
        )
        for mutant, run in suite:
            seconds = runs[mutant.name].seconds + run.seconds
            runs[mutant.name] = replace(run, seconds=seconds, by=run.by and f"not chosen: {run.by}")
    return runs


def table(mutants: Sequence[Mutant], runs: dict[str, Run]) -> Table:
    """Make the table of results."""
    colours = {"killed": "green", "hung": "yellow"}
    shown = Table("mutant", "file", "outcome", "s", Column("by", overflow="fold"))
    for mutant in mutants:
        run = runs[mutant.name]
        outcome = Text(run.outcome, colours.get(run.outcome, "bold red"))
        shown.add_row(mutant.name, mutant.file, outcome, f"{run.seconds:.0f}", Text(run.by.removeprefix("tests/")))
    return shown


def as_json(mutants: Sequence[Mutant], runs: dict[str, Run], seconds: float) -> str:
    """Return the results as JSON."""
    entries = []
    for mutant in mutants:
        run = runs[mutant.name]
        fields = {"outcome": run.outcome, "seconds": round(run.seconds, 1), "by": run.by}
        entries.append({"name": mutant.name, "file": mutant.file, **fields})
    return json.dumps({"seconds": round(seconds, 1), "mutants": entries}, indent=1) + "\n"


def listed(mutants: Sequence[Mutant]) -> list[str]:
    """List every mutant with its file and tests, and say if its text is not found exactly once."""
    lines = []
    for mutant in mutants:
        count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.before)
        found = "" if count == 1 else f"ITS TEXT IS FOUND {count} TIMES: "
        lines.append(f"{found}{mutant.name}\n    {mutant.file}, by {' '.join(mutant.selection)}")
    return lines


def run(mutants: Sequence[Mutant], jobs: int, quick: bool) -> dict[str, Run]:
    """Judge mutants in copies that are deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(Path(folder) / str(i)) for i in range(max(1, min(jobs, len(mutants))))]
        for copy in copies:
            copy.folder.mkdir()
        list(each(copies, "Copies", copies, lambda _, copy: copy.make()))
        check_without_faults(copies, mutants)
        return judged(copies, mutants, quick)


def main() -> int:
    """Run the command; the exit status is 0 if no mutant survived."""
    parser = argparse.ArgumentParser(description="Test the tests with faults that they should find.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these mutants")
    parser.add_argument("--list", action="store_true", help="list the mutants and their tests, and exit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    parser.add_argument("--jobs", type=int, default=CORES, help="number of copies at once (default: one per core)")
    parser.add_argument("--quick", action="store_true", help="do not run all tests against survivors")
    arguments = parser.parse_args()
    names = [mutant.name for mutant in MUTANTS]
    if unknown := [name for name in arguments.only or () if name not in names]:
        parser.error(f"there is no mutant named {unknown[0]!r}: --list names them")
    mutants = [mutant for mutant in MUTANTS if arguments.only is None or mutant.name in arguments.only]
    lines = listed(mutants)
    if arguments.list or any(line.startswith("ITS TEXT") for line in lines):
        print(*lines, sep="\n")
        return int(any(line.startswith("ITS TEXT") for line in lines))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copies go with it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore, tests too then
    start = time.monotonic()
    try:
        with contextlib.ExitStack() as files:
            out = files.enter_context(replacing(arguments.json)) if arguments.json else None
            runs = run(mutants, arguments.jobs, arguments.quick)
            seconds = time.monotonic() - start
            if out is not None:
                out.write_text(as_json(mutants, runs, seconds), encoding="utf-8")
    except JudgingError as error:
        print(error, file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else 160).print(table(mutants, runs))
    counts = {outcome: sum(run.outcome == outcome for run in runs.values()) for outcome in ("killed", "hung")}
    others = len(mutants) - sum(counts.values())
    summary = f"{counts['killed']} killed, {counts['hung']} hung, {others} survived or not built"
    print(f"{summary}, in {seconds / 60:.0f} minutes")
    return int(others > 0)


if __name__ == "__main__":
    sys.exit(main())
