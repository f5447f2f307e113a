"""The command ``fastopt``: info, compile, bench and lab. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from .step.launch import Variant


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        Exit status: 0; 1 after an error, which is printed to stderr; 130 after an interrupt and 141 after a broken
        pipe, as shells report them. Wrong usage exits with 2.
    """
    try:
        try:
            with interruptible():
                return command(argv)
        finally:
            print(end="", flush=True)  # now, while an error can still be reported; at exit Python would flush too late
    except BrokenPipeError:
        status = 141
    except (ValueError, ImportError, OSError) as error:
        with contextlib.suppress(BrokenPipeError):
            print(f"fastopt: error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    for stream in (sys.stdout, sys.stderr):
        forget_output(stream)
    return status


RETRY = 0.05  # seconds


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but LLVM would drop it in a callback, so there send the signal again a little later."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("llvmlite"):
            timer = threading.Timer(RETRY, send, [number])
            timer.daemon = True
            timer.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def send(number: int) -> None:
    """Send a signal to the main thread, which may be in a blocking call."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGINT by `interrupt`, if this is the main thread, where signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def forget_output(stream: TextIO) -> None:
    """Discard output that cannot be written: Python would try again at exit, and print a traceback."""
    try:
        print(end="", flush=True, file=stream)
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def command(argv: Sequence[str] | None) -> int:
    """Run the command that the arguments name, and return its exit status."""
    parser = argparse.ArgumentParser(prog="fastopt", description="The optimizer step, fused into one pass over memory.")
    parser.add_argument("--includes", action=Headers, template="-I{}", help="print a compiler's flag for the headers")
    parser.add_argument("--cmakedir", action=Headers, template="{}", help="print where CMake finds package fastopt")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_info, add_compile, add_bench, add_lab):
        add(commands)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


class Headers(argparse.Action):
    """Prints the folder of the headers, formatted by a template, and exits, as --help does."""

    def __init__(self, template: str, **options: Any) -> None:
        super().__init__(nargs=0, **options)
        self.template = template

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the folder and exit."""
        from .embed import get_include

        print(self.template.format(get_include()))
        parser.exit()


Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_info(commands: Commands[argparse.ArgumentParser]) -> None:
    """Define ``fastopt info``."""
    parser = commands.add_parser("info", help="show versions, processor, limits, threads, cache and GPUs")
    parser.set_defaults(run=info)


def info(arguments: argparse.Namespace) -> int:
    """Print what is installed and what this machine can do."""
    from .info import lines

    print(*lines(), sep="\n")
    return 0


# Options of optimizers and of their steps that need other kernels, and what these do.
STAGED = {
    "max-grad-norm": "those that take the norm of gradients",
    "skip-nonfinite": "those that take the norm of gradients",
    "clip-grad-value": "rules that clip elements of gradients",
    "ema-decay": "rules that average parameters",
    "zero-grads": "rules that set gradients to zero",
}


def add_compile(commands: Commands[argparse.ArgumentParser]) -> None:
    """Define ``fastopt compile``."""
    parser = commands.add_parser("compile", help="compile all kernels ahead, into the cache on disk, or for a GPU")
    cuda = "compile CUBIN files for GPUs of this architecture, sm_90 for instance; this machine need not have a GPU"
    parser.add_argument("--cuda", metavar="ARCH", help=cuda)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the CUBIN files (default: this one)")
    for option, needed in STAGED.items():
        parser.add_argument(
            f"--{option}", action="store_true", help=f"for optimizers with this option, compile {needed}"
        )
    parser.add_argument(
        "--state-dtype", choices=("bfloat16", "float16", "int8"), help="for optimizers with this option: of all states"
    )
    parser.set_defaults(run=compile_kernels)


def compile_kernels(arguments: argparse.Namespace) -> int:
    """Compile every kernel, for this processor or for GPUs."""
    asked = {option for option in STAGED if getattr(arguments, option.replace("-", "_"))}
    stages = {"clip-grad-value": "value", "ema-decay": "average", "zero-grads": "zero"}
    needed = tuple(stage for option, stage in stages.items() if option in asked)
    variants = list(variants_with(needed, arguments.state_dtype))
    if arguments.cuda is not None:
        return compile_cuda(arguments.cuda, arguments.out or Path(), variants)
    if arguments.out is not None:
        raise ValueError("--out goes with --cuda; kernels for this processor are kept where NUMBA_CACHE_DIR says")
    return compile_numba(variants, with_norm=bool(asked & {"max-grad-norm", "skip-nonfinite"}))


def variants_with(stages: tuple[str, ...], state_dtype: str | None) -> Iterator[Variant]:
    """Iterate over the kernels of optimizers that have these stages, and states of a dtype, and no more options.

    Where these round stochastically, so they do for small parameters of 16 bits, whose states are float32.
    """
    from .kernels.dtypes import DTYPES, ROUNDED
    from .options import dtype_in_memory, rounding_by_default
    from .rules import RULES
    from .step.launch import Variant
    from .step.parameter import STOCHASTIC

    for rule in RULES.values():
        states = () if state_dtype is None else tuple(dtype_in_memory(state, state_dtype) for state in rule.states)
        rounding = STOCHASTIC if rounding_by_default(rule.states, {"state_dtype": state_dtype}) else ""
        for dtype in DTYPES:
            yield Variant(rule.name, dtype, stages, states, rounding=rounding)
            if rounding and dtype in ROUNDED:
                yield Variant(rule.name, dtype, stages, rounding=rounding)


def compile_cuda(architecture: str, out: Path, variants: Iterable[Variant]) -> int:
    """Write these CUDA kernels, and the others, as CUBIN files, and print registers and memory of each."""
    from .extras import require
    from .files import replacing
    from .kernels import cuda
    from .progress import track

    require("cupy", "cuda13")
    nvrtc = require("cupy_backends.cuda.libs.nvrtc", "cuda13")
    cuda.check_architecture(nvrtc, architecture)
    out.mkdir(parents=True, exist_ok=True)
    taken = []
    kinds = [cuda.Kind(**variant._asdict()) for variant in variants]
    for name, source in track(cuda.sources(kinds).items(), "Compiling"):
        binary, usages = cuda.cubin(nvrtc, source, name, architecture)
        with replacing(out / f"{name}.cubin") as path:
            path.write_bytes(binary)
        taken += usages
    print(*taken, sep="\n")
    return 0


def compile_numba(variants: Iterable[Variant], with_norm: bool) -> int:
    """Compile these kernels for this processor, and perhaps those of the norm, and print the cache directory."""
    from .kernels import cache, cpu, schedules
    from .kernels.dtypes import DTYPES
    from .kernels.tables import NORM
    from .progress import track

    directory = cache.directory()
    if directory is None:
        raise OSError("no cache directory is writable, so no kernel can be kept: set NUMBA_CACHE_DIR to one that is")
    kernels: list[tuple[Any, ...]] = [*variants, *((NORM, dtype) for dtype in DTYPES if with_norm)]
    hits = sum(cpu.kernel(*key).cache_hits for key in track(kernels, "Compiling"))
    schedules.evaluators()
    lost = [" ".join((name, dtype)) for name, dtype, *kind in kernels if not cpu.cached(name, dtype, *kind)]
    if lost := [*lost, *([] if schedules.cached() else ["schedules"])]:  # a full disk
        raise OSError(f"could not be kept in {directory}: {', '.join(lost)}")
    print(f"{len(kernels)} kernels, {len(kernels) - hits} of them new, and the schedules, in {directory}")
    return 0


def add_bench(commands: Commands[argparse.ArgumentParser]) -> None:
    """Define ``fastopt bench``."""
    parser = commands.add_parser("bench", help="measure against NumPy, Numba, PyTorch and this machine's memory limit")
    parser.add_argument("--gpu", action="store_true", help="check and measure on the GPU, against PyTorch and CuPy")
    quick = "measure optimizer steps alone, in fewer rounds, in two minutes; with --gpu everything, in a minute"
    parser.add_argument("--quick", action="store_true", help=quick)
    tables = "print all tables, not only the summary"
    parser.add_argument("--tables", action="store_true", help=tables)
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file; with --gpu after each part")
    resume = "measure the missing parts of a file that --gpu --json has written, and add them to it"
    parser.add_argument("--resume", metavar="FILE", help=resume)
    plot = "draw the ratios as a chart; without --gpu and --quick, steps in torch are drawn into FILE-torch.png"
    parser.add_argument("--plot", metavar="FILE.png", help=plot)
    baseline = "the contender that the table of all contenders compares with (default: numpy; with --gpu torch-fused)"
    parser.add_argument("--baseline", help=baseline)
    parser.set_defaults(run=bench)


def bench(arguments: argparse.Namespace) -> int:
    """Measure, and print the results."""
    if arguments.gpu:
        from .bench.gpu import command as gpu_command

        gpu_command.run(
            arguments.quick, arguments.json, arguments.plot, arguments.baseline, arguments.resume, arguments.tables
        )
    elif arguments.resume is not None:
        raise ValueError("--resume goes with --gpu: only its parts are kept one by one")
    else:
        from .bench import command

        baseline = "numpy" if arguments.baseline is None else arguments.baseline
        command.run(arguments.quick, arguments.json, arguments.plot, baseline, arguments.tables)
    return 0


def add_lab(commands: Commands[argparse.ArgumentParser]) -> None:
    """Define ``fastopt lab``, with the options of each experiment: the keywords of its function."""
    from .lab import EXPERIMENTS

    parser = commands.add_parser("lab", help="experiments with pictures")
    parser.add_argument("--list", action="store_true", help="name all experiments, as without a name")
    parser.set_defaults(run=list_experiments)
    names = parser.add_subparsers(metavar="NAME")
    for name, experiment in EXPERIMENTS.items():
        options = names.add_parser(name, help=experiment.description, description=experiment.description)
        add_output(options)
        for keyword in inspect.signature(experiment.run).parameters:
            add_keyword(options, experiment.run, keyword)
        options.set_defaults(run=lab, names=[name])
    everything = names.add_parser("all", help="every experiment", description="every experiment, one after the other")
    add_output(everything)
    for keyword in ("seed", "csv"):
        add_keyword(everything, EXPERIMENTS["housing"].run, keyword)
    everything.set_defaults(run=lab, names=[*EXPERIMENTS])
    add_play(names)


PLAY = "the landscape in the browser, to touch: marbles, their rules and schedules"


def add_play(names: Commands[argparse.ArgumentParser]) -> None:
    """Define ``fastopt lab play``."""
    parser = names.add_parser("play", help=PLAY, description=PLAY)
    host = "address to listen on (default: 127.0.0.1, this machine alone)"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument("--no-open", action="store_true", help="do not open the browser")
    export = "write the lessons as a page that needs no server, and end"
    parser.add_argument("--export", type=Path, metavar="FILE.html", help=export)
    parser.set_defaults(run=play)


def play(arguments: argparse.Namespace) -> int:
    """Serve the page until an interrupt, or write the lessons."""
    from .lab.play import command

    if arguments.export is not None:
        command.write(arguments.export)
    else:
        command.serve(arguments.host, arguments.port, opens=not arguments.no_open)
    return 0


def add_output(options: argparse.ArgumentParser) -> None:
    """Define the options that every experiment has."""
    options.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder to write to (default: this one)"
    )
    options.add_argument("--animate", action="store_true", help="write a GIF as well, in which the curves grow")


def add_keyword(options: argparse.ArgumentParser, run: Callable[..., Any], keyword: str) -> None:
    """Define an option for a keyword of an experiment: several values for a tuple, a word where the default is None."""
    default = inspect.signature(run).parameters[keyword].default
    several = isinstance(default, tuple)
    options.add_argument(
        f"--{keyword.replace('_', '-')}",
        type=str if default is None else type(default[0] if several else default),
        nargs=len(default) if several else None,
        default=default,
        help=described(run, keyword).replace("%", "%%"),
    )


def described(run: Callable[..., Any], keyword: str) -> str:
    """Return the entry of a keyword in an experiment's docstring: the text, then type and default."""
    found = re.search(
        rf"^(?:\w+, )*{keyword}(?:, \w+)* : (.*)\n((?:    .*\n)+)", inspect.getdoc(run) or "", re.MULTILINE
    )
    return f"{' '.join(found[2].split())} ({found[1]})" if found else ""  # python -OO strips docstrings


def list_experiments(arguments: argparse.Namespace) -> int:
    """Print the name and description of every experiment."""
    from .lab import EXPERIMENTS

    named = {name: experiment.description for name, experiment in EXPERIMENTS.items()} | {"play": PLAY}
    width = max(map(len, named))
    print(*(f"{name:<{width}}  {description}" for name, description in named.items()), sep="\n")
    return 0


def lab(arguments: argparse.Namespace) -> int:
    """Run an experiment, or all of them; one that fails does not keep the others from running."""
    if arguments.list:
        return list_experiments(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not os.access(arguments.out, os.W_OK):
        raise PermissionError(f"--out: nothing can be written in {arguments.out}")
    if len(arguments.names) == 1:
        print(experiment(arguments.names[0], arguments))
        return 0
    return max([attempt(name, arguments) for name in arguments.names])


def attempt(name: str, arguments: argparse.Namespace) -> int:
    """Run one of several experiments, under a heading; return 0, or 1 after an error, which is printed."""
    print(f"{name}\n{'=' * len(name)}", flush=True)
    try:
        print(experiment(name, arguments), end="\n\n", flush=True)
    except BrokenPipeError:  # the others could not print either
        raise
    except (ValueError, ImportError, OSError) as error:
        print(f"fastopt: error: {name}: {error}", file=sys.stderr)
        return 1
    return 0


def experiment(name: str, arguments: argparse.Namespace) -> str:
    """Run one experiment with the arguments that it takes, write its files, and return the text to print."""
    from .files import replacing
    from .lab import EXPERIMENTS, animate

    run, report = EXPERIMENTS[name].run, EXPERIMENTS[name].report
    keywords = inspect.signature(run).parameters
    path = arguments.out / f"{name}.png"
    with contextlib.ExitStack() as all_or_none:
        png, data = (all_or_none.enter_context(replacing(path.with_suffix(suffix))) for suffix in (".png", ".json"))
        gif = all_or_none.enter_context(replacing(path.with_suffix(".gif"))) if arguments.animate else None
        figure, numbers = run(**{key: value for key, value in vars(arguments).items() if key in keywords})
        figure.savefig(png)
        data.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if gif is not None:
            animate(figure, gif)
    beside = f"{name}.gif and {name}.json" if arguments.animate else f"{name}.json"
    return f"{report(numbers)}\n\nSee {path}; beside it {beside}."


if __name__ == "__main__":
    sys.exit(main())
