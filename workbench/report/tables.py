"""The table of a study as people read it: cells with changes and marks, and footnotes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import dag, resolve
from workbench.report import collect, compare, equivalent_after, footnotes, published
from workbench.report.equivalence import Test
from workbench.report.wording import (
    DASH,
    arrow,
    column_title,
    interval,
    metric_title,
    number,
    signed,
    study_title,
)


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


def study_table(study: str, scale: str, networks: list[str], seeds: list[int], root: Path) -> Table:
    """The table of a study from the records under the results folder `root`."""
    plan = resolve.study(study)
    columns, networks = plan.columns, dag.study_networks(study, networks)
    if not networks:
        raise dag.ConfigError(
            f"study {study}: none of the chosen networks is in it; its own: "
            f"{', '.join(plan.networks)}"
        )
    cells = dag.study_cells(study, scale, networks, seeds)
    frame = collect.frame(collect.records(cells, root), root)
    rows = [compare.numbers(plan, scale, network, frame) for network in networks]
    notes = footnotes.Notes()
    shown = [
        _row(row, columns, notes.marks(row, columns, seeds, frame, root), _has_epochs(rows))
        for row in rows
    ]
    notes.add_rules(rows, columns, plan.slides)
    notes.add_origins(frame)
    return Table(
        name=study,
        title=study_title(plan.title, scale),
        header=_header(columns, rows),
        rows=shown,
        notes=notes.listed(),
        numbers=pd.DataFrame(rows),
        published=published.rows(rows, columns),
        tests=published.tests(rows),
    )


def _header(columns: compare.Columns, rows: list[dict[str, Any]]) -> list[str]:
    judged = _judged(columns, rows[0])
    several = len(judged) > 1
    names = [f" ({column_title(key)})" if several else "" for key in judged]
    return [
        "Network",
        "Data",
        "Metric",
        "Chance",
        *(column_title(key) for key in columns),
        *(f"Recovered{name}" for name in names),
        "Margin",
        *(f"Against dense{name}" for name in names),
        *(f"At equal compute{name}" for name in names if _has_control(rows[0])),
        *(["Equivalent after"] if equivalent_after.applies(columns, rows[0]) else []),
        "Talk dense",
        "Talk sparse FP16",
        "Talk sparse INT8",
        *(["Talk epochs"] if _has_epochs(rows) else []),
        "Seeds",
    ]


def _has_epochs(rows: list[dict[str, Any]]) -> bool:
    return any("talk_epochs" in row for row in rows)


def _row(
    row: dict[str, Any], columns: compare.Columns, marks: dict[str, str], epochs: bool
) -> list[Text]:
    metric = row["metric"]
    title = f"{metric_title(metric)} {arrow(row['higher_is_better'])}" if metric else DASH
    judged = _judged(columns, row)
    return [
        Text(row["title"], mark=marks["network"]),
        Text(f"{row['task'].replace('_', ' ')}: {row['data']}"),
        Text(title),
        Text(number(row["chance"], metric)),
        *(_measured(row, key, marks[key]) for key in columns),
        *(Text(_share(row[f"{key}_recovered"])) for key in judged),
        Text(DASH if math.isnan(row["margin"]) else f"±{number(row['margin'], metric)}"),
        *(_tested(row, key, True) for key in judged),
        *(_tested(row, key, False) for key in judged if _has_control(row)),
        *(
            [Text(equivalent_after.text(columns, row))]
            if equivalent_after.applies(columns, row)
            else []
        ),
        *_talk(row),
        *([Text(row.get("talk_epochs", DASH))] if epochs else []),
        Text(_seeds(row, columns)),
    ]


def _measured(row: dict[str, Any], key: str, mark: str) -> Text:
    if math.isnan(row[key]):
        return Text(DASH, mark=mark)
    metric = row.get(f"{key}_metric", row["metric"])
    value = number(row[key], metric)
    own = ""
    if metric != row["metric"]:
        own = f"{metric_title(metric)} {arrow(row[f'{key}_higher_is_better'])}"
    low, high = (number(row[f"{key}_{end}"], metric) for end in ("min", "max"))
    spread = f"[{low}, {high}]" if row[f"{key}_seeds"] > 1 else ""
    change = row.get(f"{key}_difference", compare.NOTHING)
    return Text(value, own, "" if math.isnan(change) else signed(change, metric), spread, mark)


def _talk(row: dict[str, Any]) -> list[Text]:
    texts = []
    for name in ("dense_fp16", "sparse_fp16", "sparse_int8"):
        value = row.get(f"talk_{name}", compare.NOTHING)
        change = row.get(f"talk_{name}_difference", compare.NOTHING)
        # the talk prints as many decimals as it means: one, or two for losses
        decimals = 1 if row.get("talk_metric", "") not in ("BPC", "Validation Loss") else 2
        texts.append(
            Text(
                DASH if math.isnan(value) else f"{value:.{decimals}f}",
                change="" if math.isnan(change) else signed(change, decimals=decimals),
            )
        )
    return texts


def _judged(columns: compare.Columns, row: dict[str, Any]) -> list[str]:
    return [key for key in columns if f"{key}_recovered" in row]


def _share(value: float) -> str:
    return DASH if math.isnan(value) else f"{100 * value:.0f}%".replace("-", "−")


def _seeds(row: dict[str, Any], columns: compare.Columns) -> str:
    counts = {row[f"{key}_seeds"] for key in columns}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)}–{max(counts)}"


def _has_control(row: dict[str, Any]) -> bool:
    bases = {each.against for each in row["tests"]}
    return len(bases) > 1


def _tested(row: dict[str, Any], key: str, base: bool) -> Text:
    """The test of a column against the baseline, or against the dense columns of equal compute."""
    of = [each for each in row["tests"] if each.column == key]
    chosen = of[:1] if base else of[1:]
    if not any(each.test.verdict for each in chosen):
        return Text(DASH)
    said = "; ".join(verdict(each.test, row["metric"]) for each in chosen)
    spans = [interval(each.test.low, each.test.high, row["metric"]) for each in chosen]
    return Text(said, spread="; ".join(span for span in spans if span))


def verdict(found: Test, metric: str) -> str:
    """A verdict in words, with the difference that it is about."""
    if found.verdict in ("better", "worse"):
        return f"{found.verdict} by {number(abs(found.difference), metric)}"
    if not found.verdict or found.verdict == "equivalent":
        return found.verdict or DASH
    return f"{signed(found.difference, metric)} ({found.verdict})"
