"""Costs: the minutes of a row from its records, and of all rows together."""

import pytest

from workbench.report import costs

STAGES = [
    "dense/dense",
    "dense_again/prune",
    "dense_again/retrain",
    "2to4/prune",
    "2to4/retrain",
    "2to4/quantize",
    "dense/quantize",
]


@pytest.fixture
def row(put):
    def write(network, seconds, stages=STAGES, **changes):
        for stage in stages:
            put(network, stage, {"train/top1": 70.0}, seconds=seconds, **changes)

    return write


def test_a_row_is_all_stages_of_the_accuracy_study(row, results):
    row("resnet50", 60.0)
    assert costs.row_seconds("resnet50", "smoke", [0], results) == 420.0  # seven stages


def test_seconds_are_means_over_the_seeds_that_ran(row, results):
    row("resnet50", 60.0)
    row("resnet50", 120.0, ["dense/dense"], seed=1)
    assert costs.row_seconds("resnet50", "smoke", [0, 1], results) == 450.0  # 6 x 60 + 90


def test_a_row_that_lacks_a_stage_has_no_cost(row, results):
    row("resnet50", 60.0, STAGES[:-1])
    assert costs.row_seconds("resnet50", "smoke", [0], results) is None


def test_all_rows_are_told_against_the_hours(row, results):
    row("resnet50", 60.0, scale="lite")  # 7 min a row and seed
    text = costs.budget("lite", [0], results)
    # ten ResNets and 24 others that count as it: 34 x 3 x 7 min = 11.9 h, and 3.97 times 3 h
    assert "34 rows x 3 seeds take 11.9 GPU hours one after another" in text
    assert "if 4.0 runs at a time" in text
    assert "<th scope=row>resnet</th><td>10</td><td>1</td><td>7.0</td><td>210</td>" in text
    assert "<td>7.0 (mean of all)</td>" in text


def test_without_a_whole_row_nothing_is_estimated(results):
    assert "No row has a record of every stage yet." in costs.budget("lite", [0], results)
