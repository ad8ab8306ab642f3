"""A table for people as data: cells, rows, footnotes, and the frames that the csv files hold."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Text:
    """A cell: what it says (of which metric, if not the row's), change, range, footnote marks."""

    value: str
    metric: str = ""
    change: str = ""
    spread: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table for people, the same numbers for machines, and a table that belongs below it.

    The csv holds `published` where that is given; `tests` are those behind its verdicts.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[Text]]
    notes: list[tuple[str, str]]
    numbers: pd.DataFrame
    published: pd.DataFrame | None = None
    tests: pd.DataFrame | None = None
    then: "Table | None" = None
    kind: str = "study"
