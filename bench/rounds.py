"""The figures that rounds give, and whether rounds agree: a figure whose rounds disagree is unstable, and not a number.

**What is judged.** A ratio is judged by the ratios within each round: what slows the whole machine for a while, as on a
shared one, slows both contestants, and cancels. In a time nothing cancels. It is unstable if its rounds disagree both
as they are and relative to the speed of their round, which is the median over the other contestants of their time
divided by their own median. So a drifting machine makes no time unstable, and a contestant whose rounds disagree does
not make another's time unstable. Each figure is judged by itself.

**When rounds disagree.** Of n sorted values, n // 4 at each end are left out as outliers. Rounds disagree if

- the rest, which lies between the quartiles, spans more than a factor of 1.5; or
- there are two clusters, each with more than a quarter of the rounds, and at least three. The gap between them is more
  than a factor of 1.2, and wider than either cluster; only an eighth at each end is left out here. A median between two
  clusters is a matter of chance, even if they are closer than 1.5.

Of three rounds none is left out: an outlier among three cannot be recognised, so they are measured again. New rounds
are added to the old ones and do not replace them: replacing rounds until some agree would be choosing the result. A
first attempt that was disturbed throughout is a quarter of four attempts, and is then left out.

If normal rounds scatter by 10 %, one figure of three rounds in a hundred is measured again, and fewer of more rounds;
by 15 %, one in seven of three rounds, one in twenty of seven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypedDict

APART = 1.5
GAP = 1.2
FEWEST = 3  # rounds of a cluster


class Figure(NamedTuple):
    """A number, or why there is none.

    Attributes
    ----------
    value : float or None
        None if it is unstable.
    unstable : str
        Why it is; empty if the rounds agree.
    """

    value: float | None
    unstable: str = ""

    def map(self, function: Callable[[float], float]) -> Figure:
        """Apply a function to the value, if there is one."""
        return self if self.value is None else Figure(function(self.value))


def reasons(**figures: Figure) -> dict[str, str]:
    """Return the names of unstable figures with their reasons, for an entry of the JSON file."""
    return {name: figure.unstable for name, figure in figures.items() if figure.unstable}


def disagreement(values: Sequence[float]) -> str:
    """Say why the rounds of one figure disagree, see above; return "" if they agree.

    Parameters
    ----------
    values : sequence of float
        Above 0, one for each round.
    """
    ordered, quarter, eighth = sorted(values), len(values) // 4, len(values) // 8
    middle = ordered[quarter : len(ordered) - quarter]
    if (apart := ratio(middle)) > APART:
        return f"{apart:.1f}x apart, half of {len(values)} rounds"
    fewest = max(FEWEST, quarter + 1) - eighth
    trimmed = ordered[eighth : len(ordered) - eighth]
    for end in range(fewest, len(trimmed) - fewest + 1):
        low, high = trimmed[:end], trimmed[end:]
        if (gap := high[0] / low[-1]) > GAP and gap > max(ratio(low), ratio(high)):
            return f"{median(high) / median(low):.1f}x apart, two clusters of {len(values)} rounds"
    return ""


def ratio(ordered: Sequence[float]) -> float:
    """Return the last of sorted numbers over the first."""
    return ordered[-1] / ordered[0]


def median_of(values: Sequence[float]) -> Figure:
    """Return the median of values that can be compared between rounds: ratios, shares."""
    why = disagreement(values)
    return Figure(None, why) if why else Figure(median(values))


class Rounds:
    """The times of contestants, round by round; not all run in every round.

    Parameters
    ----------
    rounds : sequence of mapping of str to float
        Seconds of a step, or another quantity above 0, by contestant.
    disturbed : str
        Why every figure of these rounds is unstable, even if they agree; usually empty.
    """

    def __init__(self, rounds: Sequence[Mapping[str, float]], disturbed: str = "") -> None:
        self.rounds = rounds
        self.disturbed = disturbed
        self.names = list(dict.fromkeys(name for round_ in rounds for name in round_))
        self.typical = {name: median(self.of(name)) for name in self.names}

    def of(self, name: str) -> list[float]:
        """Return one contestant's time in each of its rounds."""
        return [round_[name] for round_ in self.rounds if name in round_]

    def seconds(self, name: str) -> Figure:
        """Return the median of a contestant's time."""
        why = self.disturbed or (disagreement(self.relative(name)) and disagreement(self.of(name)))
        return Figure(None, why) if why else Figure(self.typical[name])

    def relative(self, name: str) -> list[float]:
        """Return one contestant's times, each divided by the speed of its round, which the others' times show."""
        found = []
        for round_ in self.rounds:
            if name in round_:
                others = [taken / self.typical[other] for other, taken in round_.items() if other != name]
                found.append(round_[name] / (median(others) if others else 1.0))
        return found

    def ratios(self, slow: str, fast: str) -> list[float]:
        """Return how many times as long `slow` takes as `fast`, in each round in which both ran."""
        return [round_[slow] / round_[fast] for round_ in self.rounds if slow in round_ and fast in round_]

    def ratio(self, slow: str, fast: str) -> Figure:
        """Return the median of the ratios within each round."""
        return Figure(None, self.disturbed) if self.disturbed else median_of(self.ratios(slow, fast))

    def unstable(self, references: Iterable[str]) -> list[str]:
        """Name the contestants whose time, or ratio over a reference, is unstable."""
        return [
            name
            for name in self.names
            if self.seconds(name).unstable or any(self.ratio(name, other).unstable for other in references)
        ]


class Comparison(TypedDict):
    """One contestant: median seconds of a step, how many times as long as the subject's, and over how many rounds.

    An unstable figure is None, and `unstable` has the reason.
    """

    implementation: str
    seconds: float | None
    ratio: float | None
    rounds: int
    unstable: dict[str, str]


def comparisons(rounds: Rounds, subject: str) -> Iterator[Comparison]:
    """Compare each contestant with one of them, the subject."""
    for name in rounds.names:
        seconds, ratio = rounds.seconds(name), rounds.ratio(name, subject)
        yield {
            "implementation": name,
            "seconds": seconds.value,
            "ratio": ratio.value,
            "rounds": len(rounds.of(name)),
            "unstable": reasons(seconds=seconds, ratio=ratio),
        }
