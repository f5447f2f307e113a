"""The optimizers, as objects that own their parameters' states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Optimizer, Params, Scheduled
from .faces import ARRAYS, described
from .rules import FAMILIES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .staged import AddedOptions

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "RMSprop"]


@described(ARRAYS)
class SGD(Optimizer):
    r"""Stochastic gradient descent, plain, with momentum, or with Nesterov momentum.

    For each parameter p with gradient g::

        g <- -g                                       if maximize
        g <- g + weight_decay * p
        v <- momentum * v + (1 - dampening) * g       v <- g at the parameter's first gradient
        p <- p - lr * v                               momentum
        p <- p - lr * (g + momentum * v)              Nesterov
        p <- p - lr * g                               momentum = 0, which keeps no v

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    See Also
    --------
    fastopt.fused.momentum : the same as a single call, on your own velocity.

    Notes
    -----
    The semantics are those of torch.optim.SGD, with these differences: every parameter counts its own steps
    (``state[...]["step"]``), and one whose gradient comes late starts late; gradients are never written; gradients and
    parameters are paired by index, whatever their strides.

    In [1]_ and in Keras the velocity includes the rate, ``v <- momentum * v - lr * g; p <- p + v``: the same while
    the rate is constant, but not when it changes.

    References
    ----------
    .. [1] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in deep
       learning", ICML 2013.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.SGD(w, lr=0.1, momentum=0.9)
    >>> opt.step(np.full(3, 2.0, np.float32))
    >>> w
    array([0.8, 0.8, 0.8], dtype=float32)
    """

    _family = FAMILIES["SGD"]

    def __init__(
        self,
        params: Params,
        *,
        lr: Scheduled = 0.001,
        momentum: Scheduled = 0.0,
        dampening: float = 0.0,
        weight_decay: Scheduled = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
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
            },
            added,
        )


@described(ARRAYS)
class Adagrad(Optimizer):
    r"""AdaGrad: a learning rate for each element, divided by the root of its summed squared gradients.

    For each parameter p with gradient g, at this parameter's t-th step, from 1::

        g <- -g                                       if maximize
        g <- g + weight_decay * p
        s <- s + g * g                                s starts at initial_accumulator_value
        p <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    See Also
    --------
    fastopt.fused.adagrad : the same as a single call, on your own accumulator.

    Notes
    -----
    The semantics are those of torch.optim.Adagrad, whose state dict has the same names, ``step`` and ``sum``.
    Differences: a group's own ``initial_accumulator_value`` is used; state begins with a parameter's first gradient,
    not with the optimizer; gradients are never written, and are paired with their parameters by index.

    Keras and optax put an eps of 1e-7 under the root, and start accumulators at 0.1.

    `fastopt.SparseRows` is a gradient of a few rows, whose step leaves all others as they are, as the formula does.

    With ``rowwise=True`` a table has one s for each row, ``s <- s + mean(g * g)`` over the row, as FBGEMM's
    ``EXACT_ROWWISE_ADAGRAD`` and torchrec's ``RowWiseAdagrad``; the state ``sum`` has the shape ``(rows, 1)``. On a GPU
    it goes neither with ``ema_decay`` nor into a captured graph.

    References
    ----------
    .. [1] J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
       Optimization", JMLR 12, 2011.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.Adagrad(w, lr=0.5)
    >>> opt.step(np.array([2.0, 0.2, 0.0], np.float32))
    >>> w
    array([0.5, 0.5, 1. ], dtype=float32)
    """

    _family = FAMILIES["Adagrad"]

    def __init__(
        self,
        params: Params,
        *,
        lr: Scheduled = 0.01,
        lr_decay: float = 0.0,
        weight_decay: Scheduled = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        maximize: bool = False,
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "maximize": maximize,
            },
            added,
        )


@described(ARRAYS)
class RMSprop(Optimizer):
    r"""RMSProp: a learning rate for each element, divided by the root of a moving average of its squared gradients.

    AdaGrad, with a history that fades. For each parameter p with gradient g::

        g <- -g                                       if maximize
        g <- g + weight_decay * p
        s <- alpha * s + (1 - alpha) * g * g
        a <- alpha * a + (1 - alpha) * g              centered, else a = 0
        d <- g / (sqrt(s - a * a) + eps)
        p <- p - lr * d                               momentum = 0, which keeps no v
        v <- momentum * v + d;  p <- p - lr * v       else

    All states start at 0.

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    See Also
    --------
    fastopt.fused.rmsprop : the same as a single call, on your own averages.

    Notes
    -----
    The semantics are those of torch.optim.RMSprop, whose state dict has the same names, ``step``, ``square_avg``,
    ``momentum_buffer`` and ``grad_avg``. Differences: a variance that rounding makes negative is set to 0, where torch
    computes NaN; an alpha above 1, which would give NaN, is refused; gradients are never written, and are paired with
    their parameters by index.

    The default alpha of Keras and optax is 0.9, and optax has eps under the root. In [2]_ alpha is 0.95, the momentum
    0.9, and eps is 1e-4, under the root.

    References
    ----------
    .. [1] T. Tieleman, G. Hinton, "Lecture 6.5: RMSProp", COURSERA: Neural Networks for Machine Learning, 2012.
    .. [2] A. Graves, "Generating Sequences With Recurrent Neural Networks", 2013, arXiv:1308.0850 (the centered one).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.RMSprop(w, lr=0.05, alpha=0.99)
    >>> opt.step(np.array([2.0, 0.2, 0.0], np.float32))
    >>> w
    array([0.5, 0.5, 1. ], dtype=float32)
    """

    _family = FAMILIES["RMSprop"]

    def __init__(
        self,
        params: Params,
        *,
        lr: Scheduled = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        momentum: Scheduled = 0.0,
        centered: bool = False,
        maximize: bool = False,
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
            added,
        )


@described(ARRAYS)
class Adam(Optimizer):
    r"""Adam: the moving average of the gradients, divided by the root of that of their squares.

    RMSProp with momentum, and with corrections for the bias of averages that begin at 0. For each parameter p with
    gradient g, at this parameter's t-th step, from 1::

        g <- -g                                       if maximize
        g <- g + weight_decay * p
        m <- beta1 * m + (1 - beta1) * g              m and v start at 0
        v <- beta2 * v + (1 - beta2) * g * g
        w <- max(w, v)                                amsgrad, else w = v
        p <- p - lr * m / (1 - beta1**t) / (sqrt(w / (1 - beta2**t)) + eps)

    Parameters
    ----------
    {options}
    lr
        No element moves by much more than lr in a step, whatever its gradient.
    betas
        Each step computes the bias corrections from its own betas.
    weight_decay
        Like the gradient, it is divided by the root; with `AdamW` it is not.

    Raises
    ------
    {errors}

    See Also
    --------
    fastopt.fused.adam : the same as a single call, on your own averages.

    Notes
    -----
    The semantics are those of torch.optim.Adam, whose state dict has the same names, ``step``, ``exp_avg``,
    ``exp_avg_sq`` and ``max_exp_avg_sq``. Differences: step counts are integers, one for each parameter, and the bias
    corrections are computed from them in float64; gradients are never written, and are paired with their parameters by
    index. As in section 2 of [1]_, both corrections go into the step's rate and eps instead of each element.

    In [2]_ the largest average has no bias correction; torch and fastopt apply this step's correction to it.

    References
    ----------
    .. [1] D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980.
    .. [2] S. Reddi, S. Kale, S. Kumar, "On the Convergence of Adam and Beyond", ICLR 2018 (AMSGrad).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.Adam(w, lr=0.5)
    >>> opt.step(np.array([2.0, 0.2, 0.0], np.float32))
    >>> w
    array([0.5, 0.5, 1. ], dtype=float32)
    """

    _family = FAMILIES["Adam"]

    def __init__(
        self,
        params: Params,
        *,
        lr: Scheduled = 0.001,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
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
            },
            added,
        )


@described(ARRAYS)
class AdamW(Adam):
    r"""AdamW: Adam with a separate weight decay, which the gradients' history does not divide.

    For each parameter p with gradient g, before `Adam`'s formula without its weight decay::

        p <- (1 - lr * weight_decay) * p

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    See Also
    --------
    fastopt.fused.adamw : the same as a single call, on your own averages.

    Notes
    -----
    The semantics are those of torch.optim.AdamW, with the differences that `Adam` names.

    In [1]_ the weight decay is multiplied by a schedule's factor only, in torch and fastopt by the learning rate too.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.AdamW(w, lr=0.5, weight_decay=0.5)
    >>> opt.step(np.array([2.0, 0.2, 0.0], np.float32))
    >>> w
    array([0.25, 0.25, 0.75], dtype=float32)
    """

    _family = FAMILIES["AdamW"]

    def __init__(
        self,
        params: Params,
        *,
        lr: Scheduled = 0.001,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.01,
        amsgrad: bool = False,
        maximize: bool = False,
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            **added,
        )


@described(ARRAYS)
class Lion(Optimizer):
    r"""Lion: steps of one length for all elements, in the direction of the sign of an average of the gradients.

    For each parameter p with gradient g::

        g <- -g                                       if maximize
        u <- sign(beta1 * m + (1 - beta1) * g)        m starts at 0; sign(0) = 0
        p <- (1 - lr * weight_decay) * p - lr * u
        m <- beta2 * m + (1 - beta2) * g

    Parameters
    ----------
    {options}
    lr
        Every element moves by it; Chen et al. take a third to a tenth of AdamW's, and three to ten times its weight
        decay.

    Raises
    ------
    {errors}

    Notes
    -----
    As Algorithm 2 of [1]_. torch.optim has no such optimizer. It keeps one state, ``exp_avg``, where Adam keeps two.

    References
    ----------
    .. [1] X. Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, arXiv:2302.06675.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.Lion(w, lr=0.5)
    >>> opt.step(np.array([2.0, 0.2, 0.0], np.float32))
    >>> w
    array([0.5, 0.5, 1. ], dtype=float32)
    """

    _family = FAMILIES["Lion"]

    def __init__(
        self,
        params: Params,
        *,
        lr: Scheduled = 1e-4,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.99),
        weight_decay: Scheduled = 0.0,
        maximize: bool = False,
        **added: Unpack[AddedOptions],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}, added)


@described(ARRAYS)
class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov's momentum, which looks ahead by a step, and grows.

    For each parameter p with gradient g, at this parameter's t-th step, from 1::

        g <- -g                                       if maximize
        g <- g + weight_decay * p                     decoupled_weight_decay: p <- (1 - lr * weight_decay) * p
        m <- beta1 * m + (1 - beta1) * g              m and v start at 0
        v <- beta2 * v + (1 - beta2) * g * g
        mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2)
        c <- c * mu(t)                                mu_product, which starts at 1
        u <- (1 - mu(t)) * g / (1 - c) + mu(t + 1) * m / (1 - c * mu(t + 1))
        p <- p - lr * u / (sqrt(v / (1 - beta2**t)) + eps)

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}

    Notes
    -----
    The semantics are those of torch.optim.NAdam, whose state dict has the same names, ``step``, ``mu_product``,
    ``exp_avg`` and ``exp_avg_sq``. Differences: those that `Adam` names; and ``mu_product`` is a float, where torch's
    is rounded to float32 at each step.

    References
    ----------
    .. [1] T. Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.ones(3, np.float32)
    >>> opt = fastopt.NAdam(w, lr=0.5, momentum_decay=0.0)
    >>> opt.step(np.array([2.0, 0.2, 0.0], np.float32))
    >>> w.round(4)
    array([0.4718, 0.4718, 1.    ], dtype=float32)
    """

    _family = FAMILIES["NAdam"]

    def __init__(
        self,
        params: Params,
        *,
        lr: Scheduled = 2e-3,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
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
            },
            added,
        )
