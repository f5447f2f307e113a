"""What the optimizers over arrays share: parameter groups, steps and state dicts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np

from .backends.arrays import ArrayParameter, Gradients
from .backends.foreign import is_array, is_on_device, is_one_array, kind
from .backends.numpy.parameter import NumpyParameter
from .checks import RESUMABLE, Count, nested_too_deeply, plain, unwrapped
from .containers import ParamTree
from .groups import ParamGroup
from .kernels.reader import Array
from .options import ADDED_OPTIONS, HYPERPARAMETERS, NOTHING, OWN_OPTIONS, check, rounding_by_default
from .rules import CARRIED, Family
from .staged import Staged, options_in_use
from .step.codes import SCALES
from .step.group import GroupOptions, StepFunction, check_shared, numbers_at
from .step.guard import Guard
from .step.interrupts import HeldBack
from .step.masters import MASTER
from .step.parameter import EMA
from .step.stages import Stages, needs_norm
from .step.stepper import Stepper

Params: TypeAlias = Array | Mapping[str, Any] | Iterable[Any]  # entries may be nested containers, or groups

Grads: TypeAlias = Any  # mirrors Params, with None where a parameter has no gradient

Scheduled: TypeAlias = float | Callable[[int], float]

Loaded: TypeAlias = tuple[dict[str, Any], dict[str, Any], dict[str, StepFunction]]  # see `Optimizer._checked_groups`


class _Bound:
    """The default of `Optimizer.step`: use the bound gradients. None would mean a missing gradient."""

    def __repr__(self) -> str:
        return "<the bound gradients>"


BOUND: Final = _Bound()


class Optimizer(Staged):
    """The base class of all optimizers: parameter groups, steps and state dicts. Use one of its subclasses.

    An optimizer updates arrays in place and keeps a state for each. A step is all or nothing: errors are raised before
    the first element changes. If several threads call ``step``, the steps run one after the other.
    """

    _family: ClassVar[Family]

    def __init__(self, params: Params, defaults: Mapping[str, Any], stages: Mapping[str, Any] = NOTHING) -> None:
        self._defaults = defaults = {**defaults, **options_in_use(type(self), stages)}
        self._stages = Stages()
        if not hasattr(self, "_family"):
            raise TypeError("Optimizer is what all optimizers share: use SGD, Adam or another of its subclasses")
        # Checked before params, as in torch.optim; each group checks its own schedules.
        GroupOptions(0, {"step": 0}).assign({name: value for name, value in defaults.items() if not callable(value)})
        listed: Any = list(params) if isinstance(params, Iterator) else params
        self._grouped = self._are_groups(listed)
        self._groups: list[ParamGroup] = []
        self._parameters: list[ArrayParameter] = []
        for group in listed if self._grouped else [{"params": listed}]:
            self._append(group, self._groups, self._parameters)
        self._guard = Guard()
        self._stepper = self._new_stepper(self._parameters, self._groups)
        self._stepper.clock.attach()
        self._bound: Gradients | None = None

    def _new_stepper(self, parameters: list[ArrayParameter], groups: list[ParamGroup]) -> Stepper:
        return Stepper(parameters, groups, self._family, self._guard, self._stages)

    def _are_groups(self, given: Any) -> bool:
        """Say whether params is a list of groups; else it is arrays, nested or not."""
        if isinstance(given, Mapping) or not isinstance(given, Iterable) or is_one_array(given):
            return False
        return any(isinstance(entry, Mapping) and self._is_group(entry) for entry in given)  # if one is, all must be

    def _is_group(self, given: Mapping[str, Any]) -> bool:
        return "params" in given or any(isinstance(given.get(name), Real) for name in self._defaults)

    def _append(self, given: Any, groups: list[ParamGroup], parameters: list[ArrayParameter]) -> None:
        if not isinstance(given, Mapping) or "params" not in given:
            raise TypeError(f"a parameter group is a dict with an entry 'params', not {given!r:.80}")
        options = {name: value for name, value in given.items() if name != "params"}
        if unknown := [name for name in options if name not in self._defaults and name not in ADDED_OPTIONS]:
            raise ValueError(f"unknown option {unknown[0]!r}; {type(self).__name__} has {', '.join(self._defaults)}")
        entries = {**self._defaults, **options}
        group = ParamGroup(len(groups), {**entries, **rounding_by_default(self._family.states, entries)})
        self._family.choose(group.entries)
        group.tree = ParamTree(given["params"], sum(other.tree.numbers for other in groups))
        taken = {parameter.key for parameter in parameters}
        for key, array in zip(group.tree.keys, group.tree.arrays, strict=True):
            if key in taken:
                raise ValueError(f"two groups have a parameter named {key!r}: give each its own name")
            parameters.append(parameter_of(key, array, group))
            parameters[-1].number = len(parameters) - 1
        groups.append(group)

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The parameter groups; options assigned in them take effect at the next step."""
        return tuple(self._groups)

    @property
    def state(self) -> Mapping[Hashable, Mapping[str, Any]]:
        """The state of every parameter that has taken a step, by its name or index.

        Each entry has ``step``, an int, and the arrays by name. They are the arrays in use: writing into them changes
        the state. To replace them or the step count, use `load_state_dict`.
        """
        with self._guard.mutex:
            self._stepper.clock.write_counts()
            return MappingProxyType(
                {
                    parameter.key: MappingProxyType({**self._counts(parameter), **parameter.shown()})
                    for parameter in self._parameters
                    if parameter.step or parameter.states
                }
            )

    def _counts(self, parameter: ArrayParameter) -> dict[str, Any]:
        """Return what the clock keeps for a parameter: its step count, and the number that its rule carries."""
        carried = self._family.carried
        return {"step": parameter.step} if carried is None else {"step": parameter.step, carried: parameter.carried}

    @property
    def grad_norm(self) -> Any:
        """The norm of all gradients of the last step together, before clipping; None if it was never asked for.

        Set ``max_grad_norm`` to have it measured, to infinity if nothing is to be clipped.
        """
        with self._guard.mutex:
            return self._stepper.clock.grad_norm()

    def _settle(self) -> None:
        with self._guard.mutex:
            self._stepper.clock.settle()

    def _current_stepper(self) -> Stepper:
        return self._stepper

    def _averages(self) -> list[tuple[Any, Any]]:
        return [(p.whole, p.shown()[EMA]) for p in self._parameters if EMA in p.states]

    def _saved(self, array: Any) -> Any:
        return _copy(array)

    def _write(self, array: Any, values: Any) -> None:
        array[...] = values

    def step(self, grads: Grads = BOUND, *, zero_grads: bool = False) -> None:
        """Update all parameters in place, by one step.

        Parameters
        ----------
        grads : optional
            Gradients in the same structure as the parameters: an array, a list, or a dict with the same keys, nested
            alike; with groups, a list with one such entry per group. Each has its parameter's dtype and shape, and any
            layout. None stands for a missing gradient, or for all of a nested container: these parameters do not
            change and do not count the step (their group does). Gradients are only read, and may be new arrays at each
            step: NumPy arrays, or anything on the CPU that supports DLPack or the buffer protocol, such as jax arrays.
            By default, the bound gradients are used.
        zero_grads : bool, default False
            Whether to set the gradients to zero in the same pass, also if the step is skipped. They must be writable
            then, and may not overlap each other.

        Raises
        ------
        TypeError, ValueError
            If gradients do not fit, or an option or a schedule's rate is out of range; nothing has changed then.
        RuntimeError
            If no gradients are given and none are bound, or if it is called inside another step, by a schedule.
        """
        with self._guard.mutex:
            if grads is BOUND:
                if self._bound is None:
                    raise RuntimeError("step() without gradients needs bound ones: call bind(grads) first")
                self._take(self._bound, zero_grads)
            else:
                gradients = Gradients(self._stepper.plan, self._parameters, self._mirrored(grads))
                try:
                    self._take(gradients, zero_grads)
                finally:
                    gradients.release()

    def _take(self, gradients: Gradients, zero_grads: bool) -> None:
        guard = self._guard
        if guard.stepping.locked():
            guard.refuse_inside_step()
        if zero_grads:
            self._take_and_zero(gradients)
        elif not self._stepper.repeat(gradients):
            self._stages.zeroes = False
            with guard.stepping:
                self._stepper.take(gradients)

    def _take_and_zero(self, gradients: Gradients) -> None:
        """Take a step that sets the gradients to zero."""
        stages, skipped, clock = self._stages, self._stages.skipped, self._stepper.clock
        gradients.check_writable(self._parameters)
        unseen = self._stepper.plan.uses_gpus and needs_norm(self._groups[0].entries)  # a GPU may skip the step
        by_rows = gradients.sparse or gradients.there
        in_kernels = not (gradients.strided or gradients.copies or by_rows or unseen)
        clock.take_back()
        try:
            if in_kernels != stages.zeroes or not self._stepper.repeat(gradients):
                stages.zeroes = in_kernels
                with self._guard.stepping:
                    self._stepper.take(gradients)
        finally:
            clock.set_aside()  # a step that leaves its gradients alone does not repeat this one
        if not in_kernels or stages.skipped > skipped:
            gradients.fill_with_zeros()

    def bind(self, grads: Grads) -> None:
        """Bind gradient arrays that stay in memory, so that ``step()`` need not check them again.

        That is the fast path: compute each gradient into its array, ``np.matmul(x.T, d, out=grad)`` for instance, and
        call ``step()``. If you replace an array in the list or dict given here, bind again; else the old one is used.
        Bound arrays cannot be resized. ``step(grads)`` with other gradients does not change the binding.

        Parameters
        ----------
        grads
            As for `step`, but only NumPy arrays or arrays on a GPU.

        Raises
        ------
        TypeError, ValueError
            If gradients do not fit; the previous binding stays then.
        """
        mirrored = self._mirrored(grads)
        for parameter, gradient in zip(self._parameters, mirrored, strict=False):  # Gradients checks their number
            if isinstance(gradient, np.generic):
                raise TypeError(f"the gradient of {parameter} is a NumPy scalar, which never changes: bind a 0-d array")
        with self._guard.mutex:
            gradients = Gradients(self._stepper.plan, self._parameters, mirrored)
            for i in (*gradients.sparse, *gradients.there):
                kind_of_rows = "updated by rows" if self._parameters[i].rowwise else "sparse"
                raise TypeError(
                    f"the gradient of {self._parameters[i]} is {kind_of_rows}, and cannot be bound: pass it to step"
                )
            for parameter, given, array in zip(self._parameters, mirrored, gradients.held, strict=True):
                if isinstance(array, np.ndarray) and not isinstance(given, np.ndarray):
                    # A jax array never changes, and a torch tensor may get other memory at any time.
                    raise TypeError(
                        f"the gradient of {parameter} is {kind(given)}, which cannot be kept: bind np.array(...) of "
                        "it, and write each gradient there, or pass gradients to step"
                    )
            if gradients.copies:
                parameter = self._parameters[min(gradients.copies)]
                raise ValueError(
                    f"the gradient of {parameter} does not lie in memory as its parameter does, and is copied in every "
                    "step, since states in 8 bits have blocks: bind np.empty_like(parameter), or pass it to step"
                )
            gradients.keep_in_place()
            self._bound = gradients

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, as in torch.optim; afterwards, bind gradients again.

        Parameters
        ----------
        group : dict
            ``{"params": ..., "lr": ..., ...}``; options that are missing have the optimizer's defaults. Arrays in
            lists get numbers that follow those of the earlier groups.

        Raises
        ------
        TypeError, ValueError
            If the group does not fit, or the optimizer was not made with a list of groups; nothing has changed then.
        """
        if not self._grouped:
            raise ValueError("gradients mirror params: to add groups, make the optimizer with a list of groups")
        with self._guard.mutex:
            self._refuse_changes()
            self._stepper.clock.write_counts()
            self._stepper.clock.end()
            groups, parameters = [*self._groups], [*self._parameters]
            self._append(group, groups, parameters)
            stepper = self._new_stepper(parameters, groups)
            with HeldBack():
                self._groups, self._parameters, self._stepper, self._bound = groups, parameters, stepper, None
                stepper.clock.attach()

    def _refuse_changes(self) -> None:
        """Raise if a running step or a captured graph uses what is about to change."""
        self._guard.refuse_inside_step()
        self._stepper.clock.refuse_captured()

    def _mirrored(self, grads: Grads) -> Sequence[Any]:
        if not self._grouped:
            return self._groups[0].tree.mirrored(grads)
        if not isinstance(grads, (list, tuple)) or len(grads) != len(self._groups):
            raise ValueError(f"with groups, grads must be a list with one entry for each of {len(self._groups)} groups")
        return [
            gradient
            for group, mirror in zip(self._groups, grads, strict=True)
            for gradient in group.tree.mirrored(mirror)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python and copies of arrays.

        Returns
        -------
        dict
            ``{"state": {key: {"step": int, name: array, ...}}, "param_groups": [{option: value, ..., "params":
            [key, ...]}]}``, where keys are the names of the parameters, else their indices. It has each schedule's
            description, the step count that is its argument, and the memory of a `Plateau`.
        """
        with self._guard.mutex:
            self._stepper.clock.write_counts()
            state = {p.key: {**self._counts(p), **p.saved()} for p in self._parameters if p.step or p.states}
            groups = [{**group.options(), "params": list(group.tree.keys)} for group in self._groups]
        return {"state": state, "param_groups": groups}

    def master_state_dict(self) -> dict[Hashable, Any]:
        """Return a copy of every parameter as the next step reads it, by its name or index: 16 bits become float32.

        With ``master_weights`` these are the masters; others are the parameters themselves. What was written into a
        parameter since the last step counts.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> w = np.ones(1, np.float16)
        >>> opt = fastopt.SGD({"w": w}, lr=1.0, master_weights=True)
        >>> opt.step({"w": np.float16([1e-4])})
        >>> w
        array([1.], dtype=float16)
        >>> opt.master_state_dict()
        {'w': array([0.9999], dtype=float32)}
        """
        with self._guard.mutex:
            return {parameter.key: parameter.value() for parameter in self._parameters}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state and options of a `state_dict`, and its schedules, which go on from its step count.

        A schedule that is a function of yours cannot be saved; this optimizer's own function stays instead. A `Plateau`
        that drives this optimizer stays the same object and takes over the saved options and memory; a `Plateau` that
        loading creates is ``param_groups[0].schedules["lr"]``. A `Plateau` of several groups is saved once per group;
        it is one object again only if it already drives the loading optimizer.

        Parameters
        ----------
        state_dict : dict
            From an optimizer of the same class, over parameters of the same names, shapes and dtypes. It may have gone
            through ``np.savez("opt.npz", **state_dict)`` and ``np.load("opt.npz", allow_pickle=True)``; in ``"state"``
            the indices may be strings, as JSON makes them.

        Raises
        ------
        TypeError, ValueError
            If it is not such a state dict, or does not fit; nothing has changed then.
        """
        with self._guard.mutex:
            self._refuse_changes()
            with nested_too_deeply("the state dict"):
                state_dict = unwrapped(state_dict)
                options = self._checked_groups(state_dict)
                states = self._checked_states(unwrapped(state_dict["state"]))
            self._stepper.clock.end()
            with HeldBack():
                for parameter, state in zip(self._parameters, states, strict=True):
                    parameter.restore(*state)
                # The stepper checks what it finds in the groups: the numbers of the next step. Those of the latest one
                # may contradict options that were assigned after it, and are only shown.
                for group, (_, upcoming, schedules) in zip(self._groups, options, strict=True):
                    group.restore(upcoming, schedules)
                self._stepper = self._new_stepper(self._parameters, self._groups)
                self._stepper.clock.attach()
                for group, (latest, _, _) in zip(self._groups, options, strict=True):
                    group.entries.update(latest)

    def _checked_groups(self, state_dict: Mapping[str, Any]) -> list[Loaded]:
        """Return, for each group, options in the latest step, options in the next one, and schedules."""
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError("a state dict has the entries 'state' and 'param_groups', as state_dict() returns them")
        given = plain(state_dict["param_groups"])
        if not isinstance(given, list) or len(given) != len(self._groups):
            raise ValueError(f"the state dict must have a list of {len(self._groups)} param_groups, as this optimizer")
        checked: list[Loaded] = []
        for group, entry in zip(self._groups, given, strict=True):
            keys = list(group.tree.keys)
            what = f"group {group.index} of the state dict"
            if not isinstance(entry, Mapping) or set(entry) - {*ADDED_OPTIONS} != set(group) - {*ADDED_OPTIONS}:
                raise ValueError(f"{what} must have the entries {sorted(group)}, those of {type(self).__name__}")
            # Compared as text: `!=` of arrays among them would give arrays.
            if not isinstance(entry["params"], list) or repr(entry["params"]) != repr(keys):
                raise ValueError(f"{what} has the parameters {entry['params']!r:.200}, this optimizer {keys!r:.200}")
            names = [name for name in HYPERPARAMETERS if name in entry and name not in OWN_OPTIONS]
            latest: dict[str, Any] = {name: check(name, entry[name]) for name in names}
            latest |= group.saved_seed(entry)
            latest["step"] = Count(limit=RESUMABLE).check(f"the step of {what}", entry["step"])
            schedules = group.restored_schedules(entry["schedules"])
            checked.append((latest, {**latest, **numbers_at(latest["step"], schedules)}, schedules))
        upcoming = [options for _, options, _ in checked]
        self._stepper.clock.check_options([self._family.choose(options) for options in upcoming], upcoming)
        check_shared(self._groups, [schedules for _, _, schedules in checked])
        return checked

    def _checked_states(self, given: Any) -> list[tuple[int, float, dict[str, Array]]]:
        keys = {parameter.key for parameter in self._parameters}
        given = _by_index(given, keys)
        if not isinstance(given, Mapping) or not given.keys() <= keys:
            raise ValueError(f"the state dict has state for {list(given)!r:.200}; parameters are {list(keys)!r:.200}")
        return [
            self._checked_state(parameter, unwrapped(given.get(parameter.key, {"step": 0})))
            for parameter in self._parameters
        ]

    def _checked_state(self, parameter: ArrayParameter, given: Any) -> tuple[int, float, dict[str, Array]]:
        carried = self._family.carried
        counts = ("step",) if carried is None else ("step", carried)
        names = (*counts, *self._family.states, EMA, MASTER)
        scales = {name + SCALES for name in self._family.states}
        if not isinstance(given, Mapping) or "step" not in given or not given.keys() <= {*names, *scales}:
            raise ValueError(
                f"the state of {parameter} must be a dict of {counts[0]} and {', '.join(names[1:])}, not {given!r:.200}"
            )
        step = Count(limit=RESUMABLE).check(f"the step of {parameter} in the state dict", given["step"])
        for name in (*counts[1:], *self._family.states):
            if step and name not in given and name in (*counts, *self._family.kept):
                raise ValueError(
                    f"the state of {parameter} has {step} steps but no {name}, without which it cannot go on"
                )
        arrays = parameter.loaded_states(self._family.states, f"{parameter} in the state dict", given)
        number = (
            1.0
            if carried is None
            else CARRIED.check(f"the {carried} of {parameter} in the state dict", given.get(carried, 1.0))
        )
        return step, number, arrays

    def __repr__(self) -> str:
        """Show the class, and for each group its parameters and options."""
        lines = []
        for group in self._groups:
            parameters = [parameter for parameter in self._parameters if parameter.group is group]
            elements = sum(parameter.array.size for parameter in parameters)
            dtypes = "/".join(sorted({parameter.dtype for parameter in parameters}))
            options = {**group.options(), **group.schedules}
            shown = ", ".join(f"{name}={value!r}" for name, value in options.items() if name != "schedules")
            lines.append(f"  group {group.index}: {len(parameters)} arrays, {elements:,} elements, {dtypes}: {shown}\n")
        return f"{type(self).__name__}(\n{''.join(lines)})"

    def __reduce__(self) -> Any:
        """Refuse: a copy would train arrays that no variable refers to."""
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, since it updates arrays of yours in place: "
            "save state_dict(), and load it into an optimizer over the new arrays"
        )


def parameter_of(key: Hashable, param: Any, group: ParamGroup) -> ArrayParameter:
    """Return a parameter of the backend that the array belongs to."""
    if is_on_device(param):
        from .backends.cupy.parameter import CupyParameter

        return CupyParameter(key, param, group)
    return NumpyParameter(key, param, group)


def _by_index(given: Any, keys: set[Hashable]) -> Any:
    """Return states with ints as keys if a file has turned indices into strings, as JSON does.

    If an index and a name give the same string, the key is ambiguous: then all keys stay as they are.
    """
    read = {str(key): key for key in keys}
    if isinstance(given, Mapping) and len(read) == len(keys) and all(isinstance(key, str) for key in given):
        return {read.get(key, key): entry for key, entry in given.items()}
    return given


def _copy(value: Any) -> Any:
    return value.copy(order="K") if is_array(value) else value
