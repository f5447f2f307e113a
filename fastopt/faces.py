"""The docstrings of a rule's faces: the optimizer over arrays, the single call, and the optimizer for torch.

Each face writes out its signature, for people and tools. The descriptions of parameters stand once for all faces:
options in `rules.py`, the others here. `described` completes the docstrings with types and texts from these two
tables, and with defaults from the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from .options import ADDED_DEFAULTS, ADDED_OPTIONS, NOTHING, OPTIONS, Argument

Described = TypeVar("Described", bound=Callable[..., Any])

TAKES_MORE = 0x08  # CO_VARKEYWORDS, for the options of the stages
WIDTH = 112  # of a parameter's description: 120, less two indentations

SPECIAL: dict[Any, Mapping[str, str]] = {}  # what the docstring of a class or function adds to texts of parameters


class Face:
    """What the docstrings of one kind of face have in common.

    Attributes
    ----------
    arguments : mapping of str to Argument
        The parameters that are not options.
    errors : mapping of str to str
        The exceptions, and when they are raised.
    schedules : bool
        Whether options may be schedules.
    also : mapping of str to str
        Additions to the texts of options.
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
        """Iterate over the parameters of a class or function: ``name : kind, default``, and its description."""
        for name, default in parameters(thing):
            argument = self.arguments.get(name) or OPTIONS.get(name) or ADDED_OPTIONS[name]
            scheduled = argument.scheduled if self.schedules else None
            kind = argument.kind if scheduled is None else f"{argument.kind} or schedule"
            text = argument.of.get(thing.__name__.lower(), argument.text)
            texts = (text, scheduled, self.also.get(name), special.get(name))
            yield f"{name} : {kind}{default}", " ".join(filter(None, texts))


ARRAYS = Face(
    {
        "params": Argument(
            "array, sequence or dict of arrays, nested or not, or list of group dicts",
            "The arrays to train in place: float32, float64, float16 or bfloat16 (of ml_dtypes), any shape, dense in "
            "memory, and writable when the optimizer is made; on a GPU, CuPy arrays or anything that CuPy can read. "
            'Sequences and dicts may be nested, ``[(w, b), ...]`` or ``{"enc": {"w": w}}``; the key of an array is '
            'then its path, ``"0.1"`` or ``"enc.w"``. A list of dicts with an entry ``"params"`` is a list of groups, '
            '``{"params": ..., "lr": ..., ...}``, with options of their own.',
        ),
    },
    errors={
        "TypeError, ValueError": "If a parameter cannot be updated in place, two share memory, or an option is out of "
        "range.",
    },
)


def state(text: str, begins: str = "zeros before the first step", use: str = "") -> Argument:
    """Describe a state, which a single call takes besides p and g."""
    kind = "array, dtype and shape of p (float32 for half precision)"
    return Argument(kind, f"{text}, updated in place; dense and writable; {begins}.{use}")


CALL = Face(
    {
        "p": Argument(
            "array of NumPy or CuPy, any shape",
            "Parameter, updated in place; dense and writable; float32, float64, float16 or bfloat16.",
        ),
        "g": Argument(
            "array, dtype and shape of p",
            "Gradient, any strides.",
            of=dict.fromkeys(
                ("sgd", "adagrad"),
                "Gradient, any strides; or `fastopt.SparseRows`, whose rows alone are touched, without weight decay.",
            ),
        ),
        "velocity": state("Momentum buffer"),
        "accumulator": state("Sum of squared gradients", "zeros or a small positive value before the first step"),
        "square_avg": state("Average of squared gradients"),
        "momentum_buffer": state("Momentum buffer"),
        "grad_avg": state("Average of gradients"),
        "exp_avg": state("Average of gradients"),
        "exp_avg_sq": state("Average of squared gradients"),
        "max_exp_avg_sq": state("Largest average of squares so far", use=" With it the update is AMSGrad's."),
        "step": Argument("int", "The number of this parameter's step, from 1; the bias corrections depend on it."),
    },
    errors={"TypeError, ValueError": "If an argument does not fit; nothing has changed then."},
    schedules=False,
)

TORCH = Face(
    {
        "params": Argument(
            "iterable of tensors, of (name, tensor) pairs, or of group dicts",
            "float32, float64, float16, bfloat16, complex64 or complex128, on the CPU or a CUDA device, of any shape "
            "and layout; DTensors too. Frozen parameters, which have no gradient, may be of any kind; nothing is done "
            "to them. For half precision, arithmetic and states are float32; complex numbers are pairs of reals.",
        ),
        "foreach": Argument("bool", "Accepted, and changes nothing: a step is always fused."),
        "fused": Argument(
            "bool",
            "True hands unscaling and skipping from ``torch.amp.GradScaler`` to the step, as in torch: the kernel "
            "unscales the gradients, and skips the step if one is not finite; on a GPU without waiting. With a scaler, "
            "captured steps and float16 parameters need it. It changes nothing else.",
        ),
        "capturable": Argument("bool", "True is refused: a step on a GPU can be captured without it."),
        "differentiable": Argument("bool", "True is refused."),
    },
    errors={
        "TypeError, ValueError": "If a parameter that trains cannot be updated, two share memory, or an option is "
        "out of range or not offered. A frozen parameter is checked at the first step at which it has a gradient.",
        "RuntimeError": "If both foreach and fused are True, as in torch.optim.",
    },
    also={
        "lr": 'With a schedule, ``group["lr"]`` is the rate of the latest step, and ``group["schedules"]`` describes '
        "the schedule. Assignments take effect at the next step: another number ends the schedule, another callable "
        'replaces it. A scheduler of torch starts from the schedule\'s peak, ``group["initial_lr"]``, and ends the '
        "schedule, with a warning. A number may be a tensor of one element.",
        "betas": 'With a schedule, ``group["betas"]`` is a pair of numbers, those of the latest step; another pair of '
        "numbers ends both schedules. Tensors are refused.",
    },
)


def described(face: Face, like: type | None = None) -> Callable[[Described], Described]:
    """Complete the docstring of a class or function by replacing marks.

    ``{options}`` becomes an entry for each parameter in the signature; entries that follow the mark are added to the
    texts of those parameters. ``{errors}`` becomes the entries under Raises. ``{formulas}`` becomes the part between
    summary and parameters in the docstring of another class, ``like``, whose additions are taken over too.
    """

    def complete(thing: Described) -> Described:
        before, mark, after = (thing.__doc__ or "").partition("{options}")
        if mark:  # under python -OO there are no docstrings
            margin = before[before.rfind("\n") + 1 :]
            special, _, after = after.partition("\n\n")
            SPECIAL[thing] = additions(special, margin)
            if like is not None:
                before = before.replace("{formulas}", formulas(like))
                SPECIAL[thing] = {**SPECIAL[like], **SPECIAL[thing]}
            options = listed(face.entries(thing, SPECIAL[thing]), margin)
            errors = listed(face.errors.items(), margin)
            thing.__doc__ = f"{before}{options}\n\n{after}".replace("{errors}", errors)
        return thing

    return complete


def parameters(thing: Any) -> Iterator[tuple[str, str]]:
    """Iterate over the names in a signature, each with a text about its default; faster than `inspect`."""
    function, own = (vars(thing)["__init__"], 1) if isinstance(thing, type) else (thing, 0)
    code, last = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    defaults = dict(zip(names[code.co_argcount - len(last) : code.co_argcount], last, strict=True))
    defaults.update(function.__kwdefaults__ or {})
    more = ADDED_DEFAULTS if code.co_flags & TAKES_MORE else {}
    defaults.update(more)
    for name in (*names[own:], *more):
        if name not in defaults:
            yield name, ""
        elif defaults[name] is None:
            yield name, ", optional"
        else:
            yield name, f", default {defaults[name]!r}".replace("e-0", "e-")


def additions(text: str, margin: str) -> dict[str, str]:
    """Parse the entries after the mark: ``{name of a parameter: text}``."""
    found: dict[str, str] = {}
    name = ""
    for line in text.split("\n")[1:]:
        if line.startswith(margin + " "):
            found[name] = f"{found.get(name, '')} {line.strip()}".lstrip()
        else:
            name = line.strip()
    return found


def formulas(like: type) -> str:
    """Return the part of a class's docstring between summary and parameters."""
    return (like.__doc__ or "").partition("\n\n")[2].partition("Parameters\n")[0].strip()


def listed(entries: Iterable[tuple[str, str]], margin: str) -> str:
    """Return entries in numpydoc's layout; the first one is already indented."""
    inner = f"\n{margin}    "
    return f"\n{margin}".join(inner.join((head, *wrapped(text))) for head, text in entries)


def wrapped(text: str) -> Iterator[str]:
    """Break a text into lines, at spaces; faster than `textwrap`."""
    while len(text) > WIDTH:
        end = text.rindex(" ", 0, WIDTH + 1)
        yield text[:end]
        text = text[end + 1 :]
    yield text
