"""The optimizers for torch: what torch.optim's are, by the same names, with fastopt's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from torch import Tensor

from ..rules import FAMILIES
from .base import Optimizer

Scheduled: TypeAlias = float | Tensor | Callable[[int], float]
Betas: TypeAlias = tuple[float | Callable[[int], float], float | Callable[[int], float]]


class SGD(Optimizer):
    r"""Stochastic gradient descent, plain, with momentum, or with Nesterov momentum: torch.optim.SGD, fused.

    The formulas are those of `fastopt.SGD`.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs, or of group dicts
        float32, float64, float16, bfloat16, complex64 or complex128, on the CPU or a CUDA device, of any shape and
        layout; DTensors too. What is frozen, and has no gradient, may be of any kind, and is left alone.
        Half precision is computed and kept in float32 (``momentum_buffer``), complex numbers as pairs of reals.
    lr : float, tensor of one element, or schedule, default 0.001
        Learning rate, 0 or more; or one of `fastopt.schedules`, or any callable ``step -> lr``. ``group["lr"]`` is
        a number then, that of the latest step, and ``group["schedules"]`` describes the schedule. What is assigned
        takes effect at the next step: another number ends the schedule, another callable takes its place. A scheduler
        of torch beside it starts from its peak, ``group["initial_lr"]``, and ends it, with a warning.
    momentum : float or schedule, default 0.0
        Factor of the momentum buffer, 0 or more.
    dampening : float, default 0.0
        Takes this share off every gradient but a parameter's first; with momentum only.
    weight_decay : float or schedule, default 0.0
        L2 penalty, 0 or more.
    nesterov : bool, default False
        Look ahead by one step of momentum; requires a momentum, and no dampening.
    maximize : bool, default False
        Ascend instead.
    foreach : bool or None
        Accepted, and changes nothing: all of it is one fused step.
    fused : bool or None
        True leaves to the step what ``torch.amp.GradScaler`` does else, as in torch: the kernel unscales the gradients,
        and skips the step where one is not finite; on a GPU without waiting. Captured steps and float16 parameters
        need it there. Changes nothing else.
    differentiable : bool, default False
        True is refused.

    Raises
    ------
    TypeError, ValueError
        If a parameter that trains cannot be updated, two share memory, or an option is out of range or not offered; at
        the step, where a frozen one has a gradient all of a sudden.
    RuntimeError
        If both foreach and fused are True, as in torch.optim.

    Notes
    -----
    Different from torch.optim.SGD: a step is all or nothing; gradients are never written, may come late, and pair with
    their parameters by index, whatever their strides; states of half precision are float32, also after
    `load_state_dict`; sparse gradients (COO) need momentum and weight decay to be 0.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fastopt.torch.SGD([w], lr=0.1, momentum=0.9)
    >>> w.grad = torch.full((3,), 2.0)
    >>> opt.step()
    >>> w.detach()
    tensor([0.8000, 0.8000, 0.8000])
    """

    _family = FAMILIES["SGD"]
    _eager = False

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        momentum: Scheduled = 0.0,
        dampening: float = 0.0,
        weight_decay: Scheduled = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
        )


class Adagrad(Optimizer):
    r"""AdaGrad, a learning rate for each element by the history of its gradients: torch.optim.Adagrad, fused.

    The formulas are those of `fastopt.Adagrad`.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs, or of group dicts
        As for `SGD`.
    lr : float, tensor of one element, or schedule, default 0.01
        Learning rate, 0 or more; as for `SGD`.
    lr_decay : float, default 0.0
        How fast the rate falls with a parameter's own steps, 0 or more.
    weight_decay : float or schedule, default 0.0
        L2 penalty, 0 or more.
    initial_accumulator_value : float, default 0.0
        Where the accumulators start, 0 or more; a group may have its own.
    eps : float, default 1e-10
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    maximize : bool, default False
        Ascend instead.
    foreach, differentiable, fused
        As for `SGD`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `SGD`.

    Notes
    -----
    Different from torch.optim.Adagrad, besides what `SGD` names: a group's own ``initial_accumulator_value`` counts;
    ``step`` is a tensor of float64, which counts exactly where float32 stops at 2**24.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fastopt.torch.Adagrad([w], lr=0.5)
    >>> w.grad = torch.tensor([2.0, 0.2, 0.0])
    >>> opt.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 1.0000])
    """

    _family = FAMILIES["Adagrad"]
    _eager = True

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: Scheduled = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    def share_memory(self) -> None:
        """Move the accumulators into memory that processes share, as torch.optim.Adagrad does."""
        for state in self.state.values():
            state["sum"].share_memory_()


class RMSprop(Optimizer):
    r"""RMSProp, a learning rate for each element by a history that fades: torch.optim.RMSprop, fused.

    The formulas are those of `fastopt.RMSprop`.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs, or of group dicts
        As for `SGD`.
    lr : float, tensor of one element, or schedule, default 0.01
        Learning rate, 0 or more; as for `SGD`.
    alpha : float, default 0.99
        How much of an average is kept at each step, from 0 to 1.
    eps : float, default 1e-8
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    weight_decay : float or schedule, default 0.0
        L2 penalty, 0 or more.
    momentum : float or schedule, default 0.0
        Factor of the momentum buffer, 0 or more.
    centered : bool, default False
        Divide by the standard deviation of the gradients, not by the root of their mean square.
    capturable : bool, default False
        True is refused: a step on a GPU can be captured without it.
    maximize : bool, default False
        Ascend instead.
    foreach, differentiable, fused
        As for `SGD`; torch.optim.RMSprop has no ``fused``.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `SGD`.

    Notes
    -----
    Different from torch.optim.RMSprop, besides what `SGD` names: a variance that rounding makes negative is 0, and not
    NaN; an alpha above 1 is refused; momentum and ``centered`` can begin later; ``step`` is a tensor of float64.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fastopt.torch.RMSprop([w], lr=0.05)
    >>> w.grad = torch.tensor([2.0, 0.2, 0.0])
    >>> opt.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 1.0000])
    """

    _family = FAMILIES["RMSprop"]
    _eager = False

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        momentum: Scheduled = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "capturable": capturable,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "fused": fused,
            },
        )


class Adam(Optimizer):
    r"""Adam, the average of the gradients divided by the root of that of their squares: torch.optim.Adam, fused.

    The formulas are those of `fastopt.Adam`, and with ``decoupled_weight_decay`` those of `fastopt.AdamW`.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs, or of group dicts
        As for `SGD`.
    lr : float, tensor of one element, or schedule, default 0.001
        Learning rate, 0 or more; as for `SGD`.
    betas : pair of float or schedule, default (0.9, 0.999)
        How much of each average is kept at each step, 0 or more and below 1. Tensors are refused. Each of the two may
        be a schedule, as in ``betas=(OneCycle(...).momentum(), 0.999)``. ``group["betas"]`` is a pair of numbers then,
        those of the latest step; another pair of numbers ends both schedules.
    eps : float, default 1e-8
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    weight_decay : float or schedule, default 0.0
        L2 penalty, 0 or more.
    amsgrad : bool, default False
        Divide by the largest average of squares so far.
    maximize : bool, default False
        Ascend instead.
    capturable : bool, default False
        True is refused: a step on a GPU can be captured without it.
    decoupled_weight_decay : bool, default False
        Whether weight decay is AdamW's.
    foreach, differentiable, fused
        As for `SGD`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `SGD`.

    Notes
    -----
    Different from torch.optim.Adam, besides what `SGD` names: ``amsgrad`` can begin later; ``step`` is a tensor of
    float64, which counts exactly where float32 stops at 2**24.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fastopt.torch.Adam([w], lr=0.5)
    >>> w.grad = torch.tensor([2.0, 0.2, 0.0])
    >>> opt.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 1.0000])
    """

    _family = FAMILIES["Adam"]
    _eager = False

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas) if isinstance(betas, (Sequence, np.ndarray)) else betas,  # shared by no groups
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )


class AdamW(Adam):
    r"""AdamW, Adam with a weight decay that the gradients' history does not divide: torch.optim.AdamW, fused.

    The formulas are those of `fastopt.AdamW`.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor) pairs, or of group dicts
        As for `SGD`.
    lr : float, tensor of one element, or schedule, default 0.001
        Learning rate, 0 or more; as for `SGD`.
    betas : pair of float or schedule, default (0.9, 0.999)
        How much of each average is kept at each step, 0 or more and below 1. Tensors are refused. Each of the two may
        be a schedule, as `Adam` describes.
    eps : float, default 1e-8
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    weight_decay : float or schedule, default 0.01
        The share of a parameter that a step with a rate of 1 takes off, 0 or more.
    amsgrad : bool, default False
        Divide by the largest average of squares so far.
    maximize : bool, default False
        Ascend instead.
    capturable : bool, default False
        True is refused: a step on a GPU can be captured without it.
    foreach, differentiable, fused
        As for `SGD`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `SGD`.

    Notes
    -----
    Different from torch.optim.AdamW is what `Adam` names.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fastopt.torch.AdamW([w], lr=0.5, weight_decay=0.5)
    >>> w.grad = torch.tensor([2.0, 0.2, 0.0])
    >>> opt.step()
    >>> w.detach()
    tensor([0.2500, 0.2500, 0.7500])
    """

    _fixed: ClassVar[Mapping[str, Any]] = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Scheduled = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )
