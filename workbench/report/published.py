"""What the csv files of a table hold: means and ranges by network, and a row for each test."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from workbench.report import compare
from workbench.report.wording import metric_name

_TALK = {"dense": "dense_fp16", "sparse_fp16": "sparse_fp16", "sparse_int8": "sparse_int8"}
_PREPOSITIONS = {"equivalent": "equivalent to", "undecided": "undecided against"}


def rows(numbers: list[dict[str, Any]], columns: compare.Columns) -> pd.DataFrame:
    """A row per network: mean, range and verdict of each column, and the talk's numbers.

    `seeds` is the smallest count among the columns that have a record.
    """
    return pd.DataFrame([_row(row, columns) for row in numbers])


def tests(numbers: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per test: column, what it is compared with, difference, interval, margin, verdict."""
    found = [
        {"network": row["network"], "column": each.column, "against": each.against}
        | asdict(each.test)
        for row in numbers
        for each in row["tests"]
    ]
    return pd.DataFrame(found)


def verdict(row: dict[str, Any], key: str) -> str:
    """The verdicts of a column in words, as `better than dense, equivalent to dense_again`."""
    said = []
    for each in row["tests"]:
        word = each.test.verdict
        if each.column == key and word.isalpha():
            said.append(f"{_PREPOSITIONS.get(word, f'{word} than')} {each.against}")
        elif each.column == key and word:
            return word
    return ", ".join(said)


def _row(row: dict[str, Any], columns: compare.Columns) -> dict[str, Any]:
    shown = [key for key, column in columns.items() if column.stage != "prune"]
    judged = [key for key in shown if f"{key}_recovered" in row]
    counts = [row[f"{key}_seeds"] for key in shown if row[f"{key}_seeds"]]
    verdicts = {f"{key}_verdict": verdict(row, key) for key in judged}
    if len(judged) == 1:
        verdicts = {"verdict": verdict(row, judged[0])}
    return {
        "network": row["network"],
        "metric": metric_name(row["metric"]),
        "higher_is_better": row["higher_is_better"],
        "seeds": min(counts, default=0),
        **{key: row[key] for key in shown},
        **verdicts,
        **{f"talk_{name}": row.get(f"talk_{key}", compare.NOTHING) for name, key in _TALK.items()},
        **{f"{key}_range": row[f"{key}_max"] - row[f"{key}_min"] for key in shown},
    }
