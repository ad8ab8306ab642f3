"""Whether two trainings are equivalent: an interval of their difference against a margin."""

from dataclasses import dataclass

import pandas as pd

NOTHING = float("nan")
CONFIDENCE = 90  # %: inside the margin at this confidence is TOST at 5 %
# Student's t, 95 % one-sided, by degrees of freedom (NIST handbook of statistics, 1.3.6.7.2)
_T95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}
_NORMAL95 = 1.833  # of ten seeds and more: that of nine, on the safe side


@dataclass(frozen=True)
class Test:
    """A mean difference over seeds, its interval, the declared margin, and the verdict.

    `equivalent`: the interval lies inside the margin. `better` and `worse`: it does not, and
    excludes zero. `undecided`: neither. `one seed` has no interval; "" means nothing to compare.
    """

    difference: float
    low: float
    high: float
    margin: float
    seeds: int
    verdict: str


def seed_spread(*dense: pd.Series) -> float:
    """The declared margin: the largest range over seeds of dense networks, by seed."""
    spreads = [series.max() - series.min() for series in dense if len(series) > 1]
    return max(spreads, default=NOTHING)


def test(gained: pd.Series, margin: float) -> Test:
    """The test of differences paired by seed, positive where ours is better."""
    count, mean = len(gained), gained.mean()
    if count < 2 or margin != margin:
        word = ("", "one seed")[count] if count < 2 else "no spread"
        return Test(mean, NOTHING, NOTHING, margin, count, word)
    reach = _T95.get(count - 1, _NORMAL95) * gained.std(ddof=1) / count**0.5
    low, high = mean - reach, mean + reach
    return Test(mean, low, high, margin, count, _verdict(low, high, margin))


def _verdict(low: float, high: float, margin: float) -> str:
    if -margin <= low and high <= margin:
        return "equivalent"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"
