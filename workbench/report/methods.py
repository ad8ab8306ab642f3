"""The table of a study of methods: what each keeps, its size, its score and its cost."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench import dag, resolve
from workbench.record import Cell, Record, RecordError
from workbench.report import collect, compare, equivalence, footnotes, slide_claims
from workbench.report.cells import Table, Text
from workbench.report.equivalence import NOTHING
from workbench.report.gemm import gemm_table
from workbench.report.verdicts import verdict
from workbench.report.wording import (
    DASH,
    arrow,
    interval,
    metric_name,
    metric_title,
    number,
    study_title,
)
from workbench.spec import Method

MEGABYTE = 1e6
KERNEL_PATTERN = {"kind": "nm", "keep": 2, "of": 4}  # of these, what our kernels run
MASKED = "val_loss"  # how the csv names the metric of masked LMs, as the slides do


@dataclass(frozen=True)
class Row:
    """A method: its values by seed, and what its records say of size, magnitude and time.

    Sizes are in bytes at 16 bits; seconds are of its own stages, not those of the dense network.
    """

    key: str
    method: Method
    values: pd.Series
    weights: float
    kept: float
    size: float
    metadata: float
    seconds: float


@dataclass(frozen=True)
class Rows:
    """The methods of a study at a scale, the metric that judges them, and the margin."""

    metric: str
    higher: bool
    margin: float
    dense: list[str]
    by_key: dict[str, Row]


def methods_table(
    study: str, scale: str, networks: list[str], seeds: list[int], root: Path
) -> Table:
    """The table of a study of methods from the records under `root`; the slides' claims follow."""
    plan = resolve.study(study)
    cells = dag.study_cells(study, scale, networks, seeds)
    if not cells:
        raise dag.ConfigError(
            f"study {study}: none of the chosen networks is in it; its own: "
            f"{', '.join(dag.study_networks(study, resolve.names('networks')))}"
        )
    found = collect.records(dict.fromkeys(step for end in cells for step in dag.chain(end)), root)
    frame = collect.frame({cell: found[cell] for cell in cells if cell in found}, root)
    chosen = {key: m for key, m in plan.methods.items() if m.network in networks}
    rows = _rows(chosen, plan.baseline, scale, frame, found)
    notes = footnotes.Notes()
    shown = [_shown(row, rows, notes, (scale, seeds, frame, root)) for row in rows.by_key.values()]
    notes.add_methods(plan.slides, {c.network: _size_of(c.network, scale) for c in chosen.values()})
    notes.add_origins(frame)
    return Table(
        name=study,
        title=study_title(plan.title, scale),
        header=_header(rows),
        rows=shown,
        notes=notes.listed(),
        numbers=pd.DataFrame(
            [_numbers(r, _score_name(r, rows, scale)) for r in rows.by_key.values()]
        ),
        tests=slide_claims.tests(plan.claims, rows),
        then=slide_claims.table(plan.claims, rows, scale),
        kind="methods",
    )


def _rows(
    chosen: dict[str, Method],
    baseline: tuple[str, ...],
    scale: str,
    frame: pd.DataFrame,
    found: dict[Cell, Record],
) -> Rows:
    primary = frame[frame.primary.astype(bool)]
    metric = primary.metric.iloc[0] if len(primary) else ""
    higher = bool(primary.higher_is_better.iloc[0]) if len(primary) else True
    by_key = {
        key: _row(key, method, frame[frame.network == method.network], found, metric)
        for key, method in chosen.items()
    }
    dense = [key for key in baseline if key in by_key]
    margin = equivalence.seed_spread(*(by_key[key].values for key in dense))
    return Rows(metric, higher, margin, dense, by_key)


def _row(
    key: str, method: Method, own: pd.DataFrame, found: dict[Cell, Record], metric: str
) -> Row:
    of = [r for c, r in found.items() if c.network == method.network]
    pruned = [r for r in of if (r.cell.treatment, r.cell.stage) == (method.treatment, "prune")]
    trained = [
        r for r in of if (r.cell.treatment, r.cell.stage) == (method.treatment, method.stage)
    ]
    stored = [r.sparsity.get("storage", {}) for r in pruned]
    if method.stage == "dense":  # nothing is pruned: all of it is kept, without metadata
        stored = [
            {"bytes": r.sparsity["summary"]["dense_bytes"], "metadata_bytes": 0}
            for r in trained
            if "summary" in r.sparsity
        ]
    kept = [r.sparsity.get("kept_magnitude", NOTHING) for r in pruned]
    summaries = [r.sparsity["summary"] for r in trained if "summary" in r.sparsity]
    return Row(
        key,
        method,
        compare.values(own, method, metric),
        weights=_mean([s["weights"] for s in summaries]),
        kept=1.0 if method.stage == "dense" and trained else _mean(kept),
        size=_mean([s.get("bytes", NOTHING) for s in stored]),
        metadata=_mean([s.get("metadata_bytes", NOTHING) for s in stored]),
        seconds=_mean([r.seconds for r in trained])
        + (_mean([r.seconds for r in pruned]) if pruned else 0),
    )


def _header(rows: Rows) -> list[str]:
    return [
        "Method",
        "Weights, M",
        "Kept magnitude",
        "Size, MB",
        "Of it metadata",
        f"{metric_title(rows.metric)} {arrow(rows.higher)}" if rows.metric else "Score",
        *(f"Against {rows.by_key[key].method.title.lower()}" for key in rows.dense),
        "Speedup of GEMMs",
        "Minutes",
        "Seeds",
    ]


def _shown(row: Row, rows: Rows, notes: footnotes.Notes, where: tuple) -> list[Text]:  # noqa: ANN401
    scale, seeds, frame, root = where
    named = {"network": row.method.network, "title": row.method.title, "scale": scale}
    mark = notes.marks(named, {row.key: row.method}, seeds, frame, root)[row.key]
    values, metric = row.values, rows.metric
    low, high = (number(end, metric) for end in (values.min(), values.max()))
    score = number(values.mean(), metric) if len(values) else DASH
    return [
        Text(row.method.title),
        Text(_number(row.weights / 1e6, 1)),
        Text(_number(100 * row.kept, 1, " %")),
        Text(_number(row.size / MEGABYTE, 1)),
        Text(_number(row.metadata / MEGABYTE, 1)),
        Text(score, spread=f"[{low}, {high}]" if len(values) > 1 else "", mark=mark),
        *(_tested(row, key, rows) for key in rows.dense),
        Text(_speedup(row.method, scale, root)),
        Text(_number(row.seconds / 60, 1)),
        Text(str(len(values))),
    ]


def _speedup(method: Method, scale: str, root: Path) -> str:
    """Of BERT-Large's products in fp16, 2:4 against dense: the smallest and the largest."""
    pattern = dag.spec_of(method.network, method.treatment, scale).treatment.pattern
    if pattern != KERNEL_PATTERN:
        return DASH
    try:
        rows = gemm_table(root / scale / "measurements").numbers
    except RecordError:
        return DASH
    found = rows[rows.talk.notna()].speedup_vs_dense.dropna()
    return f"{found.min():.2f}–{found.max():.2f}x" if len(found) else DASH


def _tested(row: Row, against: str, rows: Rows) -> Text:
    if row.key == against:
        return Text("")
    gained = compare.gains(row.values, rows.by_key[against].values, rows.higher)
    found = equivalence.test(gained, rows.margin)
    return Text(verdict(found, rows.metric), spread=interval(found.low, found.high, rows.metric))


def _score_name(row: Row, rows: Rows, scale: str) -> str:
    spec = dag.spec_of(row.method.network, row.method.treatment, scale)
    masked = spec.phases[spec.last_phase].objective == "masked"
    return MASKED if masked else metric_name(rows.metric) or "score"


def _numbers(row: Row, score: str) -> dict[str, object]:
    return {
        "method": row.key,
        "kept_magnitude": row.kept,
        "size_mb": row.size / MEGABYTE,
        score: row.values.mean(),
        f"{score}_range": row.values.max() - row.values.min(),
        "seeds": len(row.values),
    }


def _size_of(network: str, scale: str) -> str:
    """What of a network a scale builds, as `BERT-Base, masked LM: 0.333 of its depth`."""
    spec = dag.spec_of(network, "dense", scale)
    parts = [
        f"{share:.3g} of its {what}"
        for what, share in (("width", spec.model.width), ("depth", spec.model.depth))
        if share != 1
    ]
    return f"{spec.title}: {' and '.join(parts)}" if parts else ""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else NOTHING


def _number(value: float, places: int, unit: str = "") -> str:
    return DASH if value != value else f"{value:,.{places}f}{unit}"
