"""What rounds say, and whether they agree: a figure whose rounds disagree is unstable, and is no number.

**What is judged.** A ratio is judged by the ratios within each round: what slows the whole machine for a while, as on a
shared one, slows both of them, and cancels. A time has nothing to cancel it. It is unstable where its rounds disagree
both as they are and relative to their round, of which the speed is the median over the other contestants of their time
as a multiple of their own median. So a machine that drifts makes nobody's time unstable, and neither does a contestant
whose rounds disagree make that of another. Each figure is judged by itself.

**When rounds disagree.** Of n values in order, a quarter at each end, n // 4, is left out: outliers. Then

- the rest, which is what lies between the quartiles, is apart by more than a factor of 1.5; or
- there are two clusters, each of more than a quarter of the rounds and of three at least. The gap between them is more
  than a factor of 1.2, and wider than either of them; an eighth at each end is left out before. A median between two
  clusters is a matter of chance, even where they are closer than 1.5.

Of three rounds none is left out: nobody can tell an outlier among three, so that these are measured again. New rounds
are added to those that there are, and do not replace them: to replace rounds until some agree would be to choose the
result. A first attempt that was disturbed from its beginning to its end is a quarter of four, and is left out then.

Where normal rounds scatter by 10 %, one figure in a hundred of three rounds is measured again, and fewer of more
rounds; by 15 %, one in seven of three rounds, one in twenty of seven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

APART = 1.5
GAP = 1.2
FEWEST = 3  # rounds of a cluster


class Figure(NamedTuple):
    """A number, or why there is none.

    Attributes
    ----------
    value : float or None
        None where it is unstable.
    unstable : str
        Why; nothing where the rounds agree.
    """

    value: float | None
    unstable: str = ""

    def map(self, function: Callable[[float], float]) -> Figure:
        """Make another number of this one."""
        return self if self.value is None else Figure(function(self.value))


def reasons(**figures: Figure) -> dict[str, str]:
    """Name the figures that are unstable, with their reasons, for an entry of the JSON file."""
    return {name: figure.unstable for name, figure in figures.items() if figure.unstable}


def disagreement(values: Sequence[float]) -> str:
    """Say why the rounds of one figure disagree, see above; nothing where they agree.

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
    """Return the last of some numbers over the first."""
    return ordered[-1] / ordered[0]


def median_of(values: Sequence[float]) -> Figure:
    """Return the median of what is comparable between rounds: ratios, shares."""
    why = disagreement(values)
    return Figure(None, why) if why else Figure(median(values))


class Rounds:
    """What contestants took, round by round; not everyone runs in every round.

    Parameters
    ----------
    rounds : sequence of mapping of str to float
        Seconds of a step, or another quantity above 0, by contestant.
    disturbed : str
        Why all that these rounds say is unstable, even where they agree; nothing as a rule.
    """

    def __init__(self, rounds: Sequence[Mapping[str, float]], disturbed: str = "") -> None:
        self.rounds = rounds
        self.disturbed = disturbed
        self.names = list(dict.fromkeys(name for round_ in rounds for name in round_))
        self.typical = {name: median(self.of(name)) for name in self.names}

    def of(self, name: str) -> list[float]:
        """Return what one contestant took, in each of its rounds."""
        return [round_[name] for round_ in self.rounds if name in round_]

    def seconds(self, name: str) -> Figure:
        """Return the median of a contestant's time."""
        why = self.disturbed or (disagreement(self.relative(name)) and disagreement(self.of(name)))
        return Figure(None, why) if why else Figure(self.typical[name])

    def relative(self, name: str) -> list[float]:
        """Return what one contestant took, over what the others' times say of the speed of the machine in a round."""
        found = []
        for round_ in self.rounds:
            if name in round_:
                others = [taken / self.typical[other] for other, taken in round_.items() if other != name]
                found.append(round_[name] / (median(others) if others else 1.0))
        return found

    def ratios(self, slow: str, fast: str) -> list[float]:
        """Return how many times as long the one takes as the other, in each round in which both ran."""
        return [round_[slow] / round_[fast] for round_ in self.rounds if slow in round_ and fast in round_]

    def ratio(self, slow: str, fast: str) -> Figure:
        """Return the median of the ratios within each round."""
        return Figure(None, self.disturbed) if self.disturbed else median_of(self.ratios(slow, fast))

    def unstable(self, references: Iterable[str]) -> list[str]:
        """Name the contestants of which a time, or a ratio over a reference, is unstable."""
        return [
            name
            for name in self.names
            if self.seconds(name).unstable or any(self.ratio(name, other).unstable for other in references)
        ]
