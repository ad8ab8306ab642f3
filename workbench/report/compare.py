"""The numbers of one network in a study: means, differences to dense, recovered share, tests.

Differences are in the metric's good direction (positive is better) and paired over seeds.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench import dag
from workbench.report import equivalence, talk
from workbench.report.equivalence import NOTHING
from workbench.spec import Column, Spec, Study

Columns = dict[str, Column]


@dataclass(frozen=True)
class Comparison:
    """The test of a column against another."""

    column: str
    against: str
    test: equivalence.Test


def numbers(study: Study, scale: str, network: str, frame: pd.DataFrame) -> dict[str, Any]:
    """One row of the table of a study, as plain values; a missing number is NaN."""
    columns = study.columns
    own = frame[(frame.scale == scale) & (frame.network == network)]
    base = baseline(columns)
    metric, higher = primary_of(own, columns[base]) or _fallback(columns, own)
    spec = dag.spec_of(network, columns[base].treatment, scale)
    row = {"network": network, "title": spec.title, "scale": scale}
    row |= _described(spec, own, metric) | {"higher_is_better": higher}
    for key, column in columns.items():
        row |= _measured(key, column, columns[base], own, (metric, higher))
    control = controls(columns, network, scale)
    margin = equivalence.seed_spread(*(values(own, columns[k], metric) for k in [base, *control]))
    row |= {"margin": margin, "tests": []}
    for key in compared(columns, base):
        for other in [base, *equal_compute(key, columns, network, scale)]:
            theirs = values(own, columns[other], metric)
            gained = gains(values(own, columns[key], metric), theirs, higher)
            row["tests"].append(Comparison(key, other, equivalence.test(gained, margin)))
    for key in sparse(columns, network, scale):
        row[f"{key}_recovered"] = _recovered(columns[base], columns[key], own)
    row |= {f"talk_{name}": value for name, value in talk.printed(spec.talk, study.talk).items()}
    return row


def baseline(columns: Columns) -> str:
    """The column that the others are compared with: the first of stage dense."""
    return next(key for key, column in columns.items() if column.stage == "dense")


def sparse(columns: Columns, network: str, scale: str) -> list[str]:
    """The columns that hold a retrained network with a pattern."""
    return [
        key
        for key, column in columns.items()
        if column.stage == "retrain"
        and dag.spec_of(network, column.treatment, scale).treatment.pattern["kind"] != "none"
    ]


def controls(columns: Columns, network: str, scale: str) -> list[str]:
    """The columns that hold a network retrained without a pattern: equal compute, no zeros."""
    retrained = [key for key, column in columns.items() if column.stage == "retrain"]
    return [key for key in retrained if key not in sparse(columns, network, scale)]


def compared(columns: Columns, base: str) -> list[str]:
    """The columns that are tested against the baseline: trained or quantized, not only pruned."""
    return [key for key, column in columns.items() if key != base and column.stage != "prune"]


def equal_compute(key: str, columns: Columns, network: str, scale: str) -> list[str]:
    """The dense columns of as much training as a sparse one, beside the baseline."""
    column = columns[key]
    spec = dag.spec_of(network, column.treatment, scale)
    if spec.treatment.pattern["kind"] == "none" or spec.from_scratch:
        return []
    return controls(columns, network, scale)


def primary_of(frame: pd.DataFrame, column: Column) -> tuple[str, bool] | None:
    """The primary metric of a column's records and whether higher is better."""
    rows = _seen(frame, column)
    rows = rows[rows.primary.astype(bool)]
    return (rows.metric.iloc[0], bool(rows.higher_is_better.iloc[0])) if len(rows) else None


def values(frame: pd.DataFrame, column: Column, metric: str) -> pd.Series:
    """The values of a metric by seed."""
    rows = _seen(frame, column)
    return rows[rows.metric == metric].set_index("seed").value.sort_index()


def gains(ours: pd.Series, theirs: pd.Series, higher: bool) -> pd.Series:
    """Ours minus theirs by seed, positive where ours is better; seeds of both only."""
    return ((ours - theirs) * (1 if higher else -1)).dropna()


def _described(spec: Spec, own: pd.DataFrame, metric: str) -> dict[str, Any]:
    phase = metric.partition("/")[0] or spec.last_phase
    seen = own[own.metric == metric]
    chance = own[(own.metric == f"{phase}/chance") & (own.stage == "dense")].value
    return {
        "task": seen.task.iloc[0] if len(seen) else spec.phases[phase].task,
        "data": seen.data.iloc[0] if len(seen) else spec.phases[phase].data.name,
        "precision": spec.precision,
        "current": bool(own.current.all()) if len(own) else None,
        "metric": metric,
        "chance": chance.mean(),
    }


def _measured(
    key: str, column: Column, base: Column, own: pd.DataFrame, row: tuple[str, bool]
) -> dict[str, Any]:
    # a pruned network is judged at the prune point, which may be another phase than the last
    metric, higher = primary_of(own, column) or row
    ours = values(own, column, metric)
    gained = gains(ours, values(own, base, metric), higher)
    found = {
        key: ours.mean(),
        f"{key}_min": ours.min(),
        f"{key}_max": ours.max(),
        f"{key}_seeds": len(ours),
    }
    if column != base:
        found[f"{key}_difference"] = gained.mean()
    if column.stage == "prune":
        found |= {f"{key}_metric": metric, f"{key}_higher_is_better": higher}
    return found


def _recovered(base: Column, column: Column, own: pd.DataFrame) -> float:
    pruned_column = column.model_copy(update={"stage": "prune"})
    metric = primary_of(own, pruned_column)
    if metric is None:
        return NOTHING
    name, higher = metric
    pruned = values(own, pruned_column, name)
    lost = gains(values(own, base, name), pruned, higher)
    won = gains(values(own, column, name), pruned, higher)
    both = lost.index.intersection(won.index)
    # nothing lost, nothing to recover: the share has no meaning
    return won[both].mean() / lost[both].mean() if lost[both].mean() > 0 else NOTHING


def _fallback(columns: Columns, own: pd.DataFrame) -> tuple[str, bool]:
    for column in columns.values():
        if column.stage != "prune" and (found := primary_of(own, column)):
            return found
    return "", True


def _seen(frame: pd.DataFrame, column: Column) -> pd.DataFrame:
    return frame[(frame.treatment == column.treatment) & (frame.stage == column.stage)]
