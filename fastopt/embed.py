"""The updates for training loops outside Python: function pointers for C, and the folder of the headers.

A pointer comes from a live Python process, and updates one array in place:

>>> update = embed.update("momentum", "float32")
>>> hyper = embed.hyper_values("momentum", lr=0.1, momentum=0.9)
>>> states = embed.ffi.new("void *[]", [embed.ffi.from_buffer(velocity)])
>>> update(embed.ffi.from_buffer(p), embed.ffi.from_buffer(g), states, p.size, embed.ffi.from_buffer("double *", hyper))

In Python, `fastopt.fused` is shorter; this is for code that takes such a pointer and calls it in a loop. ``fastopt.h``
declares its type, `fastopt_update`. C cannot check the following; the caller must:

- parameter, gradient and states have the pointer's dtype, are aligned for it, and hold n elements each;
- no two of them overlap;
- there are as many states as the rule has, and as many numbers as `hyper` names;
- all of them stay in place during the call. Nothing is kept after it.

C++ and CUDA include ``rules.h`` instead, and need no Python at run time; loops that Numba compiles call what
``fastopt.kernels.cpu`` defines.
"""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import fused, optimizers
from .checks import Count
from .kernels import build_pool, lazy
from .kernels.tables import ABI as ABI
from .options import check
from .rules import CARRIED, FAMILIES, RULES, Rule, always

#: Declares all of ``fastopt.h``, for pointers, casts and your own functions: use ``ffi.include(embed.ffi)``.
ffi = build_pool.ffi
EMBEDDED = (np.dtype("float32"), np.dtype("float64"))  # what an embedded update may be compiled for


def get_include() -> str:
    """Return the folder of ``rules.h`` and ``fastopt.h``, for a compiler's ``-I``; CMake's package file is there too.

    Returns
    -------
    str
        The folder that ``fastopt --includes`` prints after ``-I``, and ``fastopt --cmakedir`` alone.
    """
    return str(Path(build_pool.__file__).parent)


def update(rule: str, dtype: npt.DTypeLike) -> Any:
    """Return a pointer to a function that updates one array by a rule.

    Parameters
    ----------
    rule : str
        "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", or another name in `fastopt.rules.RULES`,
        where variants have names of their own: "rmsprop_centered", "adamw_amsgrad".
    dtype : dtype
        Of parameter, gradient and states: float32 or float64.

    Returns
    -------
    cffi pointer, fastopt_update
        ``void (*)(void *param, const void *grad, void *const *states, int64_t n, const double *hyper)``. Valid as long
        as the process lives; may be called from any thread, without the GIL, on one array by one thread at a time.
        ``int(ffi.cast("intptr_t", pointer))`` is its address, for use without cffi.

    Raises
    ------
    ValueError
        If there is no such rule, or not for this dtype.

    Notes
    -----
    The first call compiles the function, in about a second, and keeps it on disk.
    """
    return ffi.cast("fastopt_update", lazy.update_for_c(known(rule).name, name_of(dtype)).address)


def hyper(rule: str) -> tuple[str, ...]:
    """Return the names of the numbers that a rule's update takes, in order.

    Parameters
    ----------
    rule : str

    Returns
    -------
    tuple of str
        ``("lr", "momentum")``, for instance.

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    return known(rule).hypers


def hyper_values(rule: str, *, step: int | None = None, **options: Any) -> npt.NDArray[np.float64]:
    """Return the numbers that a rule's update takes, in the order of `hyper`.

    Parameters
    ----------
    rule : str
    step : int, optional
        The number of the step, from 1. Required for rules whose numbers change at each step, such as Adam; the others
        do not take it.
    **options
        The options of the call in `fastopt.fused`, with the same defaults: ``lr=0.1, momentum=0.9``; if there is no
        such call, those of the optimizer's class. ``maximize`` is not among them, and weight decay only where it is
        decoupled: the loop passes ``g + weight_decay * p`` or ``-g`` as the gradient. A momentum of 0, which the calls
        refuse for Nesterov, gives gradient descent. NAdam's rules also need ``mu_product``, the product of the momenta
        up to this step, which your loop keeps.

    Returns
    -------
    ndarray of float64, shape (len(hyper(rule)),)
        A new array, which you may change between calls. Entry 0 is the learning rate, but not for all rules the given
        one: Adam's lr and eps are those of this step, and include both bias corrections. NAdam has two rates, of the
        gradient and of the average, which include its corrections.

    Raises
    ------
    TypeError
        If an option without a default is missing, is unknown, or is not a number.
    ValueError
        If there is no such rule, or a number is out of range.
    """
    found = known(rule)
    call = parameters_of(found)
    names = [name for name in found.options if name in call and name not in found.of_gradient]
    needs_step = found.moves is always
    if unknown := [name for name in options if name not in names]:
        raise TypeError(f"the update of {rule!r} takes {', '.join(names)}, not {', '.join(unknown)}")
    if needs_step != (step is not None):
        raise TypeError(f"the update of {rule!r} " + ("needs its step: pass step=1" if step is None else "has no step"))
    values = {name: options.get(name, call[name]) for name in names}
    if missing := [name for name, value in values.items() if value is inspect.Parameter.empty]:
        raise TypeError(f"the update of {rule!r} needs {' and '.join(missing)}: pass {missing[0]}=...")
    checked = {
        name: check_carried(name, value) if name == found.carried else check(name, value)
        for name, value in values.items()
    }
    number = fused.ANY if step is None else Count(minimum=1).check("step", step)
    row = found.row({**dict.fromkeys(found.options, 0.0), **checked}, number, False)
    found.check_row(row, "float64")
    return np.array(row[2:])


def parameters_of(rule: Rule) -> dict[str, Any]:
    """Return the parameters of a rule's call, or of its class where there is no call, each with its default.

    A carried number is one more, without a default.
    """
    face = getattr(fused, rule.name.partition("_")[0], None)  # variants have no call of their own
    if face is None:
        face = next(getattr(optimizers, name) for name, family in FAMILIES.items() if rule in family.rules)
    found = {name: parameter.default for name, parameter in inspect.signature(face).parameters.items()}
    return found if rule.carried is None else {**found, rule.carried: inspect.Parameter.empty}


def check_carried(name: str, value: Any) -> float:
    """Return a carried number, as a step leaves it."""
    number = CARRIED.check(name, value)
    if number == 1:
        raise ValueError(f"{name} is 1 before the first step alone: pass what this step leaves")
    return number


def known(rule: str) -> Rule:
    """Return the rule of a name."""
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"there is no rule {rule!r}, but {', '.join(RULES)}")
    return RULES[rule]


def name_of(dtype: npt.DTypeLike) -> str:
    """Return the name of a dtype that kernels exist for."""
    with contextlib.suppress(TypeError, ValueError, SyntaxError):  # NumPy raises them, but takes None for float64
        if dtype is not None and (given := np.dtype(dtype)) in EMBEDDED:
            return given.name
    names = " and ".join(known.name for known in EMBEDDED)
    raise ValueError(f"there is no update for dtype {dtype!r}, but for {names}")
