"""What users of torch see of the stages of an optimizer's steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..backends.torch.device import AmpState
from ..backends.torch.parameter import value_of
from ..backends.torch.stepper import TorchStepper
from ..checks import Number
from ..kernels.tensors import PARAMS
from ..staged import NO_AVERAGES, Staged
from ..step.masters import MASTER
from ..step.norm import EPS, Measured, coefficient
from ..step.parameter import EMA
from .clipping import norm_of

MAX_NORM = Number("max_norm value", maximum=math.inf)


class TorchStages(Staged):
    """The part of an optimizer for torch that shows the stages of its steps."""

    _stepper: TorchStepper | None
    _pending: float | Tensor | None  # the factor that clips the next step's gradients
    _stands_for: Any
    param_groups: Any
    state: Any

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm of all gradients of the last step together, before clipping; None if it was never asked for.

        Set ``max_grad_norm`` to have it measured, to infinity if nothing is to be clipped.
        """
        if (wrapped := self._stands_for) is not None:
            norm: Tensor | None = wrapped.grad_norm
            return norm
        found = None if self._stepper is None else self._stepper.clock.grad_norm()
        return torch.tensor(found, dtype=torch.float64, device="cpu") if isinstance(found, float) else found

    def _settle(self) -> None:
        if self._stepper is not None:
            with self._guard.mutex:
                self._stepper.settle()

    def clip_grad_norm_(self, max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
        """Have the next step clip the gradients by their norm, all together; return that norm, before clipping.

        The step uses ``min(1, max_norm / (norm + 1e-6)) * g`` for each gradient g. Gradients are read once, and stay as
        they are. A second call before the step replaces the first one; `zero_grad` drops it. Use it where a trainer
        clips between ``backward()`` and ``step()``; else ``max_grad_norm`` does the same in each step.

        Parameters
        ----------
        max_norm : float
            The largest norm that is left alone, 0 or more.
        error_if_nonfinite : bool, default False
            Whether gradients that are not finite raise an error.

        Returns
        -------
        Tensor
            The norm, without axes, where the gradients are.

        Raises
        ------
        RuntimeError
            If a gradient is not finite, and error_if_nonfinite is true; inside a step.
        ValueError
            If the parameters are one rank's part of others, and do not say of which: FSDP1's, or a share that
            ZeroRedundancyOptimizer gave.

        See Also
        --------
        fastopt.torch.clip_grad_norm_ : The same with gradients that are written, as torch has it.
        """
        if (wrapped := self._stands_for) is not None:
            norm: Tensor = wrapped.clip_grad_norm_(max_norm, error_if_nonfinite)
            return norm
        max_norm = MAX_NORM.check("max_norm", max_norm)
        with self._guard.mutex:
            self._guard.refuse_inside_step()
            found = self._measured() or norm_of(self._params())
            if isinstance(found, Tensor):
                pending: Any = torch.clamp(max_norm / (found + EPS), max=1.0)
                norm, finite = found, not error_if_nonfinite or bool(found.isfinite())
            else:
                pending, finite = coefficient(max_norm, found.norm), found.finite
                norm = torch.tensor(found.norm, dtype=torch.float64, device="cpu")
            if error_if_nonfinite and not finite:
                raise RuntimeError("the norm of the gradients is not finite, so that they cannot be clipped")
            self._pending = pending
        return norm

    def _step_clipped(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Take a step with gradients that are clipped by the factor that was found for it."""
        pending, self._pending = self._pending, None
        if isinstance(pending, Tensor):  # on a GPU, which divides by a scale
            found_inf = torch.zeros_like(pending) if found_inf is None else found_inf
            self._update(1.0, AmpState((1.0 if grad_scale is None else grad_scale) / pending, found_inf))
        elif found_inf is None or float(found_inf) == 0:
            scale = 1.0 if grad_scale is None else 1.0 / float(grad_scale)
            with self._guard.mutex:
                self._multiply_next(1.0 if pending is None else pending)
                try:
                    self._update(scale)
                finally:
                    self._multiply_next(1.0)

    def _multiply_next(self, factor: float) -> None:
        """Have the next step multiply its gradients by a factor, if it repeats the last one and if not."""
        stages, stepper = self._stages, self._stepper
        stages.pending = factor
        if stepper is not None and stages.measures:
            stepper.clock.stop_repeating()  # what is repeated finds a factor of its own
        elif stepper is not None:
            stepper.plan.multiply(factor, is_new=False)

    def _measured(self) -> Measured | None:
        """Return the norm of all gradients, if it can be read by the tables of the last step."""
        stepper = self._stepper or self._adopt()
        if self._stages.no_norm:
            raise ValueError(self._stages.no_norm)
        try:
            return stepper.measure()
        finally:
            stepper.watch.release()

    @abstractmethod
    def _update(self, scale: float, amp: AmpState | None = None) -> None:
        """Update every parameter that has a gradient."""

    @abstractmethod
    def _adopt(self) -> TorchStepper:
        """Make a stepper for the groups, parameters and states as they are now."""

    def memory(self) -> dict[str, int]:
        """Count the bytes that training takes beside the model's own work; see `fastopt.SGD.memory`."""
        wrapped = self._stands_for
        found: dict[str, int] = super().memory() if wrapped is None else wrapped.memory()
        return found

    def _current_stepper(self) -> TorchStepper:
        return self._stepper or self._adopt()

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group[PARAMS]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and forget that the next step should clip them."""
        if (wrapped := self._stands_for) is not None:
            wrapped.zero_grad(set_to_none)
            return
        self._pending = None
        super().zero_grad(set_to_none)  # type: ignore[misc]  # torch's

    def ema_state_dict(self, model: torch.nn.Module) -> dict[str, Any]:
        """Return a model's state dict with the averages in the place of its parameters, as copies in their dtypes.

        Buffers, and parameters without an average, are as they are in the model.

        Raises
        ------
        RuntimeError
            If no average was kept so far.

        Examples
        --------
        >>> import torch, fastopt.torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> opt = fastopt.torch.SGD(model.parameters(), lr=1.0, ema_decay=0.0)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> opt.step()
        >>> bool((opt.ema_state_dict(model)["weight"] == model.weight).all())
        True
        """
        if not (averages := dict(self._averages())):
            raise RuntimeError(NO_AVERAGES)
        return {
            name: averages.get(value, value).detach().to(value.dtype, copy=True)
            if isinstance(value, Tensor)
            else deepcopy(value)  # a module's own state
            for name, value in model.state_dict(keep_vars=True).items()
        }

    def master_state_dict(self) -> dict[Any, Tensor]:
        """Return a copy of every parameter as the next step reads it, by its name or number: 16 bits become float32.

        With ``master_weights`` these are the masters; others are the parameters themselves. What was written into a
        parameter since the last step counts. Make the optimizer with ``model.named_parameters()``, and a float32 model
        can load it.

        Examples
        --------
        >>> import torch, fastopt.torch
        >>> model = torch.nn.Linear(2, 1, dtype=torch.bfloat16)
        >>> opt = fastopt.torch.AdamW(model.named_parameters(), master_weights=True)
        >>> {name: master.dtype for name, master in opt.master_state_dict().items()}
        {'weight': torch.float32, 'bias': torch.float32}
        """
        if (wrapped := self._stands_for) is not None:
            masters: dict[Any, Tensor] = wrapped.master_state_dict()
            return masters
        with self._guard.mutex:
            keys = [key for keys in self._names() for key in keys]
            state = self.state
            return {
                key: value_of(param, state[param].get(MASTER) if param in state else None)
                for key, param in zip(keys, self._params(), strict=True)
            }

    @abstractmethod
    def _names(self) -> list[Sequence[Any]]:
        """Return the keys of the parameters in each group: their names, else their numbers."""

    def _averages(self) -> list[tuple[Any, Any]]:
        return [(param, state[EMA]) for param, state in self.state.items() if EMA in state]

    def _saved(self, array: Tensor) -> Tensor:
        return array.detach().clone()

    def _write(self, array: Tensor, values: Tensor) -> None:
        with torch.no_grad():
            array.copy_(values)
