"""The optimizers for torch: those of torch.optim, with the same names and fastopt's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from torch import Tensor

from .. import optimizers as arrays
from ..faces import TORCH, described
from ..rules import FAMILIES, OF_ROWS
from ..staged import expected
from .base import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..staged import AddedOptions

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "RMSprop", "SparseAdam"]

Scheduled: TypeAlias = float | Tensor | Callable[[int], float]
Betas: TypeAlias = tuple[float | Callable[[int], float], float | Callable[[int], float]]


@described(TORCH, like=arrays.SGD)
class SGD(Optimizer):
    r"""Stochastic gradient descent, plain, with momentum, or with Nesterov momentum: torch.optim.SGD, fused.

    {formulas}

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    Notes
    -----
    Differences from torch.optim.SGD: a step is all or nothing; gradients are never written, may come late, and are
    paired with their parameters by index, whatever their strides; states of half precision are float32, also after
    `load_state_dict`.

    With sparse gradients (COO), momentum and weight decay must be 0, unless ``lazy_update=True`` leaves the rows alone
    that have no gradient; torch.optim.SGD takes a momentum there, and moves all rows.

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
        **added: Unpack[AddedOptions],
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
            added,
        )


@described(TORCH, like=arrays.Adagrad)
class Adagrad(Optimizer):
    r"""AdaGrad, a learning rate for each element by the history of its gradients: torch.optim.Adagrad, fused.

    {formulas}

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    Notes
    -----
    Differences from torch.optim.Adagrad, besides those that `SGD` names: a group's own ``initial_accumulator_value`` is
    used; ``step`` is a tensor of float64, since float32 stops counting at 2**24.

    With sparse gradients (COO), weight decay must be 0, as in torch, unless ``lazy_update=True``.

    ``rowwise=True`` is torchrec's ``RowWiseAdagrad``: one accumulator for each row of a table, of shape ``(rows, 1)``,
    for sparse and dense gradients. It needs a contiguous parameter, which is not distributed; on a GPU it goes neither
    with ``ema_decay`` nor into a captured graph, and sparse gradients take all parameters on that GPU.

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
        **added: Unpack[AddedOptions],
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
            added,
        )

    def share_memory(self) -> None:
        """Move the accumulators into shared memory, as torch.optim.Adagrad does."""
        for state in self.state.values():
            state["sum"].share_memory_()


@described(TORCH, like=arrays.RMSprop)
class RMSprop(Optimizer):
    r"""RMSProp, a learning rate for each element by a history that fades: torch.optim.RMSprop, fused.

    {formulas}

    Parameters
    ----------
    {options}
    fused
        torch.optim.RMSprop has none.

    Raises
    ------
    {errors}

    Notes
    -----
    Differences from torch.optim.RMSprop, besides those that `SGD` names: a variance that rounding makes negative is 0
    instead of giving NaN; an alpha above 1 is refused; momentum and ``centered`` can begin later; ``step`` is a tensor
    of float64.

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
        **added: Unpack[AddedOptions],
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
            added,
        )


@described(TORCH, like=arrays.Adam)
class Adam(Optimizer):
    r"""Adam, the average of the gradients divided by the root of that of their squares: torch.optim.Adam, fused.

    {formulas}

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    Notes
    -----
    Differences from torch.optim.Adam, besides those that `SGD` names: ``amsgrad`` can begin later; ``step`` is a tensor
    of float64, since float32 stops counting at 2**24.

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
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
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
            added,
        )


@described(TORCH, like=arrays.AdamW)
class AdamW(Adam):
    r"""AdamW, Adam with a weight decay that the gradients' history does not divide: torch.optim.AdamW, fused.

    {formulas}

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    Notes
    -----
    The differences from torch.optim.AdamW are those that `Adam` names.

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
        **added: Unpack[AddedOptions],
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
            **expected(type(self), added),
        )


@described(TORCH, like=arrays.Lion)
class Lion(Optimizer):
    r"""Lion, steps of one length for all elements, by the sign of an average of the gradients; torch.optim has none.

    {formulas}

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    Notes
    -----
    What `SGD` says of steps and states is true here as well. Sparse gradients (COO)
    need ``lazy_update=True``.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fastopt.torch.Lion([w], lr=0.5)
    >>> w.grad = torch.tensor([2.0, 0.2, 0.0])
    >>> opt.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 1.0000])
    """

    _family = FAMILIES["Lion"]
    _eager = False

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: Scheduled = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
            added,
        )


@described(TORCH, like=arrays.NAdam)
class NAdam(Optimizer):
    r"""NAdam, Adam with Nesterov's momentum: torch.optim.NAdam, fused.

    {formulas}

    Parameters
    ----------
    {options}
    fused
        torch.optim.NAdam has none.

    Raises
    ------
    {errors}

    Notes
    -----
    Differences from torch.optim.NAdam, besides those that `SGD` names: ``step`` and ``mu_product`` are tensors of
    float64.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> opt = fastopt.torch.NAdam([w], lr=0.5, momentum_decay=0.0)
    >>> w.grad = torch.tensor([2.0, 0.2, 0.0])
    >>> opt.step()
    >>> w.detach()
    tensor([0.4718, 0.4718, 1.0000])
    """

    _family = FAMILIES["NAdam"]
    _eager = False

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
            },
            added,
        )


@described(TORCH)
class SparseAdam(Optimizer):
    r"""Adam for sparse gradients, which moves only the rows that have one: torch.optim.SparseAdam, fused.

    For the rows of each parameter p that have a gradient g, at this parameter's t-th step, from 1::

        g <- -g                                       if maximize
        m <- beta1 * m + (1 - beta1) * g              m and v start at 0
        v <- beta2 * v + (1 - beta2) * g * g
        p <- p - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    Notes
    -----
    It differs from ``Adam(lazy_update=True)``, which takes dense gradients too, in eps: there it is added to the root
    of the corrected average. Dense gradients are refused, by a RuntimeError of the step, as in torch.

    Differences from torch.optim.SparseAdam, besides those that `SGD` names: ``step`` is a tensor of float64; ``lr`` and
    ``betas`` may be schedules.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> embedding = torch.nn.Embedding(1000, 16, sparse=True)
    >>> opt = fastopt.torch.SparseAdam(embedding.parameters(), lr=0.1)
    >>> embedding(torch.tensor([3, 5, 3])).sum().backward()
    >>> opt.step()
    """

    _family = OF_ROWS
    _eager = False

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize}, added)
