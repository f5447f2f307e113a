"""Updates during backward: each parameter is updated when its gradient is ready, and the gradient freed at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from ..backends.torch.memory import is_distributed
from ..backends.torch.stepper import TorchStepper
from ..kernels.tensors import OUT_OF_DATE
from ..step.weak import weak
from .base import Optimizer
from .groups import sync_all

NO_NORM = (
    "gradients are used and freed one by one during backward(), before their norm is known: to clip by the norm, use "
    "the optimizer's own step()"
)


def step_in_backward(model: nn.Module, optimizer_class: type[Optimizer], **options: Any) -> StepInBackward:
    """Update the parameters of a model during ``loss.backward()``, each when its gradient is ready.

    The gradient is still in the processor's cache then, and is freed at once, so gradients need the memory of the
    largest one only. You neither call ``step()`` nor zero gradients. Every backward pass is a step, so gradients of
    several passes cannot be accumulated. A parameter is updated before the other gradients are known, which rules out
    everything that needs all of them first: ``torch.amp.GradScaler`` and clipping by the norm. With ``skip_nonfinite``
    each parameter's update is skipped for itself.

    Parameters
    ----------
    model : torch.nn.Module
        The model; its parameters that require gradients are trained.
    optimizer_class : type
        An optimizer's, of `fastopt.torch`.
    **options
        The optimizer's options.

    Returns
    -------
    StepInBackward
        Holds options and states; ``remove()`` ends the updates. You need not keep it: it lives, and updates go on, as
        long as one of the parameters does.

    Raises
    ------
    TypeError, ValueError
        If a parameter or an option does not fit, or the model is distributed: its gradients are reduced later.

    Examples
    --------
    >>> import torch, fastopt.torch
    >>> model = torch.nn.Linear(2, 1)
    >>> handle = fastopt.torch.step_in_backward(model, fastopt.torch.SGD, lr=0.1, momentum=0.9)
    >>> model(torch.ones(4, 2)).square().mean().backward()
    >>> model.weight.grad is None
    True
    >>> handle.param_groups[0]["lr"] = 0.01
    """
    return StepInBackward(model, optimizer_class, options)


class StepInBackward:
    """The handle that `step_in_backward` returns: groups, states and `remove`."""

    def __init__(self, model: nn.Module, optimizer_class: type[Optimizer], options: Mapping[str, Any]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
            raise TypeError(f"the optimizer must be a class of fastopt.torch, not {optimizer_class!r:.80}")
        trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        reduced = any(isinstance(module, DistributedDataParallel) for module in model.modules())
        if reduced or any(is_distributed(param) for _, param in trained):
            raise ValueError("a distributed model's gradients are reduced after backward: use the optimizer's step()")
        refuse_norm(options)
        self._optimizer = optimizer_class(trained, **options)
        # Made now: allocations during backward would land where a gradient was freed, and leave the next one no room.
        self._steppers: dict[Tensor, TorchStepper] = {param: self._optimizer._stepper_of(param) for _, param in trained}
        self._stepped: set[Tensor] = set()  # in this backward pass
        self._lock = threading.RLock()
        update = weak(self._update)
        self._hooks: list[Any] = [
            param.register_post_accumulate_grad_hook(update)  # type: ignore[no-untyped-call]  # torch's own
            for _, param in trained
        ]
        for _, param in trained:
            held_by(param)[id(self)] = self

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, like an optimizer's; assignments take effect at the next update."""
        return self._optimizer.param_groups

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """The states, by parameter."""
        return self._optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict, which an optimizer of the same class can load."""
        with self._lock:
            self._end_pass()
            return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict, of a handle like this or of an optimizer."""
        with self._lock:
            self._optimizer.load_state_dict(state_dict)
            self._stepped.clear()
            self._steppers = {param: self._optimizer._stepper_of(param) for param in self._steppers}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients; there are none unless backward stopped halfway."""
        self._optimizer.zero_grad(set_to_none)

    @property
    def skipped_steps(self) -> int:
        """How many updates of single parameters were skipped, since the norm of the gradient was not finite."""
        return self._optimizer.skipped_steps

    def swap_ema_weights(self) -> AbstractContextManager[None]:
        """Put the averages into the parameters' place, as an optimizer's `swap_ema_weights` does."""
        return self._optimizer.swap_ema_weights()

    def ema_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a model's state dict with the averages in the place of its parameters, as an optimizer does."""
        return self._optimizer.ema_state_dict(model)

    def master_state_dict(self) -> dict[str, Tensor]:
        """Return a copy of every parameter as the next step reads it, as an optimizer does."""
        return self._optimizer.master_state_dict()

    def remove(self) -> None:
        """End the updates; from now on backward keeps gradients."""
        for hook in self._hooks:
            hook.remove()
        for param in self._steppers:
            held_by(param).pop(id(self), None)

    def step(self, *arguments: Any) -> NoReturn:
        """Raise RuntimeError: backward has taken the step."""
        raise RuntimeError("the parameters were updated during backward(): there is no step() to take")

    def clip_grad_norm_(self, *arguments: Any) -> NoReturn:
        """Raise RuntimeError: the norm is known only after the last gradient, when the others are freed."""
        raise RuntimeError(NO_NORM)

    @property
    def _step_supports_amp_scaling(self) -> NoReturn:
        """Raise RuntimeError when torch.amp.GradScaler reads this before its step."""
        raise RuntimeError(
            "GradScaler decides after backward() whether a step is taken, and by then it has been: use the optimizer's "
            "own step(), or bfloat16, which needs no scaling"
        )

    def _end_pass(self) -> None:
        """Count the step of this backward pass."""
        with self._lock:
            if self._stepped:
                for param in self._stepped:
                    if self._steppers[param].has_new_states:
                        self._steppers[param] = self._optimizer._stepper_of(param)
                self._stepped.clear()
                stepper = self._optimizer._stepper
                assert stepper is not None  # since the constructor
                stepper.clock.count_groups()

    def _update(self, param: Tensor) -> None:
        with self._lock:
            if param in self._stepped:  # an error ended the last pass early
                self._end_pass()
            if not self._stepped:
                Variable._execution_engine.queue_callback(self._end_pass)  # torch's FSDP does the same
            self._optimizer._guard.refuse_inside_step()  # where averages stand in the parameters' place
            sync_all(self._optimizer._groups)
            refuse_norm(self._optimizer._groups[0].entries)
            stepper = self._steppers[param]
            if param.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError("updates during backward() cannot be captured: capture the optimizer's own step()")
            same = stepper.parameters and self._optimizer.state.get(param) is stepper.parameters[0].state
            unread = stepper.read() if same else OUT_OF_DATE
            if unread == OUT_OF_DATE:
                stepper = self._optimizer._stepper_of(param)
                unread = stepper.read_anew()
            self._steppers[param] = stepper
            try:
                stepper.update(unread, 1.0)
            finally:
                stepper.watch.release()
            self._stepped.add(param)
        param.grad = None


def refuse_norm(options: Mapping[str, Any]) -> None:
    """Raise if the norm of all gradients is asked for."""
    if options.get("max_grad_norm") is not None:
        raise ValueError(NO_NORM)


def held_by(param: Tensor) -> dict[Any, Any]:
    """Return a dict whose entries live as long as a parameter and may refer to it.

    The garbage collector sees the cycle through the dict of the parameter's hooks. It does not see hooks that run after
    accumulation, so these must not refer to a parameter. Attributes of the parameter would be saved and copied with it.
    """
    if param._backward_hooks is None:
        param._backward_hooks = OrderedDict()
    return vars(param._backward_hooks)
