"""The base class of the optimizers for torch: torch's groups and states, fastopt's step."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import optimizer as base

from ..backends.torch.codes import is_code
from ..backends.torch.counts import is_shared
from ..backends.torch.device import AmpState
from ..backends.torch.parameter import TorchParameter
from ..backends.torch.shards import is_made_by_zero, why_no_norm
from ..backends.torch.stepper import TorchStepper
from ..checks import nested_too_deeply
from ..kernels.tensors import ASSIGNED, OUT_OF_DATE, PARAMS, REPEATED
from ..options import HYPERPARAMETERS, NOTHING, OWN_OPTIONS, PAIRS, STAGE_OPTIONS, rounding_by_default
from ..plateau import Plateau
from ..rules import Family
from ..staged import options_in_use
from ..step.codes import SCALES
from ..step.group import check_shared
from ..step.guard import Guard
from ..step.interrupts import HeldBack
from ..step.masters import MASTER
from ..step.parameter import EMA
from ..step.stages import Stages
from ..step.weak import weak
from .amp import check_scaler
from .eager import eager
from .groups import ARRAYS, NOT_OFFERED, Group, sync_all
from .live import LiveGroup, live
from .stages import TorchStages

# Options that torch has added over the years; old checkpoints lack them.
ADDED = (
    "nesterov",
    "momentum",
    "centered",
    "amsgrad",
    "maximize",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
)


class Optimizer(TorchStages, torch.optim.Optimizer):
    """The base class of the optimizers: torch's groups and states, fastopt's step. Use one of its subclasses.

    A step is all or nothing: errors are raised before the first element changes.
    """

    _family: ClassVar[Family]
    _eager: ClassVar[bool]  # whether states are made with the optimizer, or with a parameter's first gradient
    _fixed: ClassVar[Mapping[str, Any]] = {}  # options that no state dict can change

    # Without class-level defaults: Lightning's wrapper is an instance of a subclass whose constructor never ran, and
    # forwards only attributes that it lacks.
    _stepper: TorchStepper | None
    _made: bool  # False inside the constructor
    _groups: Sequence[Group]
    _has_moving: bool  # see `_note_moving`
    _itself: Callable[[], Any]
    _is_of_zero: bool  # whether its parameters are one rank's share, given by ZeroRedundancyOptimizer

    def __init__(self, params: Any, defaults: dict[str, Any], stages: Mapping[str, Any] = NOTHING) -> None:
        if defaults.get("foreach") and defaults.get("fused"):
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        self._begin()
        defaults.update(options_in_use(type(self), stages))
        for name in PAIRS:
            if isinstance(given := defaults.get(name), (Sequence, np.ndarray)):
                defaults[name] = tuple(given)  # all groups share it
        self._check_defaults(defaults)
        super().__init__(params, defaults)
        self._made = True
        self._adopt()
        self._stages.check(self._groups[0].entries)

    def _begin(self) -> None:
        self._itself = weakref.ref(self)
        self._guard = Guard()
        self._stages = Stages()
        self._is_of_zero = is_made_by_zero()
        self._stepper = None
        self._pending = None
        self._made = False
        self._groups = ()
        self._has_moving = False

    def _check_defaults(self, defaults: dict[str, Any]) -> None:
        """Check the options before the parameters, as torch does."""
        names = [name for name in HYPERPARAMETERS if name in defaults]
        self._family.choose(Group(0, dict(defaults), names).entries)

    @property
    def _stands_for(self) -> Any:
        """The optimizer behind this wrapper; None if this is the optimizer itself."""
        return None if "_guard" in self.__dict__ else self._itself()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells torch.amp.GradScaler to leave unscaling and skipping to the step; exists only with ``fused=True``."""
        if self.defaults.get("fused"):
            return True
        check_scaler(self.param_groups)
        raise AttributeError("GradScaler unscales the gradients, and skips the step, unless fused=True was passed")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups; their numbers are those of the latest step, even if a GPU counts the steps."""
        groups: list[dict[str, Any]] = self._held("param_groups")
        if any(group.description is not None and not isinstance(group.given, LiveGroup) for group in self._groups):
            self._fetch()  # a live group does this itself, when one of its numbers is read
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["param_groups"] = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The states, by parameter; step counts are up to date, even if a GPU counts."""
        state: defaultdict[Tensor, Any] = self._held("state")
        if self._stepper is not None and self._stepper.counts is not None:
            self._fetch()
        return state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.__dict__["state"] = state

    def _held(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:  # after an AttributeError, Python calls a wrapper's __getattr__
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None

    def _fetch(self, name: Any = "step") -> bool:
        """Bring counts and numbers up to date, but not inside a step, nor in a capture, which could not wait.

        Return True: a live group learns from it that its optimizer is still there.
        Whoever reads the description of the schedules, or all entries, may edit it, so that the next step checks it.
        """
        stepper = self._stepper
        if stepper is None or not stepper.clock.is_behind or self._guard.stepping.locked():
            return True
        if not (stepper.clock.on_devices and torch.cuda.is_current_stream_capturing()):
            with self._guard.mutex:
                stepper.settle()
                if name is None or name == "schedules":
                    stepper.clock.stop_repeating()
                    stepper.watch.forget_entries()
        return True

    def _adopt(self) -> TorchStepper:
        """Make a stepper for the groups, parameters and states as they are now."""
        if self._stepper is not None:
            self._stepper.settle()
            self._stepper.clock.end()
        known = {id(group.given): group for group in self._groups}
        names = [name for name in HYPERPARAMETERS if name in self.defaults]
        fetch, groups = weak(self._fetch), []
        for index, given in enumerate(self.param_groups):
            group = known.get(id(given))
            if group is None:
                group = Group(index, given, names)
            if isinstance(given, LiveGroup):
                given.fetch = fetch
            group.index = index
            groups.append(group)
        sync_all(groups)
        self._stages.no_norm = why_no_norm(self._params(), self._is_of_zero)
        arguments = groups, self._names(), self.param_groups, self.state, self._eager, self._guard, self._stages
        stepper = TorchStepper(self._family, *arguments)
        with HeldBack():
            self._stepper, self._groups = stepper, groups
            self._note_moving()
            stepper.clock.attach()
            for group in groups:
                group.live.tally = stepper.clock.tally
        return stepper

    def _read_or_repeat(self, scale: float, amp: AmpState | None) -> int:
        """Take the last step again, or read the gradients; nothing of the user's is called."""
        stepper, here = self._stepper, self.__dict__
        if stepper is None:  # after unpickling or copying
            return OUT_OF_DATE
        watch = stepper.watch
        if watch.dicts is not here["param_groups"] or watch.nested is not here["state"]:
            return OUT_OF_DATE
        if self._has_moving:
            return ASSIGNED
        return stepper.read_or_repeat(scale) if amp is None else stepper.read()  # a step that may be skipped is its own

    def _sync(self, stepper: TorchStepper) -> int:
        """Take over options that were assigned, and read the gradients."""
        scheduled = any(group.schedules for group in self._groups)  # else nothing depends on a count
        if scheduled and not (stepper.plan.uses_gpus and torch.cuda.is_current_stream_capturing()):
            stepper.settle()
        sync_all(self._groups)
        self._note_moving()
        stepper.watch.note_entries()
        return stepper.read()

    def _note_moving(self) -> None:
        """Note whether an option is a tensor, an array or a list, whose value may have changed at the next step."""
        self._has_moving = any(group.has_moving for group in self._groups)

    def _update(self, scale: float, amp: AmpState | None = None) -> None:
        """Update every parameter that has a gradient, multiplied by scale; with amp, unscale and skip by that."""
        guard = self._guard
        with guard.mutex:
            if guard.stepping.locked():
                guard.refuse_inside_step()
            unread = self._read_or_repeat(scale, amp)
            try:
                if unread != REPEATED:
                    with guard.stepping:
                        self._take(unread, scale, amp)
            finally:
                if self._stepper is not None:
                    self._stepper.watch.release()

    def _take(self, unread: int, scale: float, amp: AmpState | None) -> None:
        """Take a step that is no repetition of the last one, after its gradients were read or could not be."""
        stepper = self._stepper
        if unread == ASSIGNED and stepper is not None:
            unread = self._sync(stepper)
        if unread == OUT_OF_DATE or stepper is None:
            stepper = self._adopt()
            unread = stepper.read_anew()
        stepper.update(unread, scale, amp)

    def _names(self) -> list[Sequence[Any]]:
        """Return the keys of the parameters in each group: their names, else their numbers."""
        numbers = iter(range(sum(len(given["params"]) for given in self.param_groups)))
        return [given.get("param_names") or [next(numbers) for _ in given["params"]] for given in self.param_groups]

    def _stepper_of(self, param: Tensor) -> TorchStepper:
        """Return a stepper for a single parameter; it does not count the group's steps."""
        names, given = [], []
        for keys, group in zip(self._names(), self._groups, strict=True):
            found = [(key, entry) for key, entry in zip(keys, group.given[PARAMS], strict=True) if entry is param]
            names.append([key for key, _ in found])
            given.append({PARAMS: [entry for _, entry in found]})
        arguments = names, given, {param: self.state[param]}, self._eager, Guard(), self._stages
        place = next(number for number, other in enumerate(self._params()) if other is param)
        return TorchStepper(self._family, self._groups, *arguments, counts_groups=False, first=place)

    @eager
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step: update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model and returns the loss; called before the update, with gradients enabled.

        Returns
        -------
        The closure's loss, or None.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its parameter, an option is out of range, or a parameter can no longer be
            updated; nothing has changed then.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or base._global_optimizer_pre_hooks
            or base._global_optimizer_post_hooks
            or profiler._is_profiler_enabled
        ):
            return self._observed_step() if closure is None else self._observed_step(closure)
        return self._step(closure)

    # Without this mark torch wraps `step` in hooks and a profiler's record, which take 20 µs even if nobody uses them.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        here, optimizer = self.__dict__, self
        found_inf, grad_scale = here.get("found_inf"), here.get("grad_scale")
        if "_guard" not in here:  # this is a wrapper; GradScaler may have set the two attributes on it
            optimizer = self._itself()
            found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if optimizer._pending is not None:
            optimizer._step_clipped(grad_scale, found_inf)
        elif isinstance(found_inf, Tensor) and found_inf.is_cuda:
            optimizer._update(1.0, AmpState(grad_scale, found_inf))
        elif found_inf is None or float(found_inf) == 0:
            optimizer._update(1.0 if grad_scale is None else 1.0 / float(grad_scale))
        return loss

    _observed_step = torch.optim.Optimizer.profile_hook_step(_step)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as torch.optim does.

        Raises
        ------
        TypeError, ValueError
            If the group does not fit; nothing has changed then.
        """
        if (wrapped := self._stands_for) is not None:
            wrapped.add_param_group(param_group)
            return
        with self._guard.mutex:
            self._guard.refuse_inside_step()
            super().add_param_group(param_group)
            groups = self.__dict__["param_groups"]
            groups[-1].update(rounding_by_default(self._family.states, groups[-1]))
            groups[-1] = live(groups[-1])
            if self._made:  # the constructor adopts all groups at its end
                try:
                    self._adopt()
                except Exception:
                    self.param_groups.pop()
                    raise

    def state_dict(self) -> dict[str, Any]:
        """Return groups and states, as torch.optim does; the default ``torch.load`` accepts them, with schedules."""
        if (wrapped := self._stands_for) is not None:
            state: dict[str, Any] = wrapped.state_dict()
            return state
        with self._guard.mutex:
            if self._stepper is not None and not self._guard.stepping.locked():  # a schedule may call this in a step
                self._stepper.settle()
                for group in self._groups:
                    group.describe_anew()
                self._note_moving()
                self._stepper.clock.stop_repeating()  # options may have been assigned, which nobody else will see
                self._stepper.watch.note_entries()  # else the entries just written would count as assigned by the user
            return self._decoded(super().state_dict())

    def _decoded(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Decode states in 8 bits in a state dict, where it cannot or shall not have codes."""
        if self._stepper is None:
            return saved
        given = [param for group in self.param_groups for param in group["params"]]
        keys = [key for group in saved["param_groups"] for key in group["params"]]
        numbers = {id(param): key for param, key in zip(given, keys, strict=True)}
        for parameter in self._stepper.parameters:
            if states := parameter.saved():
                key, scales = numbers[id(parameter.given)], {name + SCALES for name in states}
                kept = {name: value for name, value in saved["state"][key].items() if name not in scales}
                saved["state"][key] = {**kept, **states}
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a `state_dict` of this class or of its namesake in torch.optim.

        States are copied and keep the dtype of their updates (float32 for half precision), while torch.optim casts them
        to the parameter's dtype. Schedules go on from the group's step count. A schedule that is a function of yours
        cannot be saved; this optimizer's own function stays instead.

        Raises
        ------
        TypeError, ValueError
            If it does not fit; nothing has changed then.
        """
        if (wrapped := self._stands_for) is not None:
            wrapped.load_state_dict(state_dict)
            return
        given: Any = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = pre_hook(self, given)
            given = given if result is None else result
        with self._guard.mutex:
            self._guard.refuse_inside_step()
            with HeldBack():  # around all of it: torch's own `no_grad` is not safe against interrupts
                self._load(given)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _load(self, given: Any) -> None:
        parameters = self._adopt().parameters
        with nested_too_deeply("the state dict"):
            check_nesting(given)
            groups = self._loaded_groups(given["param_groups"])
            described = zip(self._groups, (saved.get("schedules", {}) for saved in groups), strict=True)
            check_shared(self._groups, [group.restored_schedules(schedules) for group, schedules in described])
            states = self._loaded_states(given, groups, parameters)
        before = {name: self.__dict__[name] for name in ("state", "param_groups", "_groups")}
        held = [s for group in self._groups for s in group.schedules.values() if isinstance(s, Plateau)]
        memories = deepcopy(held)
        try:
            super().__setstate__({"state": states, "param_groups": groups})
            self._adopt().clock.chosen()
        except Exception:
            self.__dict__.update(before)
            for plateau, memory in zip(held, memories, strict=True):
                plateau.become(memory)
            self._adopt()
            raise

    def _loaded_groups(self, saved: Any) -> list[dict[str, Any]]:
        if len(saved) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        groups = []
        for new, old, group in zip(saved, self.param_groups, self._groups, strict=True):
            if len(new["params"]) != len(old["params"]):
                raise ValueError(
                    "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
                )
            named = {"param_names": old["param_names"]} if "param_names" in old else {}
            options = {name: value for name, value in new.items() if name not in ("params", *OWN_OPTIONS)}
            lists = [name for name in PAIRS if isinstance(options.get(name), list)]  # out of JSON, which has no tuples
            options.update({name: tuple(options[name]) for name in lists})
            own = {name: old[name] for name in OWN_OPTIONS if name in old}  # states are converted to its storage
            own |= group.saved_seed(new)
            filled = {**self._filled(), **named, **deepcopy(options), **self._fixed, **own}
            groups.append(live({**filled, "params": old["params"]}))
            if isinstance(groups[-1], LiveGroup):
                groups[-1].own = group.schedules
            for name in HYPERPARAMETERS:
                if name in self.defaults and name not in groups[-1]:
                    raise ValueError(f"loaded state dict has no {name!r} in a group: it is of another optimizer")
        return groups

    def _filled(self) -> dict[str, Any]:
        """Return the defaults of options that old checkpoints lack."""
        return {name: self.defaults[name] for name in (*ADDED, *STAGE_OPTIONS) if name in self.defaults}

    def _loaded_states(
        self, given: Any, groups: list[dict[str, Any]], all_parameters: list[TorchParameter]
    ) -> dict[Any, Any]:
        keys = chain.from_iterable(saved["params"] for saved in given["param_groups"])
        params = chain.from_iterable(group["params"] for group in groups)
        by_key = dict(zip(keys, params, strict=True))
        parameters = {id(parameter.given): parameter for parameter in all_parameters}
        states: dict[Any, Any] = defaultdict(dict)
        for key, saved in given["state"].items():
            if key in by_key:
                parameter = parameters.get(id(by_key[key]))
                if not isinstance(saved, Mapping):
                    raise TypeError(f"the state of parameter {key!r} must be a dict, not {saved!r:.80}")
                current, loaded = self.state.get(by_key[key], {}), states[by_key[key]]
                for name, value in saved.items():
                    if name == MASTER and parameter is not None and not parameter.master:
                        continue
                    kept = value is current.get(name) and is_shared(value)  # other processes use that memory too
                    loaded[name] = value if kept else self._copied(parameter, name, value)
            else:
                states[key] = saved
        return states

    def _copied(self, parameter: TorchParameter | None, name: str, value: Any) -> Any:
        if parameter is not None and name == MASTER and parameter.master:
            return parameter.fitted_master(value, copy=True)
        is_state = name in (*self._family.states, EMA) and not is_code(value)
        if parameter is not None and is_state and (value is not None or self._eager):
            return parameter.fitted(name, value, copy=True)
        return deepcopy(value)  # also for a frozen parameter, whose state is fitted once it has a gradient

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling and copying: torch's, and schedules that are functions of yours."""
        known = {id(group.given): group.undescribed() for group in self._groups}
        functions = [known.get(id(given), getattr(given, "own", {})) for given in self.param_groups]
        return {**super().__getstate__(), **({"functions": functions} if any(functions) else {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the pickled or copied state; the next step makes the rest."""
        if "_guard" not in self.__dict__:
            self._begin()
        super().__setstate__({name: value for name, value in state.items() if name != "functions"})
        self._made = True
        groups = [live(group) for group in self.param_groups]
        if any(group is not given for group, given in zip(groups, self.param_groups, strict=True)):
            self.param_groups = groups  # only then: otherwise a shallow copy shares the list, as in torch
        functions = state.get("functions", [{}] * len(self.param_groups))
        for group, own in zip(self.param_groups, functions, strict=True):
            for name, value in self._filled().items():
                group.setdefault(name, value)
            group.update(self._fixed)
            if isinstance(group, LiveGroup):
                group.expect(own)


def check_nesting(given: Mapping[str, Any]) -> None:
    """Raise if a state dict does not have the structure of torch's."""
    groups, states = given.get("param_groups"), given.get("state")
    if not isinstance(groups, list | tuple) or not isinstance(states, Mapping):
        raise ValueError("a state dict has a dict 'state' and a list 'param_groups', as state_dict() returns them")
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list | tuple):
            raise ValueError(f"group {i} of the state dict must be a dict with a list 'params', not {group!r:.200}")
        for name in ("schedules", "param_names", *(["step"] if "schedules" in group else []), *NOT_OFFERED):
            if isinstance(group.get(name), ARRAYS):
                raise TypeError(
                    f"{name} in group {i} of the state dict is a {type(group[name]).__name__}: it cannot be one"
                )
