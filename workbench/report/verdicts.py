"""Verdicts in words: of a row beside its numbers, or of many columns in a table of their own."""

import math
from typing import Any

import pandas as pd

from workbench.report.cells import Table, Text
from workbench.report.compare import Comparison
from workbench.report.equivalence import Test
from workbench.report.wording import DASH, column_title, interval, number, signed, study_title

Row = dict[str, Any]  # of compare.numbers


def header(rows: list[Row], int8: list[str]) -> list[str]:
    """The titles of `cells`."""
    control = ["At equal compute"] if any(_against_control(row) for row in rows) else []
    against = [f"{column_title(name)} against dense" for name in int8]
    return ["Recovered", "Margin", "Against dense", *control, *against]


def cells(row: Row, key: str, int8: list[str]) -> list[Text]:
    """What retraining recovered, the margin, and the tests of a column and of its INT8."""
    control = [_tested(row, key, False)] if _against_control(row) else []
    against = [_tested(row, name, True) for name in int8]
    return [_recovered(row, key), _margin(row), _tested(row, key, True), *control, *against]


def table(rows: list[Row], scale: str) -> Table | None:
    """A row for each column of each network that is compared with the dense one, if any is."""
    shown = []
    for row in rows:
        for key in dict.fromkeys(each.column for each in row["tests"] if each.test.verdict):
            score = Text(number(row[key], row["metric"]))
            named = [Text(row["title"]), Text(column_title(key)), score]
            tests = [_tested(row, key, base) for base in (True, False)]
            shown.append([*named, _recovered(row, key), *tests, _margin(row)])
    titles = ["Network", "Column", "Score", "Recovered", "Against dense", "At equal compute"]
    if not shown:
        return None
    return Table(
        name="verdicts",
        title=study_title("Verdicts", scale),
        header=[*titles, "Margin"],
        rows=shown,
        notes=[],
        numbers=pd.DataFrame(),
        kind="verdicts",
    )


def verdict(found: Test, metric: str) -> str:
    """A verdict in words, with the difference that it is about."""
    if found.verdict in ("better", "worse"):
        return f"{found.verdict} by {number(abs(found.difference), metric)}"
    if not found.verdict or found.verdict == "equivalent":
        return found.verdict or DASH
    return f"{signed(found.difference, metric)} ({found.verdict})"


def _tested(row: Row, key: str, base: bool) -> Text:
    """The test against the baseline, or those against the dense columns of equal compute."""
    of: list[Comparison] = [each for each in row["tests"] if each.column == key]
    chosen = of[:1] if base else of[1:]
    if not any(each.test.verdict for each in chosen):
        return Text(DASH)
    said = "; ".join(verdict(each.test, row["metric"]) for each in chosen)
    spans = [interval(each.test.low, each.test.high, row["metric"]) for each in chosen]
    return Text(said, spread="; ".join(span for span in spans if span))


def _against_control(row: Row) -> bool:
    return len({each.against for each in row["tests"]}) > 1


def _recovered(row: Row, key: str) -> Text:
    share = row.get(f"{key}_recovered", math.nan)
    return Text(DASH if math.isnan(share) else f"{100 * share:.0f}%".replace("-", "−"))


def _margin(row: Row) -> Text:
    margin = row["margin"]
    return Text(DASH if math.isnan(margin) else f"±{number(margin, row['metric'])}")
