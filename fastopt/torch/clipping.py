"""torch's clipping of gradients by their norm, which reads them once and writes only what is clipped."""

from __future__ import annotations

import contextlib
import functools
import math
import types
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backends.torch.device import CPU
from ..backends.torch.gradients import check_distribution
from ..backends.torch.memory import UPDATED, array_of, is_distributed, local
from ..backends.torch.shards import Shards
from ..step.norm import Measured, Piece, coefficient, measured, total

PLAIN = (Tensor, nn.Parameter)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients of parameters so that their norm, all together, is at most ``max_norm``; return what it was.

    ``g <- min(1, max_norm / (norm + 1e-6)) * g``: this is `torch.nn.utils.clip_grad_norm_`, with its arguments and its
    result. On the CPU, gradients are read once, and written only if they are clipped. Squares are summed in float64, so
    finite gradients never count as not finite, and nothing depends on the number of threads.

    Other norms, and gradients that are on a GPU, sparse or distributed, are left to torch's function.

    Parameters
    ----------
    parameters : iterable of Tensor, or Tensor
        Those whose gradients are clipped; the ones without a gradient are left out.
    max_norm : float
        The largest norm that is left alone.
    norm_type : float, default 2.0
        The p of the norm; may be infinite.
    error_if_nonfinite : bool, default False
        Whether gradients that are not finite raise an error.
    foreach : bool, optional
        Only for gradients that are left to torch's function.

    Returns
    -------
    Tensor
        The norm before clipping, in the gradients' dtype. In float16 it may be infinite although all is finite.

    Raises
    ------
    RuntimeError
        If a gradient is not finite, and error_if_nonfinite is true; nothing has changed then.

    See Also
    --------
    fastopt.clip_grad_norm_ : The same for arrays.
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    elif isinstance(parameters, types.GeneratorType) and not (parameters := list(parameters)):
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3)
    parameters, max_norm = list(parameters), float(max_norm)
    gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
    if not gradients or float(norm_type) != 2.0 or not all(map(_is_plain, gradients)):
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    norm, finite = CPU.norm([_piece(gradient) for gradient in gradients])
    if error_if_nonfinite and not finite:  # torch's function raises its own error
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    if (factor := coefficient(max_norm, norm)) != 1.0:
        with torch.no_grad():  # a Python number would be rounded to half precision first
            torch._foreach_mul_(gradients, torch.tensor(factor, dtype=torch.float64, device="cpu"))
    names = dict.fromkeys(UPDATED[gradient.dtype].name for gradient in gradients)
    dtypes = [getattr(torch, name) for name in names]
    return torch.tensor(norm, dtype=functools.reduce(torch.promote_types, dtypes), device="cpu")


def norm_of(params: Sequence[Tensor]) -> Measured | Tensor:
    """Return the norm of all gradients together; as a tensor where torch has to take it, on a GPU without waiting.

    Of distributed ones it is the norm of the whole, which all processes have to ask for.

    Raises
    ------
    ValueError
        If a gradient is not distributed as its parameter is.
    """
    for i, param in enumerate(params):
        if param.grad is not None:
            check_distribution(f"the gradient of parameter {i}", param.grad, param)
    found = [None if param.grad is None else values_of(param.grad) for param in params]
    gradients = [gradient for gradient in found if gradient is not None]
    if all(_is_plain(local(gradient)) for gradient in gradients):
        if (shards := Shards.of(params)) is not None:
            return _norm_of_all(shards, found)
        return CPU.norm([_piece(local(gradient)) for gradient in gradients])
    norm: Any = nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if is_distributed(norm) else norm
    return norm if norm.is_cuda else Measured(float(norm), math.isfinite(norm))


def values_of(gradient: Tensor) -> Tensor:
    """Return what counts for the norm: of a sparse gradient the values of its rows."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _norm_of_all(shards: Shards, gradients: Sequence[Tensor | None]) -> Measured:
    """Return the norm of gradients of which each process has a part and of the others; the caller holds them."""
    pieces: list[list[Piece]] = [[] for _ in range(shards.count)]
    for gradient, kind in zip(gradients, shards.kinds.tolist(), strict=True):
        if gradient is not None:
            pieces[kind].append(_piece(local(gradient)))
    with contextlib.ExitStack() as stack:
        lent = [stack.enter_context(CPU.tables(alike)) for alike in pieces]
        return measured(lambda power: shards.total(np.array([total(tables, power) for tables in lent])))


def _is_plain(gradient: Tensor) -> bool:
    """Say whether a gradient is an ordinary tensor on the CPU, whose memory holds its numbers."""
    return (
        type(gradient) in PLAIN
        and gradient.is_cpu
        and gradient.layout is torch.strided
        and gradient.dtype in UPDATED
        and not (gradient.is_conj() or gradient.is_neg() or gradient._is_zerotensor())
        and (gradient.data_ptr() != 0 or gradient.numel() == 0)
    )


def _piece(gradient: Tensor) -> Piece:
    """Describe where a gradient lies."""
    dtype = UPDATED[gradient.dtype]
    if gradient.is_contiguous():
        size = gradient.numel() * gradient.itemsize // dtype.itemsize
        return Piece(dtype.name, size, gradient.data_ptr(), None)
    return Piece.of(dtype.name, array_of(gradient))
