"""How much of a schedule retraining needs until the network is equivalent to the dense one."""

from typing import Any

from workbench import dag
from workbench.durations import shortened
from workbench.report import compare
from workbench.report.wording import DASH


def applies(columns: compare.Columns, row: dict[str, Any]) -> bool:
    """Whether the sparse columns of a study retrain for different shares of the schedule."""
    return len(set(_shares(columns, row).values())) > 1


def text(columns: compare.Columns, row: dict[str, Any]) -> str:
    """`13.3ep of 40ep`: the shortest retraining that is equivalent to dense, or better.

    `not within 40ep` if every length was found worse, and a dash where that is undecided.
    """
    shares, base = _shares(columns, row), compare.baseline(columns)
    words = {each.column: each.test.verdict for each in row["tests"] if each.against == base}
    spec = dag.spec_of(row["network"], "dense", row["scale"])
    whole = spec.phases[spec.last_phase].train.length
    enough = [key for key in shares if words[key] in ("equivalent", "better")]
    if enough:
        least = min((shares[key] for key in enough), key=lambda share: float(share[:-1]))
        number, unit = float(shortened(whole, least)[:-2]), whole[-2:]
        return f"{number:.3g}{unit} of {whole}"
    return f"not within {whole}" if all(words[key] == "worse" for key in shares) else DASH


def _shares(columns: compare.Columns, row: dict[str, Any]) -> dict[str, str]:
    """The share of the schedule that each sparse column retrains for."""
    return {
        key: dag.spec_of(row["network"], column.treatment, row["scale"]).treatment.retrain_length
        for key, column in columns.items()
        if f"{key}_recovered" in row
    }
