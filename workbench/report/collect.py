"""All records of some cells as one tidy frame: a row per cell and metric."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import dag
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
    paths = {cell: _record_path(cell.folder, root) for cell in cells}
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


def is_current(record: Record, root: Path) -> bool:
    """Whether the spec is still that of the record, and its inputs still what current stages made.

    An input whose own record is absent cannot be believed either.
    """
    cell = record.cell
    if record.spec_digest != dag.stage_digest(cell.network, cell.treatment, cell.scale, cell.stage):
        return False
    return all(_is_still_made(record, path, root) for path in dag.upstream(cell).values())


def _is_still_made(record: Record, path: Path, root: Path) -> bool:
    maker_path = _record_path(path.parent, root)
    if str(path) not in record.inputs or not maker_path.exists():
        return False
    maker = read(maker_path)
    made = maker.outputs.get(path.name)
    same = made is not None and made.sha256 == record.inputs[str(path)].sha256
    return same and is_current(maker, root)


def _shared(cell: Cell, record: Record) -> dict[str, Any]:
    origin = record.provenance
    return cell.model_dump() | {
        "digest": record.spec_digest,
        "git": origin["git"]["commit"],
        "dirty": bool(origin["git"]["dirty"]),
        "device": origin["versions"]["device"],
    }


def _record_path(folder: Path, root: Path) -> Path:
    return root / folder / "record.json"
