"""The arrays of a group: given alone or in nested containers, named by their paths, mirrored by gradients."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from numbers import Number
from types import MappingProxyType
from typing import Any

import numpy as np

from .backends.foreign import is_array, is_one_array, is_tensor, kind, to_update

DEPTH = 64  # of nested containers


class ParamTree:
    """The arrays of a group, given as one array or in containers; gradients mirror them.

    Parameters
    ----------
    params : array, sequence, mapping or iterable
        Arrays in a sequence are numbered, those in a mapping named; in nested containers they have paths.
    first : int, default 0
        The number of the first entry, if params is a sequence or an array.

    Attributes
    ----------
    arrays : list
        In order.
    keys : sequence
        The key of each array's state.
    given : array, tuple or mapping
        The arrays as they were given, in read-only containers.
    numbers : int
        How many numbers they use up; the next group's begin after them.
    mirrored : callable
        ``mirrored(grads)`` returns gradients in the order of the arrays, or raises if they do not mirror the arrays.
    """

    arrays: list[Any]
    keys: Sequence[Hashable]
    given: Any
    mirrored: Callable[[Any], Sequence[Any]]

    def __init__(self, params: Any, first: int = 0) -> None:
        if is_array(params):
            self.arrays, self.keys, self.given = [params], [first], params
            self.numbers, self.mirrored = 1, _alone
            return
        held = held_for_good("params", params, to_update)
        found: dict[str, Any] = {}
        root = Container(held, None, (), found, first)
        if not found:
            raise ValueError("params is empty: give at least one array")
        _check_kept(held, found, first)
        self.arrays = list(found.values())
        self.numbers = max(len(root.inner), len(self.arrays))
        self.given = root.filled(iter(self.arrays))
        self.mirrored = root.entries if root.is_flat else root.gathered
        if not root.is_flat:
            self.keys = list(found)
        elif root.names is None:
            self.keys = range(first, first + len(self.arrays))
        else:
            self.keys = list(root.names)


class Container:
    """One of the nested containers of parameters: a sequence, or a mapping with names.

    Parameters
    ----------
    given : sequence or mapping
    path : str or None
        Its path; None for the outermost container.
    above : tuple of int
        The ids of the containers around it.
    found : dict
        Collects the arrays, by path.
    first : int, default 0
        The number of a sequence's first entry.

    Attributes
    ----------
    names : dict of str or None
        The names of a mapping, in order; the values mean nothing.
    inner : list of Container or None
        The container at each entry, None for an array.
    is_flat : bool
        Whether every entry is an array.
    count : int
        How many arrays it contains, at any depth.
    """

    __slots__ = ("count", "inner", "is_flat", "names", "path")

    def __init__(
        self, given: Any, path: str | None, above: tuple[int, ...], found: dict[str, Any], first: int = 0
    ) -> None:
        _check_depth("params", given, path, above)
        self.path = path
        self.names = dict.fromkeys(_names(given, path)) if isinstance(given, Mapping) else None
        self.inner: list[Container | None] = []
        before, above = len(found), (*above, id(given))
        entries = enumerate(given, first) if self.names is None else ((name, given[name]) for name in self.names)
        for name, entry in entries:
            at = _joined(path, name)
            if is_container(entry):
                self.inner.append(Container(entry, at, above, found))
            elif at in found:
                raise ValueError(f"two parameters have the path {at!r}: give one of them another name")
            else:
                found[at] = entry
                self.inner.append(None)
        self.is_flat = not any(self.inner)
        self.count = len(found) - before

    def filled(self, arrays: Iterator[Any]) -> Any:
        """Return the arrays in read-only containers of the same structure."""
        filled = [next(arrays) if inner is None else inner.filled(arrays) for inner in self.inner]
        return tuple(filled) if self.names is None else MappingProxyType(dict(zip(self.names, filled, strict=True)))

    def gathered(self, grads: Any) -> list[Any]:
        """Return the gradients of all arrays, at any depth."""
        out: list[Any] = []
        self._gather(grads, out)
        return out

    def _gather(self, grads: Any, out: list[Any]) -> None:
        if self.is_flat:
            out.extend(self.entries(grads))  # += would ask a UserList first
            return
        for inner, entry in zip(self.inner, self.entries(grads), strict=True):
            if inner is None:
                out.append(entry)
            elif entry is None:  # no array in this container has a gradient
                out += [None] * inner.count
            else:
                inner._gather(entry, out)

    def entries(self, grads: Any) -> Sequence[Any]:
        """Return the gradients' entries in order, or raise an error that says how they do not mirror the parameters."""
        if self.names is None:
            if not isinstance(grads, (list, tuple)) and not _is_sequence(grads):
                raise TypeError(f"params{self} is a list, so grads must be a list of as many, not {kind(grads)}")
            if len(grads) != len(self.inner):
                raise ValueError(
                    f"there are {len(self.inner)} parameters and {len(grads)} gradients{self}; "
                    "give None where a parameter has no gradient"
                )
            in_order: Sequence[Any] = grads
            return in_order
        if not isinstance(grads, (dict, Mapping)):  # a dict is found sooner by its own type
            raise TypeError(f"params{self} is a dict, so grads must be a dict with the same keys, not {kind(grads)}")
        if grads.keys() != self.names.keys():
            missing = [name for name in self.names if name not in grads]
            unknown = [name for name in grads if name not in self.names]
            raise ValueError(
                f"grads must have the keys of params{self}: {missing} missing, {unknown} unknown; "
                "give None where a parameter has no gradient"
            )
        return [grads[name] for name in self.names]

    def __str__(self) -> str:
        """Return its path, for error messages."""
        return "" if self.path is None else f" at {self.path!r}"


def is_container(value: Any) -> bool:
    """Say whether a value is a container: a mapping, or a sequence of more than numbers."""
    if is_one_array(value):
        return False
    return isinstance(value, Mapping) or _is_sequence(value)


def _is_sequence(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        return False
    return len(value) == 0 or not all(isinstance(entry, Number) for entry in value)


def _check_depth(what: str, given: Any, path: str | None, above: tuple[int, ...]) -> None:
    """Raise if a container is in itself, or in too many."""
    if id(given) in above or len(above) == DEPTH:
        why = "in itself" if id(given) in above else f"more than {DEPTH} deep"
        raise ValueError(f"{what} is nested {why}, at {path!r:.80}: give each array once, in few containers")


def held_for_good(what: str, given: Any, advice: Callable[[Any], str]) -> Any:
    """Return containers of arrays in a form that can be iterated over more than once."""
    if isinstance(given, Iterator):
        return list(given)
    other = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Sequence)) and not is_one_array(given)
    if not is_container(given) and (not other or is_tensor(given)):
        raise TypeError(f"{what} must be an array, a list or a dict of arrays, not {kind(given)}: {advice(given)}")
    return given


def leaves(what: str, held: Any) -> list[tuple[Hashable, Any]]:
    """Return what is in nested containers, but no containers and no None, each with its key or path."""
    found: list[tuple[Hashable, Any]] = []
    _collect(what, held, None, (), found)
    return found


def _collect(
    what: str, given: Any, path: str | None, above: tuple[int, ...], found: list[tuple[Hashable, Any]]
) -> None:
    _check_depth(what, given, path, above)
    for name, entry in given.items() if isinstance(given, Mapping) else enumerate(given):
        if type(entry) is not np.ndarray and is_container(entry):  # arrays are found sooner by their own type
            _collect(what, entry, _joined(path, name), (*above, id(given)), found)
        elif entry is not None:
            found.append((name if path is None else _joined(path, name), entry))


def _check_kept(held: Any, found: Mapping[str, Any], first: int) -> None:
    """Raise if a container makes a new array at each access, as ``np.load("w.npz")`` does."""
    again: dict[str, Any] = {}
    Container(held, None, (), again, first)
    for (path, array), other in zip(found.items(), again.values(), strict=False):
        if is_array(array) and not is_same(array, other):
            raise ValueError(
                f"params makes another array of {path!r} at each access, so the trained one would be lost: "
                "keep its arrays in a dict or a list, as dict(np.load(file)), and train that"
            )


def is_same(array: Any, other: Any) -> bool:
    """Say whether two arrays are one, or views of the same memory."""
    if array is other:
        return True
    both = isinstance(array, np.ndarray) and isinstance(other, np.ndarray)
    return both and array.__array_interface__ == other.__array_interface__


def _names(given: Mapping[Any, Any], path: str | None) -> list[str]:
    names = list(given)
    for name in names:
        if not isinstance(name, str):
            where = "" if path is None else f" (at {path!r})"
            raise TypeError(f"parameters are named by strings, not by {name!r}{where}: use {{str(name): array, ...}}")
    return names


def _joined(path: str | None, name: Any) -> str:
    text = name if isinstance(name, str) else str(name)  # joining takes the value of an enum that is a string
    return ".".join([text] if path is None else [path, text])


def _alone(grads: Any) -> Sequence[Any]:
    return [grads]
