"""The table of a study as people read it: cells with changes and marks, and footnotes."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import dag, resolve
from workbench.report import (
    collect,
    compare,
    equivalent_after,
    footnotes,
    published,
    verdicts,
)
from workbench.report.cells import Table, Text
from workbench.report.wording import (
    DASH,
    arrow,
    column_title,
    metric_title,
    number,
    signed,
    study_title,
)


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
        published=_published(rows, columns),
        tests=published.tests(rows),
        then=verdicts.table(rows, scale) if len(_judged(columns, rows[0])) > 1 else None,
    )


def _published(rows: list[dict[str, Any]], columns: compare.Columns) -> pd.DataFrame:
    frame = published.rows(rows, columns)
    if equivalent_after.applies(columns, rows[0]):
        frame["equivalent_after"] = [equivalent_after.text(columns, row) for row in rows]
    return frame


def _header(columns: compare.Columns, rows: list[dict[str, Any]]) -> list[str]:
    judged = _judged(columns, rows[0])
    return [
        "Network",
        "Data",
        "Metric",
        "Chance",
        *(column_title(key) for key in columns),
        *(verdicts.header(rows, _int8(columns, judged[0])) if len(judged) == 1 else []),
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
        *(verdicts.cells(row, judged[0], _int8(columns, judged[0])) if len(judged) == 1 else []),
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


def _int8(columns: compare.Columns, key: str) -> list[str]:
    """The columns that hold the INT8 of a column."""
    treatment = columns[key].treatment
    return [k for k, c in columns.items() if c.stage == "quantize" and c.treatment == treatment]


def _seeds(row: dict[str, Any], columns: compare.Columns) -> str:
    counts = {row[f"{key}_seeds"] for key in columns}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)}–{max(counts)}"
