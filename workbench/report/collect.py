"""All records of some cells as one tidy frame: a row per cell and metric."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.current import is_current
from workbench.record import Cell, Record, read

COLUMNS = (
    "scale",
    "network",
    "treatment",
    "stage",
    "seed",
    "task",
    "data",
    "metric",
    "value",
    "primary",
    "higher_is_better",
    "digest",
    "current",
    "git",
    "dirty",
    "device",
)


def records(cells: Iterable[Cell], root: Path) -> dict[Cell, Record]:
    """The records that exist among those of `cells`, under the results folder `root`."""
    paths = {cell: root / cell.folder / "record.json" for cell in cells}
    return {cell: read(path) for cell, path in paths.items() if path.exists()}


def frame(found: dict[Cell, Record], root: Path) -> pd.DataFrame:
    """One row per record and metric; `higher_is_better` is known for primary metrics only."""
    rows = []
    for cell, record in found.items():
        shared = _shared(cell, record) | {"current": is_current(record, root)}
        for metric, value in record.metrics.items():
            phase = record.spec["phases"].get(metric.partition("/")[0], {})
            primary = metric == record.primary
            rows.append(
                shared
                | {
                    "task": phase.get("task", ""),
                    "data": phase.get("data", {}).get("name", ""),
                    "metric": metric,
                    "value": value,
                    "primary": primary,
                    "higher_is_better": record.higher_is_better if primary else None,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _shared(cell: Cell, record: Record) -> dict[str, Any]:
    origin = record.provenance
    return cell.model_dump() | {
        "digest": record.spec_digest,
        "git": origin["git"]["commit"],
        "dirty": bool(origin["git"]["dirty"]),
        "device": origin["versions"]["device"],
    }
