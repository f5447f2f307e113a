"""What users see of the stages of an optimizer's steps: the options of all groups together, and what came of them."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .options import ADDED_DEFAULTS, ADDED_OPTIONS, STAGE_OPTIONS, check, is_scheduled
from .step.guard import Guard
from .step.interrupts import HeldBack
from .step.stages import Stages

if TYPE_CHECKING:
    import inspect
    from typing import TypedDict

    from .step.stepper import Stepper

    class AddedOptions(TypedDict, total=False):
        """The options that every constructor takes beside its own."""

        max_grad_norm: Scheduled | None
        clip_grad_value: Scheduled | None
        skip_nonfinite: bool
        ema_decay: Scheduled | None
        state_dtype: Any
        min_quantized_size: int
        compress_state_dict: bool
        master_weights: bool | int
        stochastic_rounding: bool | None
        seed: int
        lazy_update: bool
        rowwise: bool


NO_AVERAGES = "there are no averages yet: set ema_decay, and take a step"

Scheduled: TypeAlias = float | Callable[[int], float]
Given = TypeVar("Given", bound=Mapping[str, Any])

UNPACKED = "Unpack[AddedOptions]"  # the annotation by which constructors take these options

ANNOTATIONS = {
    "skip_nonfinite": "bool",
    "state_dtype": "Any",
    "min_quantized_size": "int",
    "compress_state_dict": "bool",
    "master_weights": "bool | int",
    "stochastic_rounding": "bool | None",
    "seed": "int",
    "lazy_update": "bool",
    "rowwise": "bool",
}


def expected(optimizer: type, options: Given) -> Given:
    """Return the options that a constructor was given besides its own; raise TypeError for an unknown one."""
    for name in options:
        if name not in ADDED_OPTIONS:
            raise TypeError(f"{optimizer.__name__}.__init__() got an unexpected keyword argument {name!r}")
    return options


def options_in_use(optimizer: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a constructor was given and that are in use; raise TypeError for unknown ones."""
    given = expected(optimizer, options).items()
    checked = {name: value if is_scheduled(name, value) else check(name, value) for name, value in given}
    return {name: value for name, value in checked.items() if value != ADDED_DEFAULTS[name]}


class Signature:
    """The signature of a constructor, with the options that all have by name: for ``help`` and editors."""

    def __get__(self, optimizer: Any, of: Any) -> inspect.Signature:
        """Return what `inspect.signature` shows; `inspect` is not imported before somebody asks."""
        import inspect

        _, *parameters = inspect.signature(of.__init__).parameters.values()
        if parameters and parameters[-1].annotation == UNPACKED:
            del parameters[-1]
            for name, default in ADDED_DEFAULTS.items():
                annotation = ANNOTATIONS.get(name, "Scheduled | None")
                more = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                parameters.append(more)
        return inspect.Signature(parameters)


class Option:
    """An option of the stages as an attribute of the optimizer: that of the first group, assigned to all of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__doc__ = STAGE_OPTIONS[name].text

    def __get__(self, optimizer: Any, of: type | None = None) -> Any:
        """Return the number of the latest step; None, or False, if the option is not in use."""
        if optimizer is None:
            return self
        return optimizer.param_groups[0].get(self.name, ADDED_DEFAULTS[self.name])

    def __set__(self, optimizer: Any, value: Any) -> None:
        """Assign it in all groups; it takes effect at the next step."""
        if not is_scheduled(self.name, value):
            check(self.name, value)
        for group in optimizer.param_groups:
            group[self.name] = value


class Staged(ABC):
    """The part of an optimizer that shows what its steps do and take beside the rule."""

    _stages: Stages
    _guard: Guard

    __signature__ = Signature()

    max_grad_norm = Option("max_grad_norm")
    clip_grad_value = Option("clip_grad_value")
    skip_nonfinite = Option("skip_nonfinite")
    ema_decay = Option("ema_decay")

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped, since the norm of their gradients was not finite."""
        self._settle()
        return self._stages.skipped

    def memory(self) -> dict[str, int]:
        """Count the bytes that training takes beside the model's own work.

        Returns
        -------
        dict
            ``"parameters"``, ``"gradients"`` (one for each parameter, in the dtype of its last one), ``"states"``, the
            averages included, and ``"masters"``, what these have beside the parameters: what there is once every
            parameter had a gradient. Frozen parameters do not count, nor do those of other processes.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> w = np.zeros((100, 100), np.float32)
        >>> fastopt.Adam(w).memory()
        {'parameters': 40000, 'gradients': 40000, 'states': 80000, 'masters': 0}
        >>> fastopt.Adam(w, state_dtype="float16").memory()["states"]
        40000
        """
        with self._guard.mutex:
            return self._current_stepper().memory()

    @abstractmethod
    def _current_stepper(self) -> Stepper:
        """Return what takes the steps."""

    @abstractmethod
    def _settle(self) -> None:
        """Bring counts up to date, those of skipped steps too."""

    @abstractmethod
    def _averages(self) -> list[tuple[Any, Any]]:
        """Return each parameter that has an average, and that average; the counts are up to date then."""

    @abstractmethod
    def _saved(self, array: Any) -> Any:
        """Return a copy of a parameter."""

    @abstractmethod
    def _write(self, array: Any, values: Any) -> None:
        """Write values into a parameter."""

    @contextlib.contextmanager
    def swap_ema_weights(self) -> Iterator[None]:
        """Put the averages into the parameters' place, in a ``with`` block; afterwards the parameters are back.

        They come back to the bit, after an exception too. Inside the block, no step can be taken, nothing can be
        loaded, and no other swap begins. What is written into parameters there is lost. The copies take as much memory
        as the parameters. A parameter that never took a step stays as it is, and so do a model's buffers.

        Raises
        ------
        RuntimeError
            If no average was kept so far, or inside a step or another swap.

        Examples
        --------
        >>> import numpy as np, fastopt
        >>> w = np.zeros(2)
        >>> opt = fastopt.SGD(w, lr=1.0, ema_decay=0.75)
        >>> opt.step(np.array([4.0, 8.0]))
        >>> with opt.swap_ema_weights():
        ...     print(w)
        [-1. -2.]
        >>> w
        array([-4., -8.])
        """
        guard = self._guard
        saved: list[tuple[Any, Any]] = []
        try:
            with guard.mutex:
                guard.refuse_inside_step()
                self._settle()
                averages = self._averages()
                if not averages:
                    raise RuntimeError(NO_AVERAGES)
                copies = [(array, self._saved(array)) for array, _ in averages]
                with HeldBack():  # an interrupt finds none of the two, or both
                    guard.begin_swap()
                    saved = copies
            for array, average in averages:
                self._write(array, average)
            yield
        finally:
            if saved:
                with HeldBack():
                    for array, values in saved:
                        self._write(array, values)
                    guard.end_swap()
