"""Checks of hyperparameters and of schedules' arguments: each returns a plain value, or an error names the argument."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

COUNT_LIMIT = 2**63
RESUMABLE = 2**62  # a count that is loaded must be below it, so it can still grow
SMALLEST = math.ulp(0.0)  # above 0
LARGEST = sys.float_info.max


def unwrapped(value: Any) -> Any:
    """Return the content of a 0-d array (np.load returns numbers, strings and dicts so); anything else as it is."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def plain(value: Any) -> Any:
    """Replace NumPy's types and tuples by plain numbers, strings, lists and dicts, at any depth."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


@dataclass(frozen=True)
class Number:
    """A number within bounds: a finite one, unless the maximum is infinite."""

    label: str
    minimum: float = 0.0
    maximum: float = LARGEST

    def check(self, name: str, value: Any) -> float:
        """Return the value as a float, or raise an error that names it."""
        if type(value) is float and self.minimum <= value <= self.maximum:
            return value  # the usual case, ten times as fast as isinstance with an abstract class
        value = unwrapped(value)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"Invalid {self.label}: {value!r}; {name} must be a number, not {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:  # an int too large for a float
            number = math.inf
        if not self.minimum <= number <= self.maximum:
            raise ValueError(f"Invalid {self.label}: {value!r:.40}; {name} must be {self}")
        return number

    def __str__(self) -> str:
        """Describe the allowed values."""
        above = "above 0" if self.minimum == SMALLEST else f"of {self.minimum:g} or more"
        if self.maximum < LARGEST:
            return f"a number {above}, and {self.maximum:g} at most"
        if self.maximum == math.inf:
            return f"a number {above}"
        return "a finite number" if self.minimum == -LARGEST else f"a finite number {above}"


@dataclass(frozen=True)
class OrNone:
    """None, or what another check allows."""

    item: Number | Flag

    def check(self, name: str, value: Any) -> Any:
        """Return None or the checked value, or raise an error that names it."""
        return None if unwrapped(value) is None else self.item.check(name, value)


@dataclass(frozen=True)
class Betas:
    """The two coefficients of Adam's moving averages, each 0 or more and below 1; returned as a tuple."""

    def check(self, name: str, value: Any) -> tuple[float, float]:
        """Return the two as floats, or raise an error that names the one that is wrong."""
        several = (isinstance(value, np.ndarray) and value.ndim == 1) or isinstance(value, Sequence)
        if not several or isinstance(value, (str, bytes, bytearray)) or len(value) != 2:
            raise TypeError(f"Invalid {name}: {value!r:.80}; {name} must be a pair, as (0.9, 0.999)")
        first, second = (self._checked(f"{name}[{i}]", i, beta) for i, beta in enumerate(value))
        return first, second

    def _checked(self, name: str, i: int, beta: Any) -> float:
        number = Number(f"beta parameter at index {i}").check(name, beta)
        if number >= 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta!r:.40}; {name} must be below 1")
        return number


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def check(self, name: str, value: Any) -> bool:
        """Return the value as a bool, or raise an error that names it."""
        if value is True or value is False:
            return value
        flag = unwrapped(value)
        if not isinstance(flag, (bool, int, np.bool_, np.integer)) or flag not in (0, 1):
            raise TypeError(f"Invalid {name}: {value!r}; it must be True or False")
        return bool(flag)


@dataclass(frozen=True)
class MasterBits:
    """Whether parameters of 16 bits have masters, or the bits that these have; returned as True where it is all 32."""

    def check(self, name: str, value: Any) -> bool | int:
        """Return False, True or 24, or raise an error that names it."""
        given = unwrapped(value)
        if isinstance(given, (bool, np.bool_)):
            return bool(given)
        if not isinstance(given, (int, np.integer)):
            raise TypeError(f"Invalid {name}: {value!r:.40}; it must be True, False, or a number of bits, 24 or 32")
        if given not in (24, 32):
            raise ValueError(f"Invalid {name}: {value!r:.40}; masters have 32 bits, as with True, or 24")
        return True if given == 32 else 24


@dataclass(frozen=True)
class Count:
    """A whole number from a minimum up to, but not including, a limit."""

    minimum: int = 0
    limit: int = COUNT_LIMIT

    def check(self, name: str, value: Any) -> int:
        """Return the value as a plain int, or raise an error that names it."""
        value = unwrapped(value)
        try:
            count = operator.index(value)
        except TypeError:
            count = None
        if count is None or isinstance(value, bool):
            kind = "None" if value is None else f"a {type(value).__name__}"
            raise TypeError(f"{name} must be an int, not {kind}")
        if not self.minimum <= count < self.limit:
            limit = f"2**{self.limit.bit_length() - 1}"
            raise ValueError(f"{name} must be {self.minimum} or more, and below {limit}, not {value!r:.40}")
        return count


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    words: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        """Return the value, or raise an error that names it."""
        value = unwrapped(value)
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a word, one of {', '.join(self.words)}, not {value!r:.40}")
        if value not in self.words:
            raise ValueError(f"unknown {name} {value!r:.40}; it must be one of {', '.join(self.words)}")
        return str(value)  # it may be a NumPy string


@dataclass(frozen=True)
class DTypes:
    """The dtype of all states, or a dict of dtypes by the names of states; returned by name."""

    words: tuple[str, ...]

    def check(self, name: str, value: Any) -> str | dict[str, str] | None:
        """Return None, a dtype's name or a dict of these, or raise an error that names what is wrong."""
        value = unwrapped(value)
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {str(state): self._checked(f"{name}[{state!r}]", dtype) for state, dtype in value.items()}
        return self._checked(name, value)

    def _checked(self, name: str, value: Any) -> str:
        word = name_of_dtype(value)
        if word not in self.words:
            kind = ValueError if word else TypeError
            raise kind(
                f"Invalid {name}: {value!r:.80}; it must be one of {', '.join(self.words)}, by name or as a dtype of "
                f"NumPy or torch, or a dict of these by the name of a state"
            )
        return word


def name_of_dtype(value: Any) -> str:
    """Return the name of a dtype of NumPy or torch; an empty text if it is none."""
    if isinstance(value, str):
        return value
    if str(value).startswith("torch."):
        return str(value).removeprefix("torch.")
    try:
        return np.dtype(value).name if value is not None else ""
    except TypeError:
        return ""


@dataclass(frozen=True)
class Several:
    """Any number of values that pass the same check; returned as a tuple."""

    item: Any

    def check(self, name: str, value: Any) -> tuple[Any, ...]:
        """Return the values as a tuple, or raise an error that names the one that is wrong."""
        if isinstance(value, (str, bytes, Set, Mapping)) or not isinstance(value, Iterable):  # sets have no order
            raise TypeError(f"{name} must be a list or a tuple, not {value!r:.40}")
        return tuple(self.item.check(f"{name}[{i}]", item) for i, item in enumerate(value))


@contextlib.contextmanager
def nested_too_deeply(what: str) -> Iterator[None]:
    """Turn a RecursionError into a ValueError that names the data: it contains itself, or is nested too deeply."""
    try:
        yield
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply, or contains itself") from error
