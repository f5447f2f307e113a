"""The contenders for sparse gradients, and what the benchmark makes of their times."""

from __future__ import annotations

import gc
import json
from typing import Any

import numpy as np
import pytest
from fastopt.bench import measure, oracle, report, rounds, sparse, sparse_report
from fastopt.bench.measure import Pace
from fastopt.kernels import limits

STEPS = 3
EXACT = 1e-5  # relative to the largest movement: roundings of float32, of sums of dozens of values
TABLE = (400, 5)  # of whose rows most come more than once


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing again, however busy this machine is, and collect no garbage, which takes half of the time."""
    monkeypatch.setattr(measure, "AGAIN", 0)
    monkeypatch.setattr(rounds, "disagreement", lambda values: "")
    monkeypatch.setattr(gc, "collect", lambda: 0)


def whole(table: sparse.Table, step: int) -> Any:
    gradient = np.zeros(table.param.shape)
    np.add.at(gradient, table.indices[step], table.values.astype(np.float64))
    return gradient


@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
@pytest.mark.parametrize("name", sparse.CONTENDERS)
def test_contenders_follow_the_rule(name: str, rule: str) -> None:
    """By the oracle over the whole gradient, which these rules do not need."""
    table = sparse.Table.draw(*TABLE)
    before = table.param.copy()
    trainer = oracle.Trainer([table.param])
    step = sparse.CONTENDERS[name](table, rule)
    for number in range(STEPS):
        step()
        trainer.step(rule, [whole(table, number)], {"lr": sparse.LR, "eps": sparse.EPS})
    moved = trainer.params[0] - before
    np.testing.assert_allclose(table.param - before, moved, rtol=0, atol=EXACT * np.abs(moved).max())


def test_a_loop_that_touches_rows_changes_nothing() -> None:
    """It reads them, though: what is no number spreads."""
    table = sparse.Table.draw(*TABLE)
    step = sparse.touching_step(table, "adam")
    step()
    assert (table.param == 1).all()
    table.values[:] = np.nan
    sparse.touching_step(table, "adam")()
    assert set(np.flatnonzero(np.isnan(table.param).all(axis=1))) == set(table.indices[0])


@pytest.mark.parametrize("rule", ["adam", "rowwise"])
def test_all_update_the_same_rows(rule: str) -> None:
    """By Adam, lazily: torch adds eps to a root that is not corrected, so they are near, and not the same."""
    moved = {}
    for name, make in sparse.CONTENDERS.items():
        if (name, rule) == (sparse_report.TORCH, "rowwise"):
            continue
        table = sparse.Table.draw(*TABLE)
        step = make(table, rule)
        for _ in range(STEPS):
            step()
        moved[name] = table.param - 1
    for name, found in moved.items():
        np.testing.assert_allclose(found, moved["fastopt"], rtol=0, atol=1e-4, err_msg=name)
        assert ((found != 0).any(axis=1) == (moved["fastopt"] != 0).any(axis=1)).all()


def test_draws_have_duplicates_and_stay_in_the_table() -> None:
    """In a large table, too; a law without a tail would touch a few rows alone."""
    table = sparse.Table.draw(100_000, 1)
    assert len(table.indices) == sparse.DRAWS
    for indices in table.indices:
        assert indices.min() >= 0
        assert indices.max() < 100_000
        assert 1000 < len(np.unique(indices)) < 3500


def test_every_table_is_measured_by_every_rule() -> None:
    found = sparse.of_tables([TABLE, (50, 1)], Pace(seconds=0, fewest=2, most=2))
    tables = [(*table, rule) for table in (TABLE, (50, 1)) for rule in sparse.RULES]
    assert [(row["rows"], row["width"], row["rule"], row["implementation"]) for row in found] == [
        (*table, name)
        for table in tables
        for name in (*sparse.CONTENDERS, sparse_report.BYTES)
        if (table[2], name) != ("rowwise", sparse_report.TORCH)
    ]
    assert json.loads(json.dumps(found)) == found
    assert all(row["rounds"] == 2 and row["ratio"] is not None for row in found)


def test_steps_by_rows_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table by each number, and by all of its rows; all steps move them."""
    monkeypatch.setattr(sparse, "TOUCHES", (4, 300))
    found = sparse.of_touches([(50, 2), (400, 5)], Pace(seconds=0, fewest=2, most=2))
    names = ["4", "300", sparse_report.WHOLE]
    assert [(row["rows"], row["implementation"]) for row in found] == [(n, name) for n in (50, 400) for name in names]
    assert [row["touched"] for row in found] == [4, 300, 50, 4, 300, 400]
    param = np.ones((400, 5), np.float32)
    sparse.whole_step(param)()
    assert (param < 1).all()


def test_tables_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the largest one, rules without large states are left on a small machine."""
    monkeypatch.setattr(limits, "memory", lambda: 24 << 30)
    assert all(sparse.fits(*table, rule) for table in sparse.TABLES[:-1] for rule in sparse.RULES)
    assert [rule for rule in sparse.RULES if sparse.fits(*sparse.TABLES[-1], rule)] == ["sgd", "rowwise"]
    monkeypatch.setattr(limits, "memory", lambda: None)
    assert all(sparse.fits(*sparse.TABLES[-1], rule) for rule in sparse.RULES)


def test_the_table_has_a_line_for_each_rule() -> None:
    """Without torch it has no columns of it."""
    rows: list[sparse_report.Sparse] = [
        {
            "rows": 1_000_000,
            "width": 64,
            "rule": "adagrad",
            "implementation": name,
            "seconds": 4e-4,
            "ratio": ratio,
            "rounds": 3,
            "unstable": {} if ratio else {"ratio": "2.0x apart"},
        }
        for name, ratio in (("fastopt", 1.0), ("numpy", 20.0), ("numba-by-hand", None), ("rows alone", 0.5))
    ]
    text = list(sparse_report.markdown(rows))
    assert text[-3:] == [
        "| table | rule | fastopt | numpy | numba-by-hand | rows alone |",
        "|---|---|--:|--:|--:|--:|",
        "| 1,000,000 x 64 | adagrad | 400 µs | 20x | unstable | 0.50x |",
    ]
    run: Any = {"machine": report.machine("numpy", False), "rows": [], "ratios": [], "iteration": None}
    before = report.markdown(run)
    run["sparse"] = rows
    assert report.markdown(run) == before + "\n" + "\n".join(text) + "\n"
