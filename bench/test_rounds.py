"""When synthetic rounds disagree; and when a benchmark waits, and measures again."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fastopt.bench import measure, quiet, rounds
from fastopt.bench.measure import Pace, settled
from fastopt.bench.rounds import Figure, Rounds, disagreement, median_of


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect no garbage, which takes longer than all of this."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def scattered(count: int, scatter: float, seed: int = 0) -> list[float]:
    """Draw times around 1 that scatter by a share."""
    draw = random.Random(seed)
    return [math.exp(draw.gauss(0.0, scatter)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 12, 30, 100])
def test_rounds_that_scatter_a_little_agree(count: int) -> None:
    for seed in range(50):
        assert disagreement(scattered(count, 0.05, seed)) == ""


def test_hardly_any_round_that_scatters_by_a_tenth_is_suspected() -> None:
    for count, most in ((3, 0.03), (7, 0.01), (12, 0.005), (40, 0.0)):
        found = sum(disagreement(scattered(count, 0.1, seed)) != "" for seed in range(1000))
        assert found <= most * 1000


@pytest.mark.parametrize("order", list(itertools.permutations([1.0, 1.01, 3.0])))
def test_one_of_three_may_be_an_outlier_or_not(order: tuple[float, ...]) -> None:
    assert disagreement(order) == "3.0x apart, half of 3 rounds"
    assert disagreement([*order, 1.02, 1.0]) == ""  # that it is one shows when more are measured


@pytest.mark.parametrize("count", [4, 5, 7, 8, 20])
def test_an_outlier_is_none_of_the_middle_half(count: int) -> None:
    for outlier in (1e-3, 1e3):
        assert disagreement([*scattered(count - 1, 0.02), outlier]) == ""


def test_quartiles_that_are_apart_disagree() -> None:
    assert disagreement([1.0, 1.2, 1.3, 1.6, 1.8, 2.1, 2.2, 2.4]) == "1.6x apart, half of 8 rounds"
    assert disagreement([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]) == ""


@pytest.mark.parametrize("apart", [1.4, 2.0, 50.0])
@pytest.mark.parametrize(("low", "high"), [(5, 5), (4, 8), (8, 4), (20, 10), (50, 50)])
def test_two_clusters_disagree(low: int, high: int, apart: float) -> None:
    found = scattered(low, 0.02) + [apart * value for value in scattered(high, 0.02, seed=1)]
    random.Random(0).shuffle(found)
    assert disagreement(found) != ""
    if apart < rounds.APART:
        assert disagreement(found) == f"{apart:.1f}x apart, two clusters of {low + high} rounds"
        assert "two clusters" in disagreement([*found, 30.0, 0.01])  # whatever outliers there are besides


def test_one_attempt_of_four_may_be_disturbed_from_its_beginning_to_its_end() -> None:
    for each in (3, 7, 20):
        assert disagreement([9.0 * value for value in scattered(each, 0.02)] + scattered(3 * each, 0.02)) == ""
        assert disagreement([9.0 * value for value in scattered(each, 0.02)] + scattered(2 * each, 0.02)) != ""


def drifting(*contestants: list[float]) -> Rounds:
    """Let all of them run on a machine that becomes four times as slow."""
    names = "abcdef"
    return Rounds(
        [
            {name: (1 + 3 * i / len(contestants[0])) * taken for name, taken in zip(names, round_, strict=False)}
            for i, round_ in enumerate(zip(*contestants, strict=True))
        ]
    )


@pytest.mark.parametrize("count", [3, 7, 30])
@pytest.mark.parametrize("others", [1, 5])
def test_a_machine_that_drifts_makes_nothing_unstable(count: int, others: int) -> None:
    found = drifting(*(scattered(count, 0.03, seed) for seed in range(others + 1)))
    assert found.seconds("a").value == pytest.approx(2.5, rel=0.4)
    assert found.ratio("b", "a").value == pytest.approx(1.0, rel=0.1)
    assert found.unstable(["a"]) == []


@pytest.mark.parametrize("others", [1, 4])
def test_the_figure_is_unstable_and_not_the_row(others: int) -> None:
    """One contestant has two clusters: its time and its ratio are no figures, and all others' are."""
    two = [value * (1.0 if i % 2 else 3.0) for i, value in enumerate(scattered(12, 0.03))]
    steady = [scattered(12, 0.03, seed) for seed in range(1, others + 1)]
    found = Rounds([dict(zip("abcdef", round_, strict=False)) for round_ in zip(two, *steady, strict=True)])
    assert found.unstable(["b"]) == ["a"]
    assert found.seconds("a").value is None
    assert found.ratio("a", "b").value is None
    for name in found.names[1:]:
        assert found.seconds(name).value == pytest.approx(1.0, rel=0.1)
        assert found.ratio(name, "b").value == pytest.approx(1.0, rel=0.1)


def test_who_runs_alone_has_nobody_to_blame() -> None:
    assert Rounds([{"a": 1.0}, {"a": 4.0}, {"a": 1.0}]).seconds("a").unstable
    assert Rounds([{"a": 1.0}, {"a": 1.1}, {"a": 1.0}]).seconds("a") == Figure(1.0)


def test_ratios_are_medians_within_the_rounds_that_both_have() -> None:
    """On a machine that slows down the ratio of the medians is 2.5, and the median of the ratios 4."""
    found = Rounds([{"a": 4.0, "b": 1.0}, {"a": 10.0, "b": 2.5}, {"a": 32.0, "b": 8.0}, {"b": 1.0}])
    assert found.ratio("a", "b") == Figure(4.0)
    assert found.of("a") == [4.0, 10.0, 32.0]


def test_a_figure_of_an_unstable_one_is_unstable() -> None:
    why = median_of([1.0, 2.0, 9.0])
    assert why.map(lambda value: 1 / value) == why
    assert Figure(4.0).map(lambda value: 1 / value) == Figure(0.25)
    assert rounds.reasons(seconds=why, ratio=Figure(1.0)) == {"seconds": "9.0x apart, half of 3 rounds"}


def clockwork(times: Mapping[str, Iterator[float]], calls: list[str]) -> measure.Mode:
    """Make a mode whose clocks say what is wanted."""

    def clock(name: str) -> measure.Clock:
        def read(step: object) -> float:
            calls.append(name)
            return next(times[name])

        return read

    return lambda contestants: {name: clock(name) for name in contestants}


def test_rounds_that_disagree_are_measured_again_beside_the_reference() -> None:
    calls: list[str] = []
    times = {
        "a": itertools.repeat(1.0),
        "b": itertools.chain([2.0, 9.0], itertools.repeat(2.0)),
        "c": itertools.repeat(3.0),
    }
    contestants = dict.fromkeys(times, lambda: None)
    found = settled(contestants, clockwork(times, calls), Pace(0, 3, 3), ("a",))
    assert found.ratio("b", "a") == Figure(2.0)
    assert found.seconds("c") == Figure(3.0)
    assert [calls.count(name) for name in "abc"] == [6, 6, 3]
    assert [*found.rounds[0]] == ["a", "b", "c"]


def test_three_times_again_at_most() -> None:
    calls: list[str] = []
    times = {"a": itertools.repeat(1.0), "b": itertools.cycle([2.0, 6.0])}
    found = settled(dict.fromkeys(times, lambda: None), clockwork(times, calls), Pace(0, 3, 3), ("a",))
    assert len(found.rounds) == (1 + measure.AGAIN) * 3 == 12
    assert found.ratio("b", "a") == Figure(None, "3.0x apart, half of 12 rounds")
    assert found.seconds("a") == Figure(1.0)


def beside(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """Let others take these shares of the processors while rounds are measured again and again."""
    given = iter(shares)
    monkeypatch.setattr(quiet.Others, "share", lambda self: next(given))


def test_what_others_disturbed_is_measured_again_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch, 0.6, 0.05)
    calls: list[str] = []
    times = {"a": itertools.repeat(1.0), "b": iter([900.0] * 3 + [2.0] * 3)}
    found = settled(dict.fromkeys(times, lambda: None), clockwork(times, calls), Pace(0, 3, 3), ("a",))
    assert len(found.rounds) == 3
    assert found.ratio("b", "a") == Figure(2.0)
    assert found.unstable(["a"]) == []


def test_what_others_always_disturb_is_unstable_though_rounds_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch, *[0.6] * (1 + measure.AGAIN))
    calls: list[str] = []
    times = {"a": itertools.repeat(1.0), "b": itertools.repeat(1317.0)}
    found = settled(dict.fromkeys(times, lambda: None), clockwork(times, calls), Pace(0, 3, 3), ("a",))
    why = "other programs took 60% of the processors"
    assert found.ratio("b", "a") == found.seconds("a") == found.seconds("b") == Figure(None, why)


def test_what_this_process_takes_is_not_what_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    own, all_of_them = [0.0], [(0, 0), (0, 0)]
    monkeypatch.setattr("time.process_time", lambda: own[0])
    monkeypatch.setattr(quiet, "times", lambda: list(all_of_them))
    others = quiet.Others()
    assert others.share() is None
    ticks = os.sysconf("SC_CLK_TCK")
    own[0], all_of_them[:] = 1.5, [(0, ticks), (0, ticks)]  # in a second of two processors
    assert others.share() == 0.25
    assert others.disturbed() == ""
    own[0] = 1.0
    assert others.disturbed() == "other programs took 50% of the processors"


def wait(monkeypatch: pytest.MonkeyPatch, *shares: float | None) -> list[str]:
    """Wait beside others who take these shares, each for a second, and return what was said."""
    now, said = [0.0], list[str]()
    given = iter(shares)

    def busy() -> float | None:
        now[0] += quiet.SAMPLE
        return next(given)

    monkeypatch.setattr(quiet, "busy", busy)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    quiet.wait(said.append)
    return said


def test_nobody_waits_where_it_is_quiet_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait(monkeypatch, 0.03) == []
    assert wait(monkeypatch, None) == []


def test_the_command_waits_for_a_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = wait(monkeypatch, 0.8, 0.5, 0.01)
    assert first.startswith("other programs take 80% of the processors: waiting for a quiet moment, at most a minute")
    assert last == "quiet after 3 s"


def test_it_waits_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    _, last = wait(monkeypatch, *[0.9] * 60)
    assert last.startswith("others still take 90%")
    assert "unstable" in last


def test_busy_is_who_uses_the_processors_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two of three; waiting for disks counts as idle, time that another guest has taken does not."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(quiet, "STAT", stat)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 2}, raising=False)
    idle = "cpu0 0 0 0 100 0 0 0 0 0 0", "cpu1 0 0 0 0 0 0 0 0 0 0", "cpu2 5 5 5 5 5 5 5 5 0 0"
    working = "cpu0 20 1 1 160 20 1 1 1 0 0", "cpu1 99 0 0 0 0 0 0 0 0 0", "cpu2 5 5 5 105 5 5 5 5 0 0"
    before, after = ("\n".join(("cpu 9 9 9 9 9 9 9 9 0 0", *lines, "intr 1 2")) for lines in (idle, working))
    stat.write_text(before)
    monkeypatch.setattr("time.sleep", lambda seconds: stat.write_text(after))
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    assert quiet.busy() == pytest.approx(25 / 205)
    assert quiet.busy() is None  # nothing has moved
    stat.unlink()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert quiet.busy() is None
