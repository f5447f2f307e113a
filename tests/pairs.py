"""Sweeps over options: by default a few combinations in which every pair occurs; all of them in `.ci/run` alone."""

import collections
import itertools

import pytest


def pairs(together=2, **options):
    """Choose few of all combinations of options, such that each two values of two options meet in one of them.

    Parameters
    ----------
    together : int
        How many options' values have to meet: 1 where it is enough that each value occurs, 2 for pairs, 3 for triples.
    **options : sequence
        The values of each option.

    Returns
    -------
    list of tuple
        The combinations, each with a value of every option in the order of the arguments; always the same ones.
    """
    values = [list(option) for option in options.values()]
    return [
        tuple(of[i] for of, i in zip(values, row, strict=True)) for row in covering(list(map(len, values)), together)
    ]


def swept(together=2, ids=None, usual=lambda **row: True, **options):
    """Parametrize a test by all combinations of options, of which those beyond :func:`pairs` are exhaustive.

    The pairs are found among the combinations that are usual, where that is a function.
    """
    values = [list(option) for option in options.values()]
    sizes = list(map(len, values))
    chosen = set(
        covering(
            sizes,
            together,
            lambda row: usual(**{name: of[i] for name, of, i in zip(options, values, row, strict=True)}),
        )
    )
    cases = [
        pytest.param(
            *(of[i] for of, i in zip(values, row, strict=True)), marks=[] if row in chosen else [pytest.mark.exhaustive]
        )
        for row in itertools.product(*map(range, sizes))
    ]
    return pytest.mark.parametrize(list(options), cases, ids=ids)


def usually(usual, values):
    """Values of a test, of which all but the usual ones are exhaustive; of several options, in tuples."""
    values = list(values)
    if left := [value for value in usual if value not in values]:
        raise ValueError(f"not among the values: {left}")
    return [
        pytest.param(
            *(value if type(value) is tuple else (value,)), marks=[] if value in usual else pytest.mark.exhaustive
        )
        for value in values
    ]


def covering(sizes, together, usual=lambda row: True):
    """Choose rows of indices below these sizes: always that with most meetings to come, of values used least so far."""
    rows = {row: meetings(row, together) for row in itertools.product(*map(range, sizes)) if usual(row)}
    missing, used, chosen = set().union(*rows.values()), collections.Counter(), []
    while missing:
        best = max(rows, key=lambda row: (len(rows[row] & missing), -sum(used[value] for value in enumerate(row))))
        chosen.append(best)
        missing -= rows[best]
        used.update(enumerate(best))
    return chosen


def meetings(row, together):
    """Say which values meet in a row."""
    return set(itertools.combinations(enumerate(row), min(together, len(row))))
