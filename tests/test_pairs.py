"""A few combinations of options contain every pair."""

import itertools

import pytest
from pairs import pairs, swept, usually

OPTIONS = {
    "rule": ["sgd", "adam", "adamw"],
    "nesterov": [False, True],
    "dtype": ["f4", "f8", "f2"],
    "count": [1, 2, 3, 9],
}


def met(combinations, together):
    """Say which values of which options occur together."""
    return {meeting for row in combinations for meeting in itertools.combinations(enumerate(row), together)}


@pytest.mark.parametrize("together", [1, 2, 3])
def test_all_that_should_meet_does_and_in_few_combinations(together):
    chosen = pairs(together, **OPTIONS)
    product = list(itertools.product(*OPTIONS.values()))
    assert met(chosen, together) == met(product, together)
    assert set(chosen) <= set(product)
    assert len(chosen) <= {1: 4, 2: 16, 3: 45}[together] < len(product)
    assert chosen == pairs(together, **OPTIONS)


def test_values_need_no_hash_and_one_option_is_itself():
    assert pairs(options=[{"lr": 1}, {}]) == [({"lr": 1},), ({},)]
    assert pairs(a=[[1], [2]], b=[{}]) == [([1], {}), ([2], {})]


def test_a_sweep_has_all_combinations_and_marks_those_beyond_the_pairs():
    mark = swept(**OPTIONS).mark
    names, cases = mark.args
    assert names == list(OPTIONS)
    assert [case.values for case in cases] == list(itertools.product(*OPTIONS.values()))
    unmarked = {case.values for case in cases if not case.marks}
    assert unmarked == set(pairs(**OPTIONS))
    assert all(mark.name == "exhaustive" for case in cases for mark in case.marks)


def test_pairs_are_found_among_what_is_usual():
    """And values that never are do not occur by default."""
    _, cases = swept(usual=lambda a, b: a + b < 4, a=[0, 1, 2, 9], b=[0, 1, 2]).mark.args
    assert len(cases) == 12
    assert [case.values for case in cases if not case.marks] == [
        (a, b) for a, b in itertools.product([0, 1, 2], repeat=2) if a + b < 4
    ]


def test_all_but_the_usual_values_are_exhaustive():
    cases = usually([("adam", {}), ("sgd", {"lr": 1})], itertools.product(["sgd", "adam"], [{"lr": 1}, {}]))
    assert [case.values for case in cases] == [("sgd", {"lr": 1}), ("sgd", {}), ("adam", {"lr": 1}), ("adam", {})]
    assert [len(case.marks) for case in cases] == [0, 1, 1, 0]
    assert [case.values for case in usually(["f4"], ["f2", "f4"])] == [("f2",), ("f4",)]
    with pytest.raises(ValueError, match=r"not among the values: \['f8'\]"):
        usually(["f8"], ["f2", "f4"])
