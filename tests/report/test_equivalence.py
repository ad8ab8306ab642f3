"""Equivalence: intervals by hand, the margin, and what few seeds can decide."""

import math

import pandas as pd
import pytest

from workbench.report import equivalence


def test_the_interval_is_students_of_paired_differences():
    found = equivalence.test(pd.Series([1.0, 2.0, 3.0]), margin=10.0)
    # mean 2, deviation 1, t(0.95, 2 degrees of freedom) = 2.920: 2 +- 2.920 / sqrt(3)
    assert (found.difference, found.seeds) == (2.0, 3)
    assert found.low == pytest.approx(2 - 2.920 / math.sqrt(3))
    assert found.high == pytest.approx(2 + 2.920 / math.sqrt(3))


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([-0.1, 0.0, 0.1], 0.2, "equivalent"),  # +- 0.169
        ([-0.1, 0.0, 0.1], 0.1, "undecided"),
        ([0.9, 1.0, 1.1], 0.5, "better"),  # [0.83, 1.17]
        ([-0.9, -1.0, -1.1], 0.5, "worse"),
        ([0.9, 1.0, 1.1], 1.2, "equivalent"),  # better, but by less than a run differs from a run
        ([1.0], 0.5, "one seed"),
        ([], 0.5, ""),
        ([1.0, 1.0], float("nan"), "no spread"),
    ],
)
def test_a_verdict_follows_from_interval_and_margin(differences, margin, verdict):
    assert equivalence.test(pd.Series(differences, dtype=float), margin).verdict == verdict


def test_the_margin_is_the_largest_range_of_dense_networks_over_seeds():
    one, two = pd.Series([1.0, 1.5]), pd.Series([4.0, 4.2, 4.3])
    assert equivalence.seed_spread(one, two) == 0.5
    assert math.isnan(equivalence.seed_spread(pd.Series([1.0])))
