"""The norm of gradients, and clipping by it, for training loops of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from .backends.foreign import is_on_device, is_one_array, to_clip, to_read
from .backends.numpy import norm as on_cpu
from .checks import Flag, Number
from .containers import held_for_good, is_same, leaves
from .kernels.reader import Array
from .step.norm import coefficient, not_finite

MAX_NORM = Number("max_norm", maximum=math.inf)


def grad_norm(grads: Any) -> Any:
    """Return the norm of all gradients together: the square root of the sum of all their squares.

    Squares are summed in float64, in an order that does not depend on the number of threads. Finite gradients have a
    finite norm, unless it is itself beyond float64.

    Parameters
    ----------
    grads : array, sequence, mapping or iterable
        Gradients as an optimizer's ``step`` takes them, in nested containers if you like; None is left out. Arrays are
        float16, float32 or float64, with any strides; or all of them are arrays of CuPy on one GPU.

    Returns
    -------
    float
        NaN or infinite if any gradient is; 0 if there are none. For gradients on a GPU it is a 0-d array of float64
        there, and nothing waits for it.

    Raises
    ------
    TypeError, ValueError
        If something in grads is no such array.

    See Also
    --------
    clip_grad_norm_ : Clip gradients by this norm.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt
    >>> fastopt.grad_norm({"w": np.array([[3.0], [0.0]]), "b": np.array([4.0]), "unused": None})
    5.0
    """
    found = leaves("grads", _held(grads, lambda value: to_read(value, on_cpu.USUAL)))
    if (on_gpu := _on_gpu(found)) is not None:
        return on_gpu.norm(_named(found))
    return on_cpu.norm(_checked(found, on_cpu.readable)).norm


def clip_grad_norm_(grads: Any, max_norm: float, *, error_if_nonfinite: bool = False) -> Any:
    """Scale gradients in place so that the norm of all of them together is at most ``max_norm``; return what it was.

    ``g <- min(1, max_norm / (norm + 1e-6)) * g``, as in ``torch.nn.utils.clip_grad_norm_``. Gradients whose norm is
    small enough are read once and not written. An interrupt comes before gradients are changed or after that.

    Parameters
    ----------
    grads : array, sequence, mapping or iterable
        As for `grad_norm`, but arrays of NumPy or CuPy themselves.
    max_norm : float
        The largest norm that is left alone, 0 or more.
    error_if_nonfinite : bool, default False
        Whether gradients that are not finite raise an error. If they do not, they become what torch makes of them:
        all of them NaN if the norm is NaN, and otherwise 0, but NaN where they were infinite. On a GPU it takes a wait
        to find out.

    Returns
    -------
    float
        The norm before clipping, as `grad_norm` returns it.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or gradients that are to be clipped are read-only or overlap; nothing has changed
        then.
    FloatingPointError
        If a gradient is not finite, and error_if_nonfinite is true; nothing has changed then either.

    See Also
    --------
    grad_norm : Only return the norm.

    Examples
    --------
    >>> import numpy as np
    >>> import fastopt
    >>> grads = {"w": np.array([[3.0], [0.0]]), "b": np.array([4.0])}
    >>> fastopt.clip_grad_norm_(grads, 1.0)
    5.0
    >>> grads["b"].round(5)
    array([0.8])
    """
    max_norm = MAX_NORM.check("max_norm", max_norm)
    error_if_nonfinite = Flag().check("error_if_nonfinite", error_if_nonfinite)
    held = _held(grads, to_clip)
    found = leaves("grads", held)
    if (on_gpu := _on_gpu(found)) is not None:
        return on_gpu.clip(_named(found), max_norm, error_if_nonfinite)
    arrays = _checked(found, on_cpu.clippable)
    norm, finite = on_cpu.norm(arrays)
    if error_if_nonfinite and not finite:
        raise FloatingPointError(not_finite(norm))
    if (factor := coefficient(max_norm, norm)) != 1.0:
        _check_kept(found, leaves("grads", held))
        on_cpu.check_writable([(_name(key), array) for (key, _), array in zip(found, arrays, strict=True)])
        on_cpu.multiply(arrays, factor)
    return norm


Found = Sequence[tuple[Hashable, Any]]  # gradients, each with its key or path


def _held(grads: Any, advice: Callable[[Any], str]) -> Any:
    """Return gradients in containers that can be iterated over more than once."""
    if grads is None or is_one_array(grads):
        grads = [grads]
    return held_for_good("grads", grads, advice)


def _on_gpu(found: Found) -> Any:
    """Return what computes with gradients on a GPU, if any is there; else None."""
    if not any(is_on_device(given) for _, given in found):
        return None
    from .backends.cupy import norm

    return norm


def _name(key: Hashable) -> str:
    return f"gradient {key!r}"


def _named(found: Found) -> list[tuple[str, Any]]:
    return [(_name(key), given) for key, given in found]


def _checked(found: Found, check: Callable[[str, Any], Array]) -> list[Array]:
    return [given if on_cpu.is_usual(given) else check(_name(key), given) for key, given in found]


def _check_kept(found: Found, again: Found) -> None:
    """Raise if a container makes a new array at each access, as ``np.load("g.npz")`` does."""
    for (key, given), (_, other) in zip(found, again, strict=True):
        if not is_same(given, other):
            raise ValueError(
                f"grads makes another array of {_name(key)} at each access, so the clipped one would be lost: "
                "clip its arrays in a dict or a list, as dict(np.load(file)), and use that"
            )
