"""The optimizers: SGD, Adagrad, RMSprop, Adam and AdamW, as objects that own the state of what they train."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np

from .arrays import is_array, is_on_device
from .checks import RESUMABLE, Count, nested_too_deeply, plain, unwrapped
from .foreign import is_one_array, kind
from .groups import GroupOptions, ParamGroup, StepFunction, check_shared, numbers_at
from .host import HostTensor
from .kernels.reader import Array
from .members import Members
from .plan import ArrayTensor, Gradients, Plan
from .rules import FAMILIES, HYPERPARAMETERS, Family, check

Params: TypeAlias = Array | Mapping[str, Any] | Iterable[Any]  # what is in them may be nested, or groups
Grads: TypeAlias = Any  # mirrors Params, with None where a parameter has no gradient
Scheduled: TypeAlias = float | Callable[[int], float]


class _Bound:
    """Stands for the gradients given to `Optimizer.bind`, where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "<the bound gradients>"


BOUND: Final = _Bound()


class Optimizer:
    """What all optimizers share: parameter groups, steps and state dicts. Not to be used by itself.

    An optimizer updates arrays in place and keeps its own state for each. A step is all or nothing: whatever is wrong
    raises before the first element changes. Steps of one optimizer from several threads wait for each other.
    """

    _family: ClassVar[Family]

    def __init__(self, params: Params, defaults: Mapping[str, Any]) -> None:
        self._defaults = dict(defaults)
        if not hasattr(self, "_family"):
            raise TypeError("Optimizer is what all optimizers share: use SGD, Adam or another of its subclasses")
        # Before params, as in torch.optim; schedules are asked by each group.
        GroupOptions(0, {"step": 0}).assign({name: value for name, value in defaults.items() if not callable(value)})
        given: Any = list(params) if isinstance(params, Iterator) else params
        self._grouped = self._are_groups(given)
        self._groups: list[ParamGroup] = []
        self._tensors: list[ArrayTensor] = []
        for group in given if self._grouped else [{"params": given}]:
            self._append(group)
        self._plan = Plan(self._groups, self._tensors, self._family.choose)
        self._bound: Gradients | None = None

    def _are_groups(self, given: Any) -> bool:
        """Say whether params is a list of groups, and not of arrays, nested or not."""
        if isinstance(given, Mapping) or not isinstance(given, Iterable) or is_one_array(given):
            return False
        return any(isinstance(entry, Mapping) and self._is_group(entry) for entry in given)  # then all have to be

    def _is_group(self, given: Mapping[str, Any]) -> bool:
        return "params" in given or any(isinstance(given.get(name), Real) for name in self._defaults)

    def _append(self, given: Any) -> None:
        if not isinstance(given, Mapping) or "params" not in given:
            raise TypeError(f"a parameter group is a dict with an entry 'params', not {given!r:.80}")
        options = {name: value for name, value in given.items() if name != "params"}
        if unknown := [name for name in options if name not in self._defaults]:
            raise ValueError(f"unknown option {unknown[0]!r}; {type(self).__name__} has {', '.join(self._defaults)}")
        group = ParamGroup(len(self._groups), {**self._defaults, **options})
        self._family.choose(group.entries)
        group.members = Members(given["params"], sum(other.members.numbers for other in self._groups))
        taken = {tensor.key for tensor in self._tensors}
        for key, array in zip(group.members.keys, group.members.arrays, strict=True):
            if key in taken:
                raise ValueError(f"two groups have a parameter named {key!r}: give each its own name")
            self._tensors.append(tensor_of(key, array, group))
        self._groups.append(group)

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The parameter groups; what is assigned in them takes effect at the next step."""
        return tuple(self._groups)

    @property
    def state(self) -> Mapping[Hashable, Mapping[str, Any]]:
        """The state of every parameter that has taken a step, by its name or index.

        Each entry has ``step``, an int, and the arrays by name. The arrays are the ones in use: writing into them
        changes the state. To exchange them or the count, use `load_state_dict`.
        """
        with self._plan.lock:
            self._plan.settle()
            return MappingProxyType(
                {
                    tensor.key: MappingProxyType({"step": tensor.step, **tensor.shown()})
                    for tensor in self._tensors
                    if tensor.step or tensor.states
                }
            )

    def step(self, grads: Grads = BOUND) -> None:
        """Update all parameters in place, by one step.

        Parameters
        ----------
        grads : optional
            Gradients that mirror the parameters as they were given: an array, a list, or a dict with the same keys,
            nested as these are; with groups, a list with one such entry per group. Each has its parameter's dtype and
            shape, in any layout; None where a parameter has no gradient, or nothing in a nested container has one,
            which then neither changes nor counts the step (its group does). They are only read, and may be new arrays
            at each step: NumPy's, or whatever shows its memory on the CPU by DLPack or as a buffer, as arrays of jax
            do. Without it, the bound gradients are used.

        Raises
        ------
        TypeError, ValueError
            If gradients do not fit, or an option or a schedule's rate is out of range; nothing has changed then.
        RuntimeError
            If no gradients are given and none are bound; from inside another step, as in a schedule.
        """
        plan = self._plan
        with plan.lock:
            if grads is BOUND:
                if self._bound is None:
                    raise RuntimeError("step() without gradients needs bound ones: call bind(grads) first")
                plan.step(self._bound)
            else:
                gradients = Gradients(plan, self._tensors, self._mirrored(grads))
                try:
                    plan.step(gradients)
                finally:
                    gradients.release()

    def bind(self, grads: Grads) -> None:
        """Keep gradient arrays that stay where they are, so that ``step()`` need not look at them again.

        That is the fast path: compute each gradient into its array, ``np.matmul(x.T, d, out=grad)`` for instance, and
        call ``step()``. A new array in the place of a bound one, in the list or dict given here, is not seen until it
        is bound as well. Bound arrays cannot be resized. ``step(grads)`` with others leaves the binding as it is.

        Parameters
        ----------
        grads
            As for `step`, but arrays of NumPy or on a GPU alone.

        Raises
        ------
        TypeError, ValueError
            If gradients do not fit; the previous binding stays then.
        """
        mirrored = self._mirrored(grads)
        for tensor, gradient in zip(self._tensors, mirrored, strict=False):  # their number is checked below
            if isinstance(gradient, np.generic):
                raise TypeError(f"the gradient of {tensor} is a NumPy scalar, which never changes: bind a 0-d array")
        with self._plan.lock:
            gradients = Gradients(self._plan, self._tensors, mirrored)
            for tensor, given, array in zip(self._tensors, mirrored, gradients.arrays, strict=True):
                if isinstance(array, np.ndarray) and not isinstance(given, np.ndarray):
                    # It may never change, as in jax, or move its memory whenever it likes, as in torch.
                    raise TypeError(
                        f"the gradient of {tensor} is {kind(given)}, which cannot be kept: bind np.array(...) of it, "
                        "and write each gradient there, or pass gradients to step"
                    )
            gradients.keep_in_place()
            self._bound = gradients

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, as in torch.optim; bound gradients have to be bound anew.

        Parameters
        ----------
        group : dict
            ``{"params": ..., "lr": ..., ...}``; options that are not given have the optimizer's defaults. Arrays in
            lists are numbered on from the groups before.

        Raises
        ------
        TypeError, ValueError
            If the group does not fit, or the optimizer was not made with a list of groups; nothing has changed then.
        """
        if not self._grouped:
            raise ValueError("gradients mirror params: to add groups, make the optimizer with a list of groups")
        with self._plan.lock:
            self._plan.refuse_inside_step()
            self._plan.away.refuse_captured()
            tensors, groups = len(self._tensors), len(self._groups)
            self._plan.settle()
            self._plan.reset()
            try:
                self._append(group)
                self._plan.validate()
            except Exception:
                del self._tensors[tensors:], self._groups[groups:]
                self._plan.reset()
                raise
            self._bound = None

    def _of(self, group: ParamGroup) -> list[ArrayTensor]:
        return [tensor for tensor in self._tensors if tensor.group is group]

    def _mirrored(self, grads: Grads) -> Sequence[Any]:
        if not self._grouped:
            return self._groups[0].members.mirrored(grads)
        if not isinstance(grads, (list, tuple)) or len(grads) != len(self._groups):
            raise ValueError(f"with groups, grads must be a list with one entry for each of {len(self._groups)} groups")
        return [
            gradient
            for group, mirror in zip(self._groups, grads, strict=True)
            for gradient in group.members.mirrored(mirror)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python and copies of arrays.

        Returns
        -------
        dict
            ``{"state": {key: {"step": int, name: array, ...}}, "param_groups": [{option: value, ..., "params":
            [key, ...]}]}``, where keys are the names of the parameters, else their indices. Of a schedule it has the
            description and the count of steps that it goes by, and the memory of a `Plateau`.
        """
        with self._plan.lock:
            state = {key: {name: _copy(value) for name, value in entry.items()} for key, entry in self.state.items()}
            groups = [
                {**group.options(), "params": [tensor.key for tensor in self._of(group)]} for group in self._groups
            ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over state and options of a `state_dict`, and its schedules, which go on from its count of steps.

        A schedule that is a function of yours cannot be saved: this optimizer's own goes on in its place. A `Plateau`
        that drives this optimizer stays the same object, with options and memory of the one that was saved; one that
        is new is ``param_groups[0].schedules["lr"]``. One that drives several groups is saved once for each, so that
        it stays one only if it drives the optimizer that loads.

        Parameters
        ----------
        state_dict : dict
            From an optimizer of the same class, over parameters of the same names, shapes and dtypes. It may have gone
            through ``np.savez("opt.npz", **state_dict)`` and ``np.load("opt.npz", allow_pickle=True)``; in ``"state"``
            the indices may be text, into which JSON turns them.

        Raises
        ------
        TypeError, ValueError
            If it is from elsewhere or does not fit; nothing has changed then.
        """
        with self._plan.lock:
            self._plan.refuse_inside_step()
            self._plan.away.refuse_captured()
            with nested_too_deeply("the state dict"):
                state_dict = unwrapped(state_dict)
                options = self._checked_groups(state_dict)
                states = self._checked_states(unwrapped(state_dict["state"]))
            for tensor, (step, arrays) in zip(self._tensors, states, strict=True):
                tensor.restore(step, arrays)
            for group, (values, schedules) in zip(self._groups, options, strict=True):
                group.restore(values, schedules)
            self._plan.reset()

    def _checked_groups(self, state_dict: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, StepFunction]]]:
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError("a state dict has the entries 'state' and 'param_groups', as state_dict() returns them")
        given = plain(state_dict["param_groups"])
        if not isinstance(given, list) or len(given) != len(self._groups):
            raise ValueError(f"the state dict must have a list of {len(self._groups)} param_groups, as this optimizer")
        checked, upcoming = [], []
        for group, entry in zip(self._groups, given, strict=True):
            keys = [tensor.key for tensor in self._of(group)]
            what = f"group {group.index} of the state dict"
            if not isinstance(entry, Mapping) or set(entry) != set(group):
                raise ValueError(f"{what} must have the entries {sorted(group)}, those of {type(self).__name__}")
            # As text, since arrays among them would not compare to one truth.
            if not isinstance(entry["params"], list) or repr(entry["params"]) != repr(keys):
                raise ValueError(f"{what} has the parameters {entry['params']!r:.200}, this optimizer {keys!r:.200}")
            values: dict[str, Any] = {name: check(name, entry[name]) for name in HYPERPARAMETERS if name in entry}
            values["step"] = Count(limit=RESUMABLE).check(f"the step of {what}", entry["step"])
            schedules = group.restored_schedules(entry["schedules"])
            upcoming.append({**values, **numbers_at(values["step"], schedules)})
            checked.append((values, schedules))
        self._plan.check_options([self._family.choose(options) for options in upcoming], upcoming)
        check_shared(self._groups, [schedules for _, schedules in checked])
        return checked

    def _checked_states(self, given: Any) -> list[tuple[int, dict[str, Array]]]:
        keys = {tensor.key for tensor in self._tensors}
        given = _by_index(given, keys)
        if not isinstance(given, Mapping) or not given.keys() <= keys:
            raise ValueError(f"the state dict has state for {list(given)!r:.200}; parameters are {list(keys)!r:.200}")
        return [self._checked_state(tensor, unwrapped(given.get(tensor.key, {"step": 0}))) for tensor in self._tensors]

    def _checked_state(self, tensor: ArrayTensor, given: Any) -> tuple[int, dict[str, Array]]:
        if not isinstance(given, Mapping) or "step" not in given or not given.keys() <= {"step", *self._family.states}:
            names = ", ".join(self._family.states)
            raise ValueError(f"the state of {tensor} must be a dict of step and {names}, not {given!r:.200}")
        step = Count(limit=RESUMABLE).check(f"the step of {tensor} in the state dict", given["step"])
        arrays = {}
        for name in self._family.states:
            if step and name not in given and name in self._family.kept:
                raise ValueError(f"the state of {tensor} has {step} steps but no {name}, without which it cannot go on")
            if name in given:
                arrays[name] = tensor.loaded(f"the {name} of {tensor} in the state dict", given[name])
        return step, arrays

    def __repr__(self) -> str:
        """Show the class, and for each group its parameters and options."""
        lines = []
        for group in self._groups:
            tensors = self._of(group)
            elements = sum(tensor.array.size for tensor in tensors)
            dtypes = "/".join(sorted({tensor.format for tensor in tensors}))
            options = {**group.options(), **group.schedules}
            shown = ", ".join(f"{name}={value!r}" for name, value in options.items() if name != "schedules")
            lines.append(f"  group {group.index}: {len(tensors)} arrays, {elements:,} elements, {dtypes}: {shown}\n")
        return f"{type(self).__name__}(\n{''.join(lines)})"

    def __reduce__(self) -> Any:
        """Refuse: a copy would train arrays that nobody holds."""
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, since it updates arrays of yours in place: "
            "save state_dict(), and load it into an optimizer over the new arrays"
        )


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
    params : array, sequence or dict of arrays, nested or not, or list of group dicts
        What to train, in place: float32 or float64, any shape, dense in memory, and writable when the optimizer is
        made; on a GPU, arrays of CuPy or of anything that it can look into, float16 and bfloat16 too. Sequences and
        dicts may hold others, ``[(w, b), ...]`` or ``{"enc": {"w": w}}``; each array then goes by its path, ``"0.1"``
        or ``"enc.w"``. A list of dicts that have an entry ``"params"`` is a list of groups, ``{"params": ..., "lr":
        ..., ...}``, with options of their own.
    lr : float or schedule, default 0.001
        Learning rate, 0 or more; or one of `fastopt.schedules`, or any callable ``step -> lr``, of the number of
        completed steps, from 0.
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

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place, two share memory, or an option is out of range.

    See Also
    --------
    fastopt.fused.momentum : the same as one call, on a velocity of your own.

    Notes
    -----
    The semantics are those of torch.optim.SGD. Different here: every parameter counts its own steps (``state[...]
    ["step"]``), and one whose gradient comes late starts late; gradients are never written; each pairs with its
    parameter by index, whatever its strides.

    In [1]_ and in Keras the rate is inside the velocity, ``v <- momentum * v - lr * g; p <- p + v``: the same while
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
        )


class Adagrad(Optimizer):
    r"""AdaGrad: a learning rate for each element, divided by the root of its summed squared gradients.

    For each parameter p with gradient g, at this parameter's t-th step, from 1::

        g <- -g                                       if maximize
        g <- g + weight_decay * p
        s <- s + g * g                                s starts at initial_accumulator_value
        p <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Parameters
    ----------
    params : array, sequence or dict of arrays, nested or not, or list of group dicts
        As for `SGD`.
    lr : float or schedule, default 0.01
        Learning rate, 0 or more; or one of `fastopt.schedules`, or any callable ``step -> lr``, of the number of
        completed steps, from 0.
    lr_decay : float, default 0.0
        How fast the rate falls with a parameter's own steps, 0 or more.
    weight_decay : float or schedule, default 0.0
        L2 penalty, 0 or more.
    initial_accumulator_value : float, default 0.0
        Where a parameter's accumulator starts, at its first gradient; 0 or more.
    eps : float, default 1e-10
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    maximize : bool, default False
        Ascend instead.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place, two share memory, or an option is out of range.

    See Also
    --------
    fastopt.fused.adagrad : the same as one call, on an accumulator of your own.

    Notes
    -----
    The semantics are those of torch.optim.Adagrad, whose state dict has the same names, ``step`` and ``sum``. Different
    here: a group's own ``initial_accumulator_value`` counts; state begins with a parameter's first gradient, not with
    the optimizer; gradients are never written, and pair with their parameters by index.

    Keras and optax put eps under the root, as 1e-7, and start at 0.1.

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
        )


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
    params : array, sequence or dict of arrays, nested or not, or list of group dicts
        As for `SGD`.
    lr : float or schedule, default 0.01
        Learning rate, 0 or more; or one of `fastopt.schedules`, or any callable ``step -> lr``, of the number of
        completed steps, from 0.
    alpha : float, default 0.99
        How much of the average is kept at each step, from 0 to 1: it remembers some ``1 / (1 - alpha)`` steps.
    eps : float, default 1e-8
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    weight_decay : float or schedule, default 0.0
        L2 penalty, 0 or more.
    momentum : float or schedule, default 0.0
        Factor of the momentum buffer, 0 or more.
    centered : bool, default False
        Divide by the standard deviation of the gradients, not by the root of their mean square.
    maximize : bool, default False
        Ascend instead.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place, two share memory, or an option is out of range.

    See Also
    --------
    fastopt.fused.rmsprop : the same as one call, on averages of your own.

    Notes
    -----
    The semantics are those of torch.optim.RMSprop, whose state dict has the same names, ``step``, ``square_avg``,
    ``momentum_buffer`` and ``grad_avg``. Different here: a variance that rounding makes negative is 0, where torch goes
    on with NaN; an alpha above 1, of which nothing but NaN would come, is refused; gradients are never written, and
    pair with their parameters by index.

    Keras and optax start from alpha 0.9, and optax has eps under the root. In [2]_ alpha is 0.95, the momentum 0.9, and
    eps is 1e-4, under the root.

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
        )


class Adam(Optimizer):
    r"""Adam: the moving average of the gradients, divided by the root of that of their squares.

    RMSProp with a momentum, and without the bias of averages that begin at 0. For each parameter p with gradient g, at
    this parameter's t-th step, from 1::

        g <- -g                                       if maximize
        g <- g + weight_decay * p
        m <- beta1 * m + (1 - beta1) * g              m and v start at 0
        v <- beta2 * v + (1 - beta2) * g * g
        w <- max(w, v)                                amsgrad, else w = v
        p <- p - lr * m / (1 - beta1**t) / (sqrt(w / (1 - beta2**t)) + eps)

    Parameters
    ----------
    params : array, sequence or dict of arrays, nested or not, or list of group dicts
        As for `SGD`.
    lr : float or schedule, default 0.001
        Learning rate, 0 or more; or one of `fastopt.schedules`, or any callable ``step -> lr``, of the number of
        completed steps, from 0. No element moves by much more in a step, whatever its gradient.
    betas : pair of float or schedule, default (0.9, 0.999)
        How much of each average is kept at each step, 0 or more and below 1. Each of the two may be a schedule, as in
        ``betas=(OneCycle(...).momentum(), 0.999)``; the corrections are those of a step's own betas then.
    eps : float, default 1e-8
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    weight_decay : float or schedule, default 0.0
        L2 penalty, 0 or more: part of the gradient, and so divided by the root; `AdamW` keeps it out of that.
    amsgrad : bool, default False
        Divide by the largest average of squares so far.
    maximize : bool, default False
        Ascend instead.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place, two share memory, or an option is out of range.

    See Also
    --------
    fastopt.fused.adam : the same as one call, on averages of your own.

    Notes
    -----
    The semantics are those of torch.optim.Adam, whose state dict has the same names, ``step``, ``exp_avg``,
    ``exp_avg_sq`` and ``max_exp_avg_sq``. Different here: steps are counted as whole numbers, for each parameter, and
    the corrections computed from these in float64; gradients are never written, and pair with their parameters by
    index. As in section 2 of [1]_, both corrections go into the rate and eps of a step; no element has to know them.

    In [2]_ the largest average is of one that has no correction at all; torch and fastopt correct it by this step's.

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
        )


class AdamW(Adam):
    r"""AdamW: Adam with a weight decay of its own, which the gradients' history does not divide.

    For each parameter p with gradient g, ahead of `Adam`'s formula without its weight decay::

        p <- (1 - lr * weight_decay) * p

    Parameters
    ----------
    params : array, sequence or dict of arrays, nested or not, or list of group dicts
        As for `SGD`.
    lr : float or schedule, default 0.001
        Learning rate, 0 or more; or one of `fastopt.schedules`, or any callable ``step -> lr``, of the number of
        completed steps, from 0.
    betas : pair of float or schedule, default (0.9, 0.999)
        How much of each average is kept at each step, 0 or more and below 1. Each of the two may be a schedule.
    eps : float, default 1e-8
        Keeps the divisor from zero; added to the root, not under it; 0 or more.
    weight_decay : float or schedule, default 0.01
        The share of a parameter that a step with a rate of 1 takes off, 0 or more.
    amsgrad : bool, default False
        Divide by the largest average of squares so far.
    maximize : bool, default False
        Ascend instead.

    Raises
    ------
    TypeError, ValueError
        If a parameter cannot be updated in place, two share memory, or an option is out of range.

    See Also
    --------
    fastopt.fused.adamw : the same as one call, on averages of your own.

    Notes
    -----
    The semantics are those of torch.optim.AdamW. Different here is what `Adam` names.

    In [1]_ a schedule's factor multiplies the weight decay, and the learning rate does not; in torch and here both do.

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
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize
        )


def tensor_of(key: Hashable, param: Any, group: ParamGroup) -> ArrayTensor:
    """Return a parameter's tensor, by where it lies."""
    if is_on_device(param):
        from .cupy_arrays import GpuTensor

        return GpuTensor(key, param, group)
    return HostTensor(key, param, group)


def _by_index(given: Any, keys: set[Hashable]) -> Any:
    """Return states with indices as their keys where a file has turned these into text, as JSON does.

    If an index and a name read alike, nobody can tell which of the two a key was: all stay as they are.
    """
    read = {str(key): key for key in keys}
    if isinstance(given, Mapping) and len(read) == len(keys) and all(isinstance(key, str) for key in given):
        return {read.get(key, key): entry for key, entry in given.items()}
    return given


def _copy(value: Any) -> Any:
    return value.copy(order="K") if is_array(value) else value
