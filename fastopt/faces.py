"""The docstrings of a rule's faces: the optimizer over arrays, the single call, and the optimizer for torch.

Their signatures are written out, for people and tools to read. What the parameters mean is said once for all faces:
of options in `rules.py`, of the others here. `described` completes the docstrings, with types and texts from these
two tables, and defaults from the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from .options import NOTHING, Argument
from .rules import OPTIONS

Described = TypeVar("Described", bound=Callable[..., Any])

WIDTH = 112  # of a line that describes a parameter: 120, less two indentations


class Face:
    """What the docstrings of one kind of faces have in common.

    Attributes
    ----------
    arguments : mapping of str to Argument
        The parameters that are no options.
    errors : mapping of str to str
        What is raised, and when.
    schedules : bool
        Whether options may be schedules.
    also : mapping of str to str
        What is added to the texts of options.
    """

    def __init__(
        self,
        arguments: Mapping[str, Argument],
        errors: Mapping[str, str],
        schedules: bool = True,
        also: Mapping[str, str] = NOTHING,
    ) -> None:
        self.arguments = arguments
        self.errors = errors
        self.schedules = schedules
        self.also = also

    def entries(self, thing: Any, special: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Iterate over the parameters of a class or function: ``name : kind, default``, and what each means."""
        for name, default in parameters(thing):
            argument = self.arguments.get(name) or OPTIONS[name]
            scheduled = argument.scheduled if self.schedules else None
            kind = argument.kind if scheduled is None else f"{argument.kind} or schedule"
            text = argument.of.get(thing.__name__.lower(), argument.text)
            texts = (text, scheduled, self.also.get(name), special.get(name))
            yield f"{name} : {kind}{default}", " ".join(filter(None, texts))


ARRAYS = Face(
    {
        "params": Argument(
            "array, sequence or dict of arrays, nested or not, or list of group dicts",
            "What to train, in place: float32 or float64, any shape, dense in memory, and writable when the optimizer "
            "is made; on a GPU, arrays of CuPy or of anything that it can look into, float16 and bfloat16 too. "
            'Sequences and dicts may hold others, ``[(w, b), ...]`` or ``{"enc": {"w": w}}``; each array then goes by '
            'its path, ``"0.1"`` or ``"enc.w"``. A list of dicts that have an entry ``"params"`` is a list of groups, '
            '``{"params": ..., "lr": ..., ...}``, with options of their own.',
        ),
    },
    errors={
        "TypeError, ValueError": "If a parameter cannot be updated in place, two share memory, or an option is out of "
        "range.",
    },
)


def state(text: str, begins: str = "zeros before the first step", use: str = "") -> Argument:
    """Describe an array that a single call is given beside p and g."""
    kind = "array, dtype and shape of p (float32 for half precision)"
    return Argument(kind, f"{text}, updated in place; dense and writable; {begins}.{use}")


CALL = Face(
    {
        "p": Argument(
            "array of NumPy or CuPy, any shape",
            "Parameter, updated in place; dense and writable; float32 or float64, on a GPU float16 and bfloat16 too.",
        ),
        "g": Argument("array, dtype and shape of p", "Gradient, any strides."),
        "velocity": state("Momentum buffer"),
        "accumulator": state("Sum of squared gradients", "zeros, or a small positive value to begin with"),
        "square_avg": state("Average of squared gradients"),
        "momentum_buffer": state("Momentum buffer"),
        "grad_avg": state("Average of gradients"),
        "exp_avg": state("Average of gradients"),
        "exp_avg_sq": state("Average of squared gradients"),
        "max_exp_avg_sq": state("Largest average of squares so far", use=" With it the update is AMSGrad's."),
        "step": Argument(
            "int", "Which step of this parameter it is, from 1: by it the averages are corrected for their bias."
        ),
    },
    errors={"TypeError, ValueError": "If an argument does not fit; nothing has changed then."},
    schedules=False,
)

TORCH = Face(
    {
        "params": Argument(
            "iterable of tensors, of (name, tensor) pairs, or of group dicts",
            "float32, float64, float16, bfloat16, complex64 or complex128, on the CPU or a CUDA device, of any shape "
            "and layout; DTensors too. What is frozen, and has no gradient, may be of any kind, and is left alone. "
            "Half precision is computed, and its states are kept, in float32; complex numbers are pairs of reals.",
        ),
        "foreach": Argument("bool", "Accepted, and changes nothing: all of it is one fused step."),
        "fused": Argument(
            "bool",
            "True leaves to the step what ``torch.amp.GradScaler`` does else, as in torch: the kernel unscales the "
            "gradients, and skips the step where one is not finite; on a GPU without waiting. Captured steps and "
            "float16 parameters need it there. Changes nothing else.",
        ),
        "capturable": Argument("bool", "True is refused: a step on a GPU can be captured without it."),
        "differentiable": Argument("bool", "True is refused."),
    },
    errors={
        "TypeError, ValueError": "If a parameter that trains cannot be updated, two share memory, or an option is "
        "out of range or not offered; at the step, where a frozen one has a gradient all of a sudden.",
        "RuntimeError": "If both foreach and fused are True, as in torch.optim.",
    },
    also={
        "lr": 'With one, ``group["lr"]`` is a number, that of the latest step, and ``group["schedules"]`` describes '
        "the schedule. What is assigned takes effect at the next step: another number ends the schedule, another "
        "callable takes its place. A scheduler of torch beside it starts from its peak, "
        '``group["initial_lr"]``, and ends it, with a warning. A number may be a tensor of one element.',
        "betas": 'With one, ``group["betas"]`` is a pair of numbers, those of the latest step; another pair of numbers '
        "ends both schedules. Tensors are refused.",
    },
)


def described(face: Face, like: type | None = None) -> Callable[[Described], Described]:
    """Complete the docstring of a class or function, where lines of it are marks.

    ``{options}`` becomes an entry for each parameter in the signature; entries that follow the mark say what is
    special, and are added to these. ``{errors}`` becomes the entries of what is raised. ``{formulas}`` becomes what
    the docstring of another class, ``like``, says between its summary and its parameters.
    """

    def complete(thing: Described) -> Described:
        before, mark, after = (thing.__doc__ or "").partition("{options}")
        if mark:  # under python -OO there are no docstrings
            margin = before[before.rfind("\n") + 1 :]
            special, _, after = after.partition("\n\n")
            if like is not None:
                before = before.replace("{formulas}", formulas(like))
            options = listed(face.entries(thing, additions(special, margin)), margin)
            errors = listed(face.errors.items(), margin)
            thing.__doc__ = f"{before}{options}\n\n{after}".replace("{errors}", errors)
        return thing

    return complete


def parameters(thing: Any) -> Iterator[tuple[str, str]]:
    """Iterate over the names in a signature, each with what is said of its default; faster than `inspect`."""
    function, own = (vars(thing)["__init__"], 1) if isinstance(thing, type) else (thing, 0)
    code, last = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    defaults = dict(zip(names[code.co_argcount - len(last) : code.co_argcount], last, strict=True))
    defaults.update(function.__kwdefaults__ or {})
    for name in names[own:]:
        if name not in defaults:
            yield name, ""
        elif defaults[name] is None:
            yield name, ", optional"
        else:
            yield name, f", default {defaults[name]!r}".replace("e-0", "e-")


def additions(text: str, margin: str) -> dict[str, str]:
    """Read what a docstring says of single parameters: ``{name: text}``."""
    found: dict[str, str] = {}
    name = ""
    for line in text.split("\n")[1:]:
        if line.startswith(margin + " "):
            found[name] = f"{found.get(name, '')} {line.strip()}".lstrip()
        else:
            name = line.strip()
    return found


def formulas(like: type) -> str:
    """Return what a docstring says between its summary and its parameters."""
    return (like.__doc__ or "").partition("\n\n")[2].partition("Parameters\n")[0].strip()


def listed(entries: Iterable[tuple[str, str]], margin: str) -> str:
    """Write entries as numpydoc has them, from where the margin of the first one ends."""
    inner = f"\n{margin}    "
    return f"\n{margin}".join(inner.join((head, *wrapped(text))) for head, text in entries)


def wrapped(text: str) -> Iterator[str]:
    """Break a text into lines, at spaces; faster than `textwrap`."""
    while len(text) > WIDTH:
        end = text.rindex(" ", 0, WIDTH + 1)
        yield text[:end]
        text = text[end + 1 :]
    yield text
