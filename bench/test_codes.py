"""Codes of 8 bits: what they promise, in float64 and in compiled loops, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastopt.bench import codes, codes_loops, codes_report, codes_study
from fastopt.bench.codes import OF_AVERAGES, OF_SQUARES, SIGNED, UNSIGNED, Code, Storage, stochastically, to_nearest

RUN = Path(__file__).parent / "results/codes.json"
CHOSEN = "float above a bias"
ALL = [
    *((name, code, SIGNED - (name == CHOSEN)) for name, code in OF_AVERAGES.items()),
    *((n, c, UNSIGNED) for n, c in OF_SQUARES.items()),
]
BLOCK = codes_loops.BLOCK


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(("name", "code", "last"), ALL)
def test_codes_are_the_inverse_of_what_they_encode(name: str, code: Code, last: int) -> None:
    """They grow from 0 to 1, and each is encoded as itself, so that a state that does not change keeps its code."""
    numbers = np.arange(last + 1.0)
    decoded = code.decode(numbers)
    assert code.last == last
    np.testing.assert_allclose(decoded[[0, -1]], [0.0, 1.0], rtol=1e-14)
    assert (np.diff(decoded) > 0).all()
    np.testing.assert_array_equal(to_nearest(code, decoded, rng()), numbers)


@pytest.mark.parametrize(("name", "code", "last"), ALL)
def test_stochastic_rounding_keeps_the_mean(name: str, code: Code, last: int) -> None:
    """Of the number, also between the smallest codes, where they are least even."""
    for place in (0.3, 1.7, 10.4, last - 0.4):
        below, above = code.decode(np.floor([place, place + 1.0]))
        x = below + (place % 1) * (above - below)
        decoded = code.decode(stochastically(code, np.full(2**16, x), rng()))
        assert set(decoded) <= {below, above}
        assert abs(decoded.mean() - x) < 5 * decoded.std() / 2**8


def test_the_map_is_that_of_bitsandbytes() -> None:
    """The first numbers and the last, by its formula; of 128 that are positive, with 1, the smallest is left out."""
    unsigned, signed = codes.dynamic_map(UNSIGNED), codes.dynamic_map(SIGNED)
    assert (len(unsigned), len(signed)) == (256, 128)
    np.testing.assert_allclose(unsigned[[1, 2, 3, -2]], [3.25e-7, 7.75e-7, 2.125e-6, 1 - 0.9 / 256], rtol=1e-12)
    np.testing.assert_allclose(signed[[1, 2, -2]], [3.25e-6, 7.75e-6, 1 - 0.9 / 128], rtol=1e-12)


@pytest.mark.parametrize("block", [32, 256])
def test_a_positive_square_never_becomes_0(block: int) -> None:
    """One huge number in a block takes the codes of the others."""
    state = np.ones(300)
    state[0] = 1e30
    for least, zeros in ((0, block - 1), (1, 0)):
        stored = Storage(OF_SQUARES["fourth root"], block, least=least)(state, rng())
        assert (stored == 0).sum() == zeros
    np.testing.assert_array_equal(stored[block:], 1.0)  # another block


LOOPS = [
    (name, table, table is OF_AVERAGES)
    for name in ("softsign", CHOSEN, "fourth root")
    for table in (OF_AVERAGES, OF_SQUARES)
    if name in table
]


@pytest.mark.parametrize(
    ("name", "table", "signed"),
    [pytest.param(*loop, marks=[] if loop[0] == CHOSEN and loop[2] else pytest.mark.exhaustive) for loop in LOOPS],
)
def test_loops_compute_what_is_measured(name: str, table: dict[str, Code], signed: bool) -> None:
    """The codes of float64, twice over; with zeros, NaN, infinity, one huge number and subnormal ones."""
    loop = codes_loops.of_code(name, signed)
    special = np.zeros((6, BLOCK), np.float32)
    special[1, 1], special[2, 1], special[3, 1], special[4, :2], special[5, :2] = np.nan, np.inf, 1e38, (1e35, 1), 1e-44
    grads = np.concatenate([codes_loops.drawn(signed)[: 8 * BLOCK], special.ravel()])
    stored, scales = np.zeros(grads.size, np.int8 if signed else np.uint8), np.zeros(grads.size // BLOCK, np.float32)

    loop(stored, scales, grads, np.float32(0.5))
    expected = Storage(table[name], BLOCK, least=int(not signed))(grads[: 8 * BLOCK].astype(np.float64), rng())
    numbers = np.abs(stored[: 8 * BLOCK].astype(np.float64))
    decoded = table[name].decode(numbers) * np.repeat(scales[:8], BLOCK)
    np.testing.assert_allclose(decoded * np.sign(expected), expected, rtol=1e-6)
    assert not stored[8 * BLOCK : 9 * BLOCK].any()  # a block of zeros
    np.testing.assert_array_equal(np.isnan(scales), [False] * 9 + [True] * 3 + [False] * 2)
    assert list(stored[12 * BLOCK :][:3]) == ([table[name].last, 0, 0] if signed else [255, 1, 0])
    assert list(stored[13 * BLOCK :][:3]) == ([0, 0, 0] if signed else [1, 1, 0])

    before = stored.copy()
    loop(stored, scales, np.zeros_like(grads), np.float32(1))  # nothing changes
    np.testing.assert_array_equal(stored[: 8 * BLOCK], before[: 8 * BLOCK])


def test_what_is_chosen_is_among_what_is_measured() -> None:
    """By the committed run, whose tables have a line for each; what the page says of them."""
    run: codes_report.Study = json.loads(RUN.read_text(encoding="utf-8"))
    assert [row["code"] for row in run["averages"]] == [*OF_AVERAGES]
    assert [row["code"] for row in run["squares"]] == [*OF_SQUARES]
    assert [*run["rules"]] == [*codes_study.CHOSEN]
    averages, squares = ({row["code"]: row for row in run[kind]} for kind in ("averages", "squares"))
    for block, error in averages[CHOSEN]["errors"].items():
        assert error < 1.15 * min(row["errors"][block] for row in run["averages"])
        assert squares[CHOSEN]["errors"][block] == min(row["errors"][block] for row in run["squares"])
    for rows in (averages, squares):
        assert rows[CHOSEN]["nanoseconds"] < rows["softsign"]["nanoseconds"]
    text = codes_report.markdown(run)
    assert all(f"| {name} |" in text for name in (*OF_AVERAGES, *OF_SQUARES, *codes_study.CHOSEN))


@pytest.mark.parametrize(
    ("drift", "text"),
    [
        ({"mean": 0.0123, "error": 0.004}, "+1.2% ± 0.4%"),
        ({"mean": 4.0, "error": 1.0}, "diverges"),
        (codes_report.LOST, "NaN"),
        (None, ""),
    ],
)
def test_drifts_are_written(drift: Any, text: str) -> None:
    assert codes_report.drift(drift) == text


def test_states_in_float32_do_not_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """And squares that become 0 do: a training of some steps, by Adam."""
    monkeypatch.setattr(codes_study, "STEPS", 8)
    monkeypatch.setattr(codes_study, "SEEDS", range(2))
    trainings = codes_study.Trainings()
    float32 = codes_study.in_float32
    assert trainings.drift("adam", [float32, float32]) == {"mean": 0.0, "error": 0.0}
    assert abs(trainings.drift("adam", codes_study.CHOSEN["adam"]["to nearest"])["mean"] or 1.0) < 0.05
    lost = trainings.drift("adam", [float32, Storage(OF_SQUARES["linear"])])["mean"]
    assert lost is None or lost > 1
